"""The straight line between two networks: its points, their batch statistics, the barrier on it."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.data import stream
from train.settings import Settings
from train.state import Network, TrainState


def interpolate(first: TrainState, second: TrainState, points: Sequence[float]) -> TrainState:
    """The networks `(1 - ω) first + ω second`, stacked; weights and batch statistics alike.

    At ω = 0 and 1 they are the two networks, bit for bit.
    """
    along = jnp.asarray(points)

    def line(a: Array, b: Array) -> Array:
        w = along.reshape(-1, *[1] * a.ndim).astype(a.dtype)
        return jnp.where(w == 0, a, jnp.where(w == 1, b, (1 - w) * a + w * b))

    params, rest = (
        jax.tree.map(line, getattr(first, k), getattr(second, k)) for k in ("params", "rest")
    )
    bare = first._replace(params=None, rest=None, opt_state=None, masks=None)
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(points), *jnp.shape(x))), bare)
    return repeated._replace(params=params, rest=rest)


class Statistics:
    """Gives networks the batch statistics that their own weights have: means over training batches.

    Each batch norm's statistics are those of whole batches passing through the layers before it as in
    training, averaged over `batches` of `eval_batch` samples (seed 0, no augmentation).
    """

    def __init__(self, network: Network, split: Any, settings: Settings, *, batches: int):
        # Training moves the statistics r to m r + (1 - m) batch: from r = 0 that is (1 - m) batch.
        share = 1 - settings.batch_norm_momentum
        size = min(settings.eval_batch, len(split))
        drawn = itertools.islice(stream(split, batch_size=size, seed=0), batches)
        self._images = [batch["image"] for batch in drawn]

        def one(total: Any, params: Any, zero: Any, images: Array) -> Any:
            found = network.apply(params, zero, images, train=True).rest
            return jax.tree.map(lambda t, f: t + f / (share * batches), total, found)

        self._add = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))

    def __call__(self, states: TrainState) -> TrainState:
        """The stacked states with their statistics recomputed."""
        zeros = total = jax.tree.map(jnp.zeros_like, states.rest)
        for images in self._images:
            total = self._add(total, states.params, zeros, images)
        return states._replace(rest=total)


def barrier(points: Sequence[float], losses: Sequence[float]) -> float:
    """The largest height of the loss above the straight line between its ends (at least 0)."""
    places, heights = np.asarray(points, float), np.asarray(losses, float)
    line = np.interp(places, places[[0, -1]], heights[[0, -1]])
    return float(np.max(heights - line))
