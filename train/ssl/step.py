"""One step on labelled and unlabelled images: views, a forward pass, losses, update, average."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mirjax.losses import Side
from train.data.augment import crop_and_flip
from train.data.randaugment import strong
from train.engine.optimizers import Optimizer
from train.engine.state import Network, TrainState
from train.engine.step import (
    PUBLISHED,
    TermForm,
    Terms,
    UsedTerms,
    augmentation_key,
    descend,
    information_terms,
)
from train.ssl.algorithms import Algorithm, Pseudo, Views
from train.ssl.algorithms.base import moving, one_hot_of, probabilities

Part = Literal["labelled", "weak", "strong"]


@dataclasses.dataclass(frozen=True)
class TermPlacement:
    """The samples on which the information terms are computed, and their rows of the head."""

    parts: tuple[Part, ...] = ("labelled", "weak")
    """The parts of the batch, which together form one set of samples."""
    samples: Literal["passed", "all"] = "passed"
    """Whether unlabelled samples count by the weight from the algorithm, or all equally."""
    rows: Literal["hard", "soft"] = "hard"
    """Whether the row of an unlabelled sample is that of its pseudo-label (hard), or the mean of
    all rows weighted by the weak prediction (soft). The row of a labelled sample is that of its
    label."""
    stop_gradient: Side | None = None
    """The side that the terms do not train."""
    form: TermForm = PUBLISHED
    """How the terms measure entropy."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What weak augmentation does; strong augmentation is RandAugment and Cutout, then weak."""

    pad: int
    """Pixels that are reflected on each side before the crop."""
    flip: bool
    """Whether half of the images are flipped."""


def make_step(
    network: Network,
    optimizer: Optimizer,
    algorithm: Algorithm,
    used: UsedTerms,
    *,
    steps: int,
    augmentation: Augmentation,
    unlabelled_weight: float,
    ema_momentum: float,
    placement: TermPlacement,
) -> Callable[..., tuple[TrainState, Terms]]:
    """The step of one lane: `(state, images, labels, unlabelled, truth, places) -> (state, terms)`.

    `unlabelled` are images, `places` their indices in the pool, and `truth` their labels, which
    only measurements use (-1 where unknown). All randomness comes from the seed and the step of the
    state.

    Raises:
        ValueError: the information terms are placed on views that the algorithm does not use.
    """
    # Without the view, its set of samples would be silently empty.
    missing = set(placement.parts) - {"labelled", *algorithm.uses}
    if any(used) and missing:
        raise ValueError(f"there are no views {sorted(missing)} to compute information terms on.")

    def step(
        state: TrainState,
        images: Array,
        labels: Array,
        unlabelled: Array,
        truth: Array,
        places: Array,
    ) -> tuple[TrainState, Terms]:
        parts = _views(augmentation_key(state), images, unlabelled, algorithm.uses, augmentation)

        def loss(params: Any) -> tuple[Array, tuple[Terms, Any, Any]]:
            # A single forward pass, so that the batch statistics are those of all parts together.
            together = jnp.concatenate(list(parts.values()))
            outputs = network.apply(params, state.rest, together, train=True)
            logits, features = (_split(x, parts) for x in (outputs.logits, outputs.features))
            views = Views(logits["weak"], logits["strong"], places, state.step / steps)
            algorithm_state, pseudo = algorithm.step(state.algorithm_state, views)
            ce = jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits["labelled"], labels)
            )
            information = _information(
                features, outputs.head, labels, logits["weak"], pseudo, placement, used
            )
            of_unlabelled = unlabelled_weight * pseudo.loss + pseudo.penalty
            terms = Terms.of(ce, information, state.knobs, others=of_unlabelled)
            terms = terms._replace(more=_of_pseudo_labels(pseudo, truth))
            return terms.loss, (terms, outputs.rest, algorithm_state)

        # `jax.grad` with aux: the loss is already among the terms.
        gradient, (terms, rest, algorithm_state) = jax.grad(loss, has_aux=True)(state.params)
        state = state._replace(rest=rest, algorithm_state=algorithm_state)
        state = descend(state, gradient, optimizer)
        ema_params = jax.tree.map(
            lambda ema, param: moving(ema, param, ema_momentum), state.ema_params, state.params
        )
        return state._replace(ema_params=ema_params), terms

    return step


def _views(
    key: Array, images: Array, unlabelled: Array, uses: tuple[str, ...], augmentation: Augmentation
) -> dict[str, Array]:
    """The augmented images of each part that the network sees, with a key for each image."""
    # Always four, so that the draws of one view do not depend on which others are used.
    keys = jax.random.split(key, 4)

    def weakly(images: Array, key: Array) -> Array:
        of_images = jax.random.split(key, len(images))
        return crop_and_flip(images, of_images, pad=augmentation.pad, flip=augmentation.flip)

    views = {"labelled": weakly(images, keys[0])}
    if "weak" in uses:
        views["weak"] = weakly(unlabelled, keys[1])
    if "strong" in uses:
        of_images = jax.random.split(keys[2], len(unlabelled))
        views["strong"] = weakly(strong(unlabelled, of_images), keys[3])
    return views


def _split(rows: Array, parts: dict[str, Array]) -> dict[str, Array]:
    """The rows of each part; a part that does not go through the network has none."""
    # Empty rows keep one signature for all algorithms.
    split, start = dict.fromkeys(("weak", "strong"), rows[:0]), 0
    for name, images in parts.items():
        split[name] = rows[start : start + len(images)]
        start += len(images)
    return split


def _of_pseudo_labels(pseudo: Pseudo, truth: Array) -> dict[str, Array]:
    """The losses of the pseudo-labels, and how good these are.

    `coverage` is the mean weight of the samples. `known` counts only the weights of samples whose
    label is known to the measurement, and `correct` only those whose pseudo-label is right as well.
    """
    coverage = correct = known = jnp.zeros(())
    if len(truth) and len(pseudo.weights):
        # Means over all samples: the accuracy is the quotient of their sums over many steps.
        weights = pseudo.weights * (truth >= 0)
        right = weights * (jnp.argmax(pseudo.targets, axis=-1) == truth)
        coverage, correct, known = map(jnp.mean, (pseudo.weights, right, weights))
    return {
        "unlabelled_loss": pseudo.loss,
        "penalty": pseudo.penalty,
        "coverage": coverage,
        "correct": correct,
        "known": known,
    }


def _information(
    features: dict[str, Array],
    head: Array,
    labels: Array,
    weak: Array,
    pseudo: Pseudo,
    placement: TermPlacement,
    used: UsedTerms,
) -> tuple[Array, Array]:
    """Mutual information and entropy difference of the chosen samples and their head rows."""
    if not any(used):
        return jnp.zeros(()), jnp.zeros(())
    q = probabilities(weak)
    target = q if placement.rows == "soft" else one_hot_of(q)
    weights = pseudo.weights if placement.samples == "passed" else jnp.ones_like(pseudo.weights)
    of_unlabelled = target, weights
    of_parts = {
        "labelled": (jax.nn.one_hot(labels, len(head), dtype=q.dtype), jnp.ones(len(labels))),
        "weak": of_unlabelled,
        "strong": of_unlabelled,
    }
    chosen = jnp.concatenate([features[part] for part in placement.parts])
    targets = jnp.concatenate([of_parts[part][0] for part in placement.parts])
    weights = jnp.concatenate([of_parts[part][1] for part in placement.parts])
    # Labels name rows of the head, so that no rows need be averaged.
    if placement.rows == "hard":
        targets = jnp.argmax(targets, axis=-1)
    # The views of one image are no independent samples.
    images = {"labelled": len(weak) + jnp.arange(len(labels))}
    images |= dict.fromkeys(("weak", "strong"), jnp.arange(len(weak)))
    return information_terms(
        chosen,
        head,
        targets,
        used,
        weights=weights,
        groups=jnp.concatenate([images[part] for part in placement.parts]),
        stop_gradient=placement.stop_gradient,
        form=placement.form,
    )
