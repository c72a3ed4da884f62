"""Data parallelism: batches are divided over the devices, and states are replicated on each."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

AXIS = "data"


def data_mesh(batch_size: int, devices: int | None) -> Mesh:
    """A mesh of the first `devices` devices, or of as many as divide the batch.

    Raises:
        ValueError: there are fewer devices, or they do not divide the batch.
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
    """The arrays of a tree, complete on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def cut(array: ArrayLike, mesh: Mesh, *, axis: int = 0) -> Array:
    """An array whose `axis` is divided over the devices, inside or outside a compiled function."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    # A traced array cannot be put anywhere; the compiler is told where its parts belong.
    if isinstance(array, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(array, sharding)
    return jax.device_put(array, sharding)
