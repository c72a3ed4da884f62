"""One optimizer step, and many of them in one compiled call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import mirjax
from mirjax.losses import Side
from train.augment import crop_and_flip
from train.state import Network, TrainState


class Terms(NamedTuple):
    """The loss of a batch and what it is made of; terms of weight 0 are not computed."""

    loss: Array
    cross_entropy: Array
    mutual_information: Array
    entropy_difference: Array


class Progress(NamedTuple):
    """What a call over several steps tells, for each seed."""

    total: Terms
    """Sum of the terms over the steps of the call."""
    bad_step: Array
    """The first step with a non-finite term, or -1."""
    bad_terms: Terms
    """The terms of that step."""


def information_loss(
    mi_weight: float, ed_weight: float, stop_gradient: Side | None = None
) -> Callable[..., tuple[Array, Terms]]:
    """Cross-entropy - mi_weight · MI + ed_weight · |H1 - H2|, on features, head and labels."""

    def loss(logits: Array, features: Array, head: Array, labels: Array) -> tuple[Array, Terms]:
        ce = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        mi = ed = jnp.zeros_like(ce)
        arrays = features, head, labels
        if mi_weight:
            mi = -mirjax.losses.mutual_information_loss(*arrays, stop_gradient=stop_gradient)
        if ed_weight:
            ed = mirjax.losses.entropy_difference_loss(*arrays, stop_gradient=stop_gradient)
        total = ce - mi_weight * mi + ed_weight * ed
        return total, Terms(total, ce, mi, ed)

    return loss


def make_step(
    network: Network,
    transform: optax.GradientTransformation,
    loss: Callable[..., tuple],
    *,
    augment: bool = False,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Terms]]:
    """The step of one seed on one batch: `(state, images, labels) -> (state, terms)`.

    With `augment` the images are cropped and flipped first, by a key of seed and step.
    """

    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Terms]:
        if augment:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 2), state.step)
            images = crop_and_flip(images, key)

        def objective(params):
            outputs = network.apply(params, state.rest, images, train=True)
            value, terms = loss(outputs.logits, outputs.features, outputs.head, labels)
            return value, (terms, outputs.rest)

        gradient, (terms, rest) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.seed, state.step + 1, params, rest, opt_state), terms

    return step


def make_call(
    step: Callable[[TrainState, Array, Array], tuple[TrainState, Terms]], *, looped: bool
) -> Callable[..., tuple[TrainState, Progress]]:
    """Compiles `(states, images, labels, indices, count) -> (states, progress)` for all seeds.

    `images` and `labels` are the whole split; step i takes the samples `indices[i]` `[seeds, batch]`.
    The first `count` rows of `indices` are used, so that a short call needs no compilation of its
    own. With `looped=False` there is one row and no loop. The states are donated.
    """
    all_seeds = jax.vmap(step)

    def once(states: TrainState, images: Array, labels: Array) -> tuple[TrainState, Progress]:
        new, terms = all_seeds(states, images, labels)
        finite = jnp.all(jnp.isfinite(jnp.stack(terms)), axis=0)
        return new, Progress(terms, jnp.where(finite, -1, new.step), terms)

    def call(states, images, labels, indices, count):
        if not looped:
            return once(states, images[indices[0]], labels[indices[0]])

        def body(i, carry):
            states, so_far = carry
            states, now = once(states, images[indices[i]], labels[indices[i]])
            good = so_far.bad_step < 0
            return states, Progress(
                jax.tree.map(jnp.add, so_far.total, now.total),
                jnp.where(good, now.bad_step, so_far.bad_step),
                jax.tree.map(lambda a, b: jnp.where(good, b, a), so_far.bad_terms, now.bad_terms),
            )

        zeros = Terms(*(jnp.zeros(states.step.shape) for _ in Terms._fields))
        none = Progress(zeros, jnp.full(states.step.shape, -1, states.step.dtype), zeros)
        return jax.lax.fori_loop(0, count, body, (states, none))

    return jax.jit(call, donate_argnums=0)


class BatchOrder:
    """Which samples each step of each seed takes: a permutation an epoch, a function of the seed."""

    def __init__(self, seeds: np.ndarray, samples: int, batch_size: int):
        if samples < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the training split, {samples} samples."
            )
        self._seeds, self._batch = seeds, batch_size
        self.steps_per_epoch = samples // batch_size
        self._epochs: dict[int, np.ndarray] = {}

        def order(seed: Array, epoch: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)
            return jax.random.permutation(key, samples)[: self.steps_per_epoch * batch_size]

        self._order = jax.jit(jax.vmap(order, in_axes=(0, None)))

    def __call__(self, step: int, count: int) -> np.ndarray:
        """Indices `[count, seeds, batch]` of the steps from `step` on."""
        return np.stack([self._of_step(step + i) for i in range(count)])

    def _of_step(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            kept = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            kept[epoch] = np.asarray(self._order(self._seeds, epoch), np.int32)
            self._epochs = kept
        return self._epochs[epoch][:, place * self._batch : (place + 1) * self._batch]
