"""FreeMatch (Wang et al. 2023, arXiv 2205.07246): thresholds that adapt themselves, and fairness."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from train.ssl.algorithms.base import (
    Pseudo,
    Views,
    moving,
    one_hot_of,
    option,
    probabilities,
    weighted_cross_entropy,
)

# In the logarithm, as published: a class that no selected sample is given has share 0 there.
_TINY = 1e-12


class State(NamedTuple):
    """Moving statistics of the weak predictions."""

    confidence: Array
    """τ: of the largest probability."""
    average: Array
    """p̃, `[num_classes]`: of the probabilities."""
    histogram: Array
    """h̃, `[num_classes]`: of the shares of predicted classes."""


@dataclasses.dataclass(frozen=True)
class FreeMatch:
    r"""FixMatch with the threshold `τ(c) = p̃(c) / max p̃ · τ` for class c (eq. 5 to 8).

    `τ ← λ τ + (1 - λ) mean max q` and `p̃ ← λ p̃ + (1 - λ) mean q` with the step's weak predictions q
    first, λ the statistics momentum; both, and h̃, start at 1/C. The fairness term (eq. 9 to 11) is
    `-H(SumNorm(p̃ / h̃), SumNorm(p̄ / h̄))`, a negative cross-entropy, with p̄ and h̄ the mean and the
    class histogram of the strong predictions that pass, h̃ the moving histogram of the weak ones, and
    `1 / 0 = 0`. It is 0 where no sample passes.
    """

    statistics_momentum: float = 0.999
    """λ, weight of the old statistics."""
    fairness_weight: float = option(0.01, "weight of the fairness term")

    uses = ("weak", "strong")

    def init(self, num_classes: int, pool: int) -> State:
        """See the class."""
        del pool
        share = jnp.ones(num_classes) / num_classes
        return State(share[0], share, share)

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """See the class."""
        q = probabilities(views.weak)
        targets, confidence = one_hot_of(q), jnp.max(q, axis=-1)
        state = State(
            moving(state.confidence, jnp.mean(confidence), self.statistics_momentum),
            moving(state.average, jnp.mean(q, axis=0), self.statistics_momentum),
            moving(state.histogram, jnp.mean(targets, axis=0), self.statistics_momentum),
        )
        own = self.thresholds(state, q.shape[-1])[jnp.argmax(q, axis=-1)]
        weights = (confidence >= own).astype(q.dtype)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        penalty = self.fairness_weight * fairness(views.strong, weights, state)
        return state, Pseudo(targets, weights, loss, penalty)

    def thresholds(self, state: State, num_classes: int) -> Array:
        """τ(c)."""
        del num_classes
        return state.average / jnp.max(state.average) * state.confidence


def fairness(strong: Array, weights: Array, state: State) -> Array:
    """The fairness term of the strong logits that pass (weight 1)."""
    q = jax.nn.softmax(strong)
    passed = jnp.sum(weights)
    count = jnp.maximum(passed, 1.0)
    weights = weights[:, None]
    mean = jnp.sum(weights * q, axis=0) / count
    histogram = jnp.sum(weights * jax.lax.stop_gradient(one_hot_of(q)), axis=0) / count
    reference = _sum_norm(state.average * _inverse(state.histogram))
    current = _sum_norm(mean * _inverse(histogram))
    term = jnp.sum(reference * jnp.log(current + _TINY))
    return jnp.where(passed > 0, term, 0.0)


def _inverse(x: Array) -> Array:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def _sum_norm(x: Array) -> Array:
    total = jnp.sum(x)
    return x / jnp.where(total > 0, total, 1.0)
