"""Data-parallel training: batches are cut over the visible devices, states lie on each of them."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh(batch_size: int, devices: int | None) -> Mesh:
    """A mesh of the first `devices` devices, or of as many as divide the batch.

    Raises:
        ValueError: there are not so many, or they do not divide the batch.
    """
    visible = jax.devices()
    if devices is None:
        devices = next(k for k in range(len(visible), 0, -1) if batch_size % k == 0)
    if devices > len(visible):
        raise ValueError(f"devices is {devices}, but JAX sees {len(visible)}: {visible}.")
    if devices < 1 or batch_size % devices:
        raise ValueError(
            f"batch_size {batch_size} cannot be cut into devices = {devices} equal parts."
        )
    return Mesh(np.asarray(visible[:devices]), (AXIS,))


def replicated(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree, whole on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def cut(array: Any, mesh: Mesh, *, axis: int = 0) -> Array:
    """An array whose `axis` is cut over the devices, inside a compiled function or outside."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    if isinstance(array, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(array, sharding)
    return jax.device_put(array, sharding)
