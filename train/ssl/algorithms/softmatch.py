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
    """μ: the mean of the aligned confidence."""
    variance: Array
    """σ²: the variance of the aligned confidence."""
    average: Array
    """p̃, `[num_classes]`: the mean prediction."""


@dataclasses.dataclass(frozen=True)
class SoftMatch:
    r"""FixMatch with the weight `exp(-min(c - μ, 0)² / (2 σ² / sigmas²))` of a confidence c
    (eq. 6).

    c is the confidence of the uniformly aligned prediction `SumNorm(q · (1/C) / p̃)`, where
    p̃ is the moving average of q (eq. 10); the labels are those of q itself. μ and σ² are
    moving averages of the mean and the (unbiased) variance of c. All of them take in the
    samples of the step first. σ starts at 1, μ at 1/C, and p̃ at the mean prediction of the
    first step.
    """

    statistics_momentum: float = 0.999
    """The weight of the old statistics."""
    sigmas: float = 2.0
    """The number of standard deviations below the mean that count as one."""

    uses = ("weak", "strong")

    def init(self, num_classes: int, pool: int) -> State:
        """The initial statistics, as the class describes them."""
        del pool
        share = jnp.ones(num_classes) / num_classes
        return State(share[0], jnp.ones(()), share)

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        batch = jnp.mean(q, axis=0)
        # The first step has no average yet and starts it.
        average = jnp.where(
            views.progress == 0, batch, moving(state.average, batch, self.statistics_momentum)
        )
        tiny = jnp.finfo(q.dtype).tiny
        aligned = q / jnp.maximum(average, tiny)[None]
        aligned = aligned / jnp.sum(aligned, axis=-1, keepdims=True)
        confidence = jnp.max(aligned, axis=-1)
        mean = moving(state.mean, jnp.mean(confidence), self.statistics_momentum)
        # A single sample has no spread, and no unbiased variance.
        spread = jnp.var(confidence, ddof=min(1, len(confidence) - 1))
        variance = moving(state.variance, spread, self.statistics_momentum)
        # Above the mean the weight is 1.
        below = jnp.minimum(confidence - mean, 0.0)
        weights = jnp.exp(-jnp.square(below) * self.sigmas**2 / (2 * jnp.maximum(variance, tiny)))
        targets = one_hot_of(q)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        return State(mean, variance, average), Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: State, num_classes: int) -> Array:
        """The confidence from which the weight is 1; there is no threshold."""
        return jnp.full(num_classes, state.mean)
