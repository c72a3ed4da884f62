"""Rows that are spread over devices."""

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding

from mirjax._checks import ArrayLike


def row_shards(features: ArrayLike) -> int:
    """Into how many equal parts the rows are cut over devices; 1 inside a transformed function."""
    sharding = getattr(features, "sharding", None)
    if sharding is None or isinstance(features, jax.core.Tracer):
        return 1
    return features.shape[0] // sharding.shard_shape(features.shape)[0]


def automatic(array: Array) -> Array:
    """The same array on the same devices, on a mesh whose axes the compiler may use as it likes.

    Meshes of `jax.make_mesh` have explicit axes: each operation then asks where its result shall lie.
    """
    sharding = getattr(array, "sharding", None)
    if isinstance(array, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
        return array
    mesh = sharding.mesh
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return array
    return jax.device_put(array, NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec))
