"""FreeMatch (Wang et al. 2023, arXiv 2205.07246): self-adaptive thresholds, and fairness."""

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

# Added in the logarithm, as published: a class without a selected sample has the share 0 there.
_TINY = 1e-12


class State(NamedTuple):
    """Moving statistics of the weak predictions."""

    confidence: Array
    """τ: the mean largest probability."""
    average: Array
    """p̃, `[num_classes]`: the mean probabilities."""
    histogram: Array
    """h̃, `[num_classes]`: the shares of the predicted classes."""


@dataclasses.dataclass(frozen=True)
class FreeMatch:
    r"""FixMatch with the threshold `τ(c) = p̃(c) / max p̃ · τ` for class c (eq. 5 to 8).

    First, `τ ← λ τ + (1 - λ) mean max q` and `p̃ ← λ p̃ + (1 - λ) mean q` take in the
    weak predictions q of the step, where λ is the momentum of the statistics; both, and h̃,
    start at 1/C. The fairness term (eq. 9 to 11) is `-H(SumNorm(p̃ / h̃), SumNorm(p̄ / h̄))`,
    a negative cross-entropy. In it p̄ and h̄ are the mean and the class histogram of the
    strong predictions that pass, h̃ is the moving histogram of the weak ones, and
    `1 / 0 = 0`. The term is 0 if no sample passes.
    """

    statistics_momentum: float = 0.999
    """λ, the weight of the old statistics."""
    fairness_weight: float = option(0.01, "weight of the fairness term")

    uses = ("weak", "strong")

    def init(self, num_classes: int, pool: int) -> State:
        """The initial statistics, as the class describes them."""
        del pool
        share = jnp.ones(num_classes) / num_classes
        return State(share[0], share, share)

    def step(self, state: State, views: Views) -> tuple[State, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        targets, confidence = one_hot_of(q), jnp.max(q, axis=-1)
        state = State(
            moving(state.confidence, jnp.mean(confidence), self.statistics_momentum),
            moving(state.average, jnp.mean(q, axis=0), self.statistics_momentum),
            moving(state.histogram, jnp.mean(targets, axis=0), self.statistics_momentum),
        )
        # Each sample is compared with the threshold of its predicted class.
        threshold = self.thresholds(state, q.shape[-1])[jnp.argmax(q, axis=-1)]
        weights = (confidence >= threshold).astype(q.dtype)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        penalty = self.fairness_weight * fairness(views.strong, weights, state)
        return state, Pseudo(targets, weights, loss, penalty)

    def thresholds(self, state: State, num_classes: int) -> Array:
        """The thresholds τ(c)."""
        del num_classes
        return state.average / jnp.max(state.average) * state.confidence


def fairness(strong: Array, weights: Array, state: State) -> Array:
    """The fairness term of the strong logits that pass (weight 1)."""
    # With a gradient: the term trains the mean of the strong predictions, but not the histogram.
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
    # The inner `where` keeps the gradient of the branch that is not taken finite.
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def _sum_norm(x: Array) -> Array:
    total = jnp.sum(x)
    return x / jnp.where(total > 0, total, 1.0)
