"""Pseudo-labels (Lee 2013), in the form that semi-supervised benchmarks run."""

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
    r"""Confident predictions become the labels of the same, weakly augmented, images.

    The loss is `1[max q ≥ threshold] · CE(argmax q, q)` times `min(progress / ramp, 1)`,
    with q the softmax of the logits of an image.
    """

    threshold: float = option(0.95, "confidence from which a pseudo-label counts")
    ramp: float = 0.4
    """The share of the steps over which the loss grows to its full weight."""

    uses = ("weak",)

    def __post_init__(self):
        in_unit_interval(self, "threshold", "ramp")

    def init(self, num_classes: int, pool: int) -> Any:
        """No state is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """One step, as the class describes it."""
        q = probabilities(views.weak)
        targets, weights = one_hot_of(q), (jnp.max(q, axis=-1) >= self.threshold).astype(q.dtype)
        # Early pseudo-labels are often wrong, so their loss starts at 0.
        share = jnp.minimum(views.progress / self.ramp, 1.0)
        loss = share * weighted_cross_entropy(views.weak, targets, weights)
        return state, Pseudo(targets, weights, loss, jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The same threshold for all classes."""
        del state
        return jnp.full(num_classes, self.threshold)
