"""Pseudo-labels (Lee 2013), as the semi-supervised benchmarks run them."""

import dataclasses
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    r"""Confident predictions are labels of the same, weakly augmented, images.

    With q the softmax of an image's logits, `1[max q ≥ threshold] · CE(argmax q, q)`, times
    `min(progress / ramp, 1)`.
    """

    threshold: float = option(0.95, "confidence from which on a pseudo-label counts")
    ramp: float = 0.4
    """Share of the steps over which the loss grows to its weight."""

    uses = ("weak",)

    def __post_init__(self):
        in_unit_interval(self, "threshold", "ramp")

    def init(self, num_classes: int, pool: int) -> Any:
        """Nothing is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """See the class."""
        q = probabilities(views.weak)
        targets, weights = one_hot_of(q), (jnp.max(q, axis=-1) >= self.threshold).astype(q.dtype)
        share = jnp.minimum(views.progress / self.ramp, 1.0)
        loss = share * weighted_cross_entropy(views.weak, targets, weights)
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The same for all."""
        del state
        return jnp.full(num_classes, self.threshold)
