"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263): a threshold a class, by how well it is learned."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from train.ssl.algorithms.base import (
    Pseudo,
    Views,
    in_unit_interval,
    one_hot_of,
    option,
    probabilities,
    weighted_cross_entropy,
)


class State(NamedTuple):
    """What is known of the pool."""

    selected: Array
    """`[pool]`: the class that each sample was last confidently given, -1 before that."""


@dataclasses.dataclass(frozen=True)
class FlexMatch:
    r"""FixMatch with the threshold `threshold · M(β(c))` for class c, `M(x) = x / (2 - x)` (eq. 12).

    `σ(c)` counts the samples of the pool that were last confidently (`max q ≥ threshold`) given class
    c, and `β(c) = σ(c) / max(max_c σ(c), pool - Σ_c σ(c))` (eq. 11, the warm-up). The thresholds of a
    step are those of the samples seen before it.
    """

    threshold: float = option(0.95, "confidence from which on a sample counts as learned")

    uses = ("weak", "strong")

    def __post_init__(self):
        in_unit_interval(self, "threshold")

    def init(self, num_classes: int, pool: int) -> State:
        """No sample was confident yet."""
        del num_classes
        return State(jnp.full(pool, -1, jnp.int32))

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """See the class."""
        q = probabilities(views.weak)
        confidence, label = jnp.max(q, axis=-1), jnp.argmax(q, axis=-1).astype(jnp.int32)
        thresholds = self.thresholds(state, q.shape[-1])
        targets, weights = one_hot_of(q), (confidence >= thresholds[label]).astype(q.dtype)
        # A sample may come twice in a step: what is not confident must not write its old class back.
        nowhere = len(state.selected)
        places = jnp.where(confidence >= self.threshold, views.places, nowhere)
        places = last_of_each(places, nowhere)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        state = State(state.selected.at[places].set(label, mode="drop"))
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: State, num_classes: int) -> Array:
        """0 for a class that no sample was given yet."""
        # -1 wraps to the last place, which is cut off.
        counts = jnp.zeros(num_classes + 1).at[state.selected].add(1.0)[:num_classes]
        unused = len(state.selected) - jnp.sum(counts)
        beta = counts / jnp.maximum(jnp.max(counts), unused)
        return self.threshold * beta / (2 - beta)


def last_of_each(places: Array, nowhere: int) -> Array:
    """`places` with `nowhere` where the same one comes again later.

    The order of two writes to one place is not defined on a GPU.
    """
    again = jnp.any(jnp.triu(places[:, None] == places[None, :], 1), axis=1)
    return jnp.where(again, nowhere, places)
