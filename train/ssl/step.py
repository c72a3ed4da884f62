"""One step on labelled and unlabelled images: augmentation, one forward pass, losses, update, average."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import mirjax
from mirjax.losses import Side
from train.data.augment import crop_and_flip
from train.data.randaugment import strong
from train.engine.state import Network, TrainState
from train.engine.step import augmentation_key, descend
from train.run.lanes import Lane
from train.ssl.algorithms import Algorithm, Pseudo, Views
from train.ssl.algorithms.base import one_hot_of, probabilities

Part = Literal["labelled", "weak", "strong"]


class Terms(NamedTuple):
    """The loss of a step, what it is made of, and what the pseudo-labels are worth."""

    loss: Array
    cross_entropy: Array
    """Of the labelled samples."""
    unlabelled_loss: Array
    penalty: Array
    mutual_information: Array
    entropy_difference: Array
    coverage: Array
    """Mean weight of the unlabelled samples."""
    correct: Array
    """Mean weight of those whose pseudo-label is right, of all whose label is known."""
    known: Array
    """Mean weight of the samples whose label is known to the measurement."""


@dataclasses.dataclass(frozen=True)
class Information:
    """Which samples the information terms are computed on, and against which rows of the head."""

    parts: tuple[Part, ...] = ("labelled", "weak")
    """One set of samples is made of these."""
    samples: Literal["passed", "all"] = "passed"
    """Unlabelled samples by the weight that the algorithm gives them, or all alike."""
    rows: Literal["hard", "soft"] = "hard"
    """An unlabelled sample's row of the head is that of its pseudo-label, or the mean of all rows by the
    weak prediction. A labelled one's is that of its label."""
    stop_gradient: Side | None = None
    """The side that the terms do not train."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What weak augmentation does; the strong one is RandAugment and Cutout, and then the weak one."""

    pad: int
    """Reflected pixels on each side before the crop."""
    flip: bool


def make_step(
    network: Network,
    transform: optax.GradientTransformation,
    algorithm: Algorithm,
    lanes: Sequence[Lane],
    *,
    steps: int,
    augmentation: Augmentation,
    unlabelled_weight: float = 1.0,
    average_momentum: float = 0.999,
    information: Information,
) -> Callable[..., tuple[TrainState, Terms]]:
    """The step of one lane: `(state, images, labels, unlabelled, truth, places) -> (state, terms)`.

    `unlabelled` are images, `places` their indices in the pool, and `truth` their labels for the
    measurement alone (-1 where unknown). All randomness is of the state's seed and step. Information
    terms whose weight is 0 in every lane are not computed.
    """
    uses = any(x.knobs.mi_weight for x in lanes), any(x.knobs.ed_weight for x in lanes)
    missing = set(information.parts) - {"labelled", *algorithm.uses}
    if any(uses) and missing:
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

        def objective(params: Any) -> tuple[Array, tuple[Terms, Any, Any]]:
            outputs = network.apply(
                params, state.rest, jnp.concatenate(list(parts.values())), train=True
            )
            logits, features = (_cut(x, parts) for x in (outputs.logits, outputs.features))
            views = Views(logits["weak"], logits["strong"], places, state.step / steps)
            extra, pseudo = algorithm.step(state.extra, views)
            ce = jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits["labelled"], labels)
            )
            mi, ed = _information(
                features, outputs.head, labels, logits["weak"], pseudo, information, uses
            )
            total = ce + unlabelled_weight * pseudo.loss + pseudo.penalty
            total += state.knobs.ed_weight * ed - state.knobs.mi_weight * mi
            terms = Terms(total, ce, pseudo.loss, pseudo.penalty, mi, ed, *_worth(pseudo, truth))
            return total, (terms, outputs.rest, extra)

        gradient, (terms, rest, extra) = jax.grad(objective, has_aux=True)(state.params)
        state = descend(state._replace(rest=rest, extra=extra), gradient, transform)
        average = jax.tree.map(
            lambda a, p: average_momentum * a + (1 - average_momentum) * p,
            state.average,
            state.params,
        )
        return state._replace(average=average), terms

    return step


def _views(
    key: Array, images: Array, unlabelled: Array, uses: tuple[str, ...], augmentation: Augmentation
) -> dict[str, Array]:
    """The augmented images of each part that goes through the network, by a key an image and view."""
    keys = jax.random.split(key, 4)

    def weakly(images: Array, key: Array) -> Array:
        own = jax.random.split(key, len(images))
        return crop_and_flip(images, own, pad=augmentation.pad, flip=augmentation.flip)

    found = {"labelled": weakly(images, keys[0])}
    if "weak" in uses:
        found["weak"] = weakly(unlabelled, keys[1])
    if "strong" in uses:
        own = jax.random.split(keys[2], len(unlabelled))
        found["strong"] = weakly(strong(unlabelled, own), keys[3])
    return found


def _cut(rows: Array, parts: dict[str, Array]) -> dict[str, Array]:
    """The rows of each part; none for a part that does not go through the network."""
    found, start = dict.fromkeys(("weak", "strong"), rows[:0]), 0
    for name, images in parts.items():
        found[name] = rows[start : start + len(images)]
        start += len(images)
    return found


def _worth(pseudo: Pseudo, truth: Array) -> tuple[Array, Array, Array]:
    """Coverage, and of it what is right and what is known."""
    if not len(truth) or not len(pseudo.weights):
        return jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    known = pseudo.weights * (truth >= 0)
    right = known * (jnp.argmax(pseudo.targets, axis=-1) == truth)
    return jnp.mean(pseudo.weights), jnp.mean(right), jnp.mean(known)


def _information(
    features: dict[str, Array],
    head: Array,
    labels: Array,
    weak: Array,
    pseudo: Pseudo,
    information: Information,
    uses: tuple[bool, bool],
) -> tuple[Array, Array]:
    """Mutual information and entropy difference of the chosen samples and their rows of the head."""
    zero = jnp.zeros(())
    if not any(uses):
        return zero, zero
    q = probabilities(weak)
    target = q if information.rows == "soft" else one_hot_of(q)
    weights = pseudo.weights if information.samples == "passed" else jnp.ones_like(pseudo.weights)
    of_unlabelled = target, weights
    known = {
        "labelled": (jax.nn.one_hot(labels, len(head), dtype=q.dtype), jnp.ones(len(labels))),
        "weak": of_unlabelled,
        "strong": of_unlabelled,
    }
    chosen = jnp.concatenate([features[part] for part in information.parts])
    targets = jnp.concatenate([known[part][0] for part in information.parts])
    weights = jnp.concatenate([known[part][1] for part in information.parts])
    return _terms_of(chosen, head, targets, weights, information, uses)


def _terms_of(
    features: Array,
    head: Array,
    targets: Array,
    weights: Array,
    information: Information,
    uses: tuple[bool, bool],
) -> tuple[Array, Array]:
    zero, side = jnp.zeros(()), information.stop_gradient
    if information.rows == "hard":
        arrays = features, head, jnp.argmax(targets, axis=-1)
        options: dict[str, Any] = {"weights": weights, "stop_gradient": side, "method": "auto"}
        mi = -mirjax.losses.mutual_information_loss(*arrays, **options) if uses[0] else zero
        ed = mirjax.losses.entropy_difference_loss(*arrays, **options) if uses[1] else zero
        return mi, ed
    features = jax.lax.stop_gradient(features) if side == "features" else features
    head = jax.lax.stop_gradient(head) if side == "head" else head
    rows = jnp.matmul(targets, head, precision="highest")
    found = mirjax.feature_interplay(features, rows, weights=weights, method="auto")
    return found.mutual_information, jnp.abs(found.entropy1 - found.entropy2)
