"""Supervised training on the labelled samples alone: the baseline of every comparison."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from train.ssl.algorithms.base import Pseudo, Views


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross-entropy of the labelled samples; the unlabelled ones are not read."""

    uses = ()

    def init(self, num_classes: int, pool: int) -> Any:
        """No state is kept."""
        del num_classes, pool
        return ()

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """Nothing is learned from unlabelled samples."""
        # The views are empty; all results are too, or zero.
        weights = jnp.zeros(len(views.weak))
        return state, Pseudo(jnp.zeros_like(views.weak), weights, jnp.zeros(()), jnp.zeros(()))

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """No pseudo-label counts."""
        del state
        return jnp.full(num_classes, jnp.inf)
