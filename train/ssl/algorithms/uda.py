"""Unsupervised data augmentation (Xie et al. 2020, arXiv 1904.12848): sharpened soft targets."""

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
    r"""Confident predictions on weak views, sharpened, become the targets of the strong views.

    The loss is `1[max q ≥ threshold] · CE(softmax(weak / temperature), strong)`, with q the
    softmax of the weak logits.
    """

    threshold: float = option(0.8, "confidence before sharpening from which a prediction counts")
    temperature: float = option(0.4, "temperature of the targets; values below 1 sharpen them")

    uses = ("weak", "strong")

    def __post_init__(self):
        in_unit_interval(self, "threshold")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")

    def init(self, num_classes: int, pool: int) -> Any:
        """No state is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        # By the confidence before sharpening, which would raise it.
        weights = (jnp.max(q, axis=-1) >= self.threshold).astype(q.dtype)
        targets = jax.lax.stop_gradient(jax.nn.softmax(views.weak / self.temperature))
        loss = weighted_cross_entropy(views.strong, targets, weights)
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The same threshold for all classes."""
        del state
        return jnp.full(num_classes, self.threshold)
