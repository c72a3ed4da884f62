"""One optimizer step, and many of them in one compiled call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

import mirjax
from mirjax.losses import Side
from train.augment import crop_and_flip
from train.lanes import AUGMENT, Knobs, Lane, stream_key
from train.parallel import cut
from train.state import Network, TrainState


class Terms(NamedTuple):
    """The loss of a batch and what it is made of; terms of weight 0 are not computed."""

    loss: Array
    cross_entropy: Array
    mutual_information: Array
    entropy_difference: Array


class Progress(NamedTuple):
    """What a call over several steps tells, for each lane."""

    total: Any
    """Sum of the terms over the steps of the call."""
    bad_step: Array
    """The first step with a non-finite term, or -1."""
    bad_terms: Any
    """The terms of that step."""


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


def make_call(
    step: Callable[..., tuple[TrainState, Any]],
    take: Callable[[Any, Any], tuple[Array, ...]],
    *,
    looped: bool,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Progress]]:
    """Compiles `(states, sources, indices, count) -> (states, progress)` for all lanes.

    Step i is given what `take(sources, indices[i])` takes, one batch a lane; see `train.feeds`. The
    first `count` rows of `indices` are used, so that a short call needs no compilation of its own. With
    `looped=False` there is one row and no loop. The states are donated. Batches are cut over the
    devices of the mesh.
    """
    # Compiled as one with what calls it; by itself so that the loop below traces it once.
    all_lanes = jax.jit(jax.vmap(step))

    def once(states: TrainState, sources: Any, indices: Any) -> tuple[TrainState, Progress]:
        batch = take(sources, indices)
        if mesh is not None and mesh.size > 1:
            batch = tuple(cut(x, mesh, axis=1) for x in batch)
        new, terms = all_lanes(states, *batch)
        finite = jnp.all(jnp.isfinite(jnp.stack(terms)), axis=0)
        return new, Progress(terms, jnp.where(finite, -1, new.step), terms)

    def call(
        states: TrainState, sources: Any, indices: Any, count: int
    ) -> tuple[TrainState, Progress]:
        def at(i: Any) -> Any:
            return jax.tree.map(lambda x: x[i], indices)

        if not looped:
            return once(states, sources, at(0))

        def body(i: Array, carry: tuple[TrainState, Progress]) -> tuple[TrainState, Progress]:
            states, so_far = carry
            states, now = once(states, sources, at(i))
            good = so_far.bad_step < 0
            return states, Progress(
                jax.tree.map(jnp.add, so_far.total, now.total),
                jnp.where(good, now.bad_step, so_far.bad_step),
                jax.tree.map(lambda a, b: jnp.where(good, b, a), so_far.bad_terms, now.bad_terms),
            )

        _, progress = jax.eval_shape(once, states, sources, at(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), progress.total)
        none = Progress(zeros, jnp.full(states.step.shape, -1, states.step.dtype), zeros)
        return jax.lax.fori_loop(0, count, body, (states, none))

    return jax.jit(call, donate_argnums=0)
