"""SoftMatch (Chen et al. 2023, arXiv 2301.10921): weights instead of a threshold."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from train.ssl.algorithms.base import (
    Pseudo,
    Views,
    moving,
    one_hot_of,
    probabilities,
    weighted_cross_entropy,
)


class State(NamedTuple):
    """Moving statistics of the weak predictions."""

    mean: Array
    """Of the (aligned) confidence."""
    variance: Array
    """Of the same."""
    average: Array
    """`[num_classes]`: of the predictions."""


@dataclasses.dataclass(frozen=True)
class SoftMatch:
    r"""FixMatch with the weight `exp(-min(c - μ, 0)² / (2 σ² / sigmas²))` of a confidence c (eq. 6).

    c is that of the uniformly aligned prediction `SumNorm(q · (1/C) / p̃)`, p̃ the moving average of q
    (eq. 10); the labels are those of q itself. μ and σ² are moving averages of mean and (unbiased)
    variance of c, and all of them take in the step's samples first. σ starts at 1, μ at 1/C, and p̃ at
    what the first step gives.
    """

    statistics_momentum: float = 0.999
    """Weight of the old statistics."""
    sigmas: float = 2.0
    """How many standard deviations below the mean count as one."""

    uses = ("weak", "strong")

    def init(self, num_classes: int, pool: int) -> State:
        """See the class."""
        del pool
        share = jnp.ones(num_classes) / num_classes
        return State(share[0], jnp.ones(()), share)

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """See the class."""
        q = probabilities(views.weak)
        batch = jnp.mean(q, axis=0)
        average = jnp.where(
            views.progress == 0, batch, moving(state.average, batch, self.statistics_momentum)
        )
        tiny = jnp.finfo(q.dtype).tiny
        aligned = q / jnp.maximum(average, tiny)[None]
        aligned = aligned / jnp.sum(aligned, axis=-1, keepdims=True)
        confidence = jnp.max(aligned, axis=-1)
        mean = moving(state.mean, jnp.mean(confidence), self.statistics_momentum)
        # One sample alone has no spread.
        spread = jnp.var(confidence, ddof=min(1, len(confidence) - 1))
        variance = moving(state.variance, spread, self.statistics_momentum)
        below = jnp.minimum(confidence - mean, 0.0)
        weights = jnp.exp(-jnp.square(below) * self.sigmas**2 / (2 * jnp.maximum(variance, tiny)))
        targets = one_hot_of(q)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        return State(mean, variance, average), Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: State, num_classes: int) -> Array:
        """There is none; the confidence of weight 1 stands in for it."""
        return jnp.full(num_classes, state.mean)
