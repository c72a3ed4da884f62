"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): confident predictions label strong views."""

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
class FixMatch:
    r"""Confident predictions on weak views become the labels of the strong views.

    The loss is `1[max q ≥ threshold] · CE(argmax q, strong)` (eq. 4), with q the softmax of the
    weak logits.
    """

    threshold: float = option(0.95, "confidence from which a pseudo-label counts")

    uses = ("weak", "strong")

    def __post_init__(self):
        in_unit_interval(self, "threshold")

    def init(self, num_classes: int, pool: int) -> Any:
        """No state is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        targets, weights = one_hot_of(q), (jnp.max(q, axis=-1) >= self.threshold).astype(q.dtype)
        loss = weighted_cross_entropy(views.strong, targets, weights)
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The same threshold for all classes."""
        del state
        return jnp.full(num_classes, self.threshold)
