"""Optimizers: Optax chains whose learning rate and weight decay are the knobs of a lane."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from train.run.lanes import Knobs

Optimizer = Callable[[Knobs], optax.GradientTransformation]
"""The transformation for the knobs of a lane, which may be traced. Its state does not depend on
them."""


def sgd_with_cosine(*, steps: int, momentum: float) -> Optimizer:
    """SGD with momentum, whose learning rate falls from its peak to 0 along half a cosine."""
    return _sgd(optax.cosine_decay_schedule(1.0, steps), momentum)


def sgd_for_few_labels(*, steps: int, momentum: float) -> Optimizer:
    """SGD with Nesterov momentum and the schedule of FixMatch, `cos(7 π k / 16 K)` at step k."""

    def schedule(step: ArrayLike) -> Array:
        return jnp.cos(7 * math.pi * step / (16 * steps))

    return _sgd(schedule, momentum, nesterov=True)


def adamw_with_warmup(*, warmup_steps: int) -> Optimizer:
    """AdamW on all parameters, with betas 0.9 and 0.98; the learning rate rises to a constant."""

    def transformation(knobs: Knobs) -> optax.GradientTransformation:
        # From 1 / warmup_steps on: with a rate of 0 the first step would be wasted.
        def rate(step: ArrayLike) -> Array:
            return knobs.learning_rate * jnp.minimum((step + 1) / warmup_steps, 1.0)

        return optax.chain(
            optax.scale_by_adam(b1=0.9, b2=0.98),
            optax.add_decayed_weights(knobs.weight_decay),
            optax.scale_by_learning_rate(rate),
        )

    return transformation


def _sgd(schedule: optax.Schedule, momentum: float, *, nesterov: bool = False) -> Optimizer:
    def kernels(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def transformation(knobs: Knobs) -> optax.GradientTransformation:
        return optax.chain(
            # Biases and batch norm, whose parameters have one axis, do not decay.
            optax.add_decayed_weights(knobs.weight_decay, mask=kernels),
            optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
            # The schedule is relative to its peak, which may be traced.
            optax.scale(knobs.learning_rate),
        )

    return transformation
