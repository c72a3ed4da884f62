"""One optimizer step, and many of them in one compiled call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import mirjax
from mirjax.losses import Side
from train.data.augment import crop_and_flip
from train.engine.state import Network, TrainState
from train.run.lanes import AUGMENT, Knobs, Lane, stream_key


class Terms(NamedTuple):
    """The loss of a batch and what it is made of; terms of weight 0 are not computed."""

    loss: Array
    cross_entropy: Array
    mutual_information: Array
    entropy_difference: Array


def information_loss(
    lanes: Sequence[Lane], stop_gradient: Side | None = None
) -> Callable[..., tuple[Array, Terms]]:
    """CE - mi_weight · MI + ed_weight · |H1 - H2|, on features, head and labels; CE against
    `(1 - smoothing) y + smoothing / num_classes`.

    The weights are knobs of the lanes. A term whose weight is 0 in every lane is not computed.
    """
    uses_mi, uses_ed = (any(getattr(x.knobs, k) for x in lanes) for k in ("mi_weight", "ed_weight"))

    def loss(
        logits: Array, features: Array, head: Array, labels: Array, knobs: Knobs
    ) -> tuple[Array, Terms]:
        hard = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        uniform = -jnp.mean(jax.nn.log_softmax(logits))
        ce = (1 - knobs.smoothing) * hard + knobs.smoothing * uniform
        mi = ed = jnp.zeros_like(ce)
        arrays = features, head, labels
        options: dict[str, Any] = {"stop_gradient": stop_gradient, "method": "auto"}
        if uses_mi:
            mi = -mirjax.losses.mutual_information_loss(*arrays, **options)
        if uses_ed:
            ed = mirjax.losses.entropy_difference_loss(*arrays, **options)
        total = ce - knobs.mi_weight * mi + knobs.ed_weight * ed
        return total, Terms(total, ce, mi, ed)

    return loss


def make_step(
    network: Network,
    transform: optax.GradientTransformation,
    loss: Callable[..., tuple],
    *,
    augment: bool = False,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Terms]]:
    """The step of one lane on one batch: `(state, images, labels) -> (state, terms)`.

    With `augment` the images are cropped and flipped first, by a key of seed, copy and step. Weights
    that the masks of the state hold at zero stay exactly there.
    """

    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Terms]:
        if augment:
            images = crop_and_flip(images, augmentation_key(state))

        def objective(params):
            outputs = network.apply(params, state.rest, images, train=True)
            value, terms = loss(outputs.logits, outputs.features, outputs.head, labels, state.knobs)
            return value, (terms, outputs.rest)

        gradient, (terms, rest) = jax.grad(objective, has_aux=True)(state.params)
        return descend(state._replace(rest=rest), gradient, transform), terms

    return step


def augmentation_key(state: TrainState) -> Array:
    """Of a step's augmentation: of seed and step, and of the copy once it has branched off."""
    copy = jnp.where(state.step < state.branch_step, 0, state.copy)
    return jax.random.fold_in(stream_key(state.seed, copy, AUGMENT), state.step)


def descend(
    state: TrainState, gradient: Any, transform: optax.GradientTransformation
) -> TrainState:
    """The state after an update by the gradient, with the decay and the learning rate of its knobs."""
    gradient = jax.tree.map(
        lambda g, p: g + state.knobs.weight_decay * p if p.ndim > 1 else g, gradient, state.params
    )
    updates, opt_state = transform.update(gradient, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: state.knobs.learning_rate * u, updates)
    params = masked(optax.apply_updates(state.params, updates), state.masks)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def masked(params: Any, masks: Any) -> Any:
    """The parameters with zeros where the masks are False; as they are if there are none."""
    if masks is None:
        return params
    return jax.tree.map(lambda p, mask: jnp.where(mask, p, jnp.zeros_like(p)), params, masks)
