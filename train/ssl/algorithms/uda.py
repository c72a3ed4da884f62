"""Unsupervised data augmentation (Xie et al. 2020, arXiv 1904.12848)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from train.ssl.algorithms.base import (
    Pseudo,
    Views,
    in_unit_interval,
    option,
    probabilities,
    weighted_cross_entropy,
)


@dataclasses.dataclass(frozen=True)
class UDA:
    r"""Confident predictions on weak views, sharpened, are targets of the strong ones.

    With q the softmax of the weak logits: `1[max q ≥ threshold] · CE(softmax(weak / temperature), strong)`.
    """

    threshold: float = option(
        0.8, "confidence, before sharpening, from which on a prediction counts"
    )
    temperature: float = option(0.4, "temperature of the targets, which sharpens them below 1")

    uses = ("weak", "strong")

    def __post_init__(self):
        in_unit_interval(self, "threshold")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")

    def init(self, num_classes: int, pool: int) -> Any:
        """Nothing is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """See the class."""
        q = probabilities(views.weak)
        weights = (jnp.max(q, axis=-1) >= self.threshold).astype(q.dtype)
        targets = jax.lax.stop_gradient(jax.nn.softmax(views.weak / self.temperature))
        loss = weighted_cross_entropy(views.strong, targets, weights)
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The same for all."""
        del state
        return jnp.full(num_classes, self.threshold)
