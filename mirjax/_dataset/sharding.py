"""How rows are split over devices."""

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding

from mirjax._checks import ArrayLike


def row_shards(features: ArrayLike) -> int:
    """The number of equal parts of the rows on devices; 1 inside a transformed function."""
    # A tracer does not know where its values will be.
    sharding = getattr(features, "sharding", None)
    if sharding is None or isinstance(features, jax.core.Tracer):
        return 1
    return features.shape[0] // sharding.shard_shape(features.shape)[0]


def automatic(array: Array) -> Array:
    """The same array on the same devices, on a mesh with automatic axes.

    Meshes from `jax.make_mesh` have explicit axes, with which some operations need the sharding of
    their result as an argument.
    """
    sharding = getattr(array, "sharding", None)
    if isinstance(array, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
        return array
    mesh = sharding.mesh
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return array
    return jax.device_put(array, NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec))
