"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263): class thresholds that follow the learning."""

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
    """What the algorithm remembers about the pool."""

    selected: Array
    """`[pool]`: the class that was last predicted confidently for each sample, -1 before that."""


@dataclasses.dataclass(frozen=True)
class FlexMatch:
    r"""FixMatch with the threshold `threshold · M(β(c))` for class c, `M(x) = x / (2 - x)` (eq.
    12).

    `σ(c)` counts the samples of the pool whose last confident prediction (`max q ≥
    threshold`) was class c, and `β(c) = σ(c) / max(max_c σ(c), pool - Σ_c σ(c))` (eq. 11,
    the warm-up). The thresholds of a step come from the samples seen before it.
    """

    threshold: float = option(0.95, "confidence from which a sample counts as learned")

    uses = ("weak", "strong")

    def __post_init__(self):
        in_unit_interval(self, "threshold")

    def init(self, num_classes: int, pool: int) -> State:
        """No sample has been predicted confidently yet."""
        del num_classes
        return State(jnp.full(pool, -1, jnp.int32))

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        confidence, label = jnp.max(q, axis=-1), jnp.argmax(q, axis=-1).astype(jnp.int32)
        # Before the state takes in this step.
        thresholds = self.thresholds(state, q.shape[-1])
        targets, weights = one_hot_of(q), (confidence >= thresholds[label]).astype(q.dtype)
        # A sample may occur twice in a step: a view that is not confident must write nothing, not
        # even the old class.
        nowhere = len(state.selected)
        places = jnp.where(confidence >= self.threshold, views.places, nowhere)
        places = last_of_each(places, nowhere)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        state = State(state.selected.at[places].set(label, mode="drop"))
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: State, num_classes: int) -> Array:
        """The thresholds, 0 for a class that was never predicted confidently."""
        # The index -1 wraps to the last place, which is cut off.
        counts = jnp.zeros(num_classes + 1).at[state.selected].add(1.0)[:num_classes]
        unused = len(state.selected) - jnp.sum(counts)
        beta = counts / jnp.maximum(jnp.max(counts), unused)
        return self.threshold * beta / (2 - beta)


def last_of_each(places: Array, nowhere: int) -> Array:
    """`places` with `nowhere` instead of those that occur again later.

    On a GPU the order of two writes to one place is not defined.
    """
    again = jnp.any(jnp.triu(places[:, None] == places[None, :], 1), axis=1)
    return jnp.where(again, nowhere, places)
