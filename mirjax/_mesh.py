"""Meshes with explicit axes, which `jax.make_mesh` makes unless told otherwise.

On explicit axes the sharding of every array is part of its type, and many operations need that of
their result as an argument. The functions of this library leave it to the compiler instead.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

P = ParamSpec("P")
R = TypeVar("R")


def automatic(function: Callable[P, R], *, keeps_rows: bool = False) -> Callable[P, R]:
    """`function` for arrays on explicit axes as well: inside, the compiler places all results.

    What it returns is on all devices; or, if it `keeps_rows`, where the rows of the first argument
    are. On meshes of other kinds nothing changes.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, structure = jax.tree.flatten((args, kwargs))
        mesh = _explicit_mesh(leaves)
        if mesh is None:
            return function(*args, **kwargs)
        traced = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)}

        def inside(traced: dict[int, Any]) -> R:
            # Concrete arrays get another label without being copied.
            here = [traced[i] if i in traced else relabelled(x) for i, x in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(structure, here)
            return function(*args, **kwargs)

        if not hasattr(jax.sharding, "auto_axes"):
            # An older JAX: the other label is enough for concrete arrays outside of `set_mesh`.
            if not traced and isinstance(mesh, Mesh):
                return inside(traced)
            raise NotImplementedError(
                "this version of JAX cannot take arrays off the explicit axes of a mesh: make the "
                "mesh with axis_types=(jax.sharding.AxisType.Auto,)."
            )
        spec = jax.typeof(leaves[0]).sharding.spec[:-1] if keeps_rows else ()
        place = NamedSharding(mesh, PartitionSpec(*spec))
        axes = _explicit_axes(mesh)
        moved: Any = jax.sharding.auto_axes(inside, axes=axes, out_sharding=place)
        return moved(traced)

    return wrapped


def relabelled(leaf: Any) -> Any:
    """An array on a mesh with explicit axes on the same devices, with automatic ones."""
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    if isinstance(leaf, jax.core.Tracer) or mesh is None or not _explicit_axes(mesh):
        return leaf
    # The placement of a random key may count its inner axis.
    spec = PartitionSpec(*leaf.sharding.spec[: leaf.ndim])
    return jax.device_put(leaf, NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec))


def _explicit_mesh(leaves: Iterable[Any]) -> Mesh | AbstractMesh | None:
    """The mesh of the context or of the first array that has explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if _explicit_axes(mesh):
        return mesh
    for leaf in leaves:
        is_traced = isinstance(leaf, jax.core.Tracer)
        sharding = getattr(jax.typeof(leaf) if is_traced else leaf, "sharding", None)
        mesh = getattr(sharding, "mesh", None)
        if mesh is not None and _explicit_axes(mesh):
            return mesh
    return None


def _explicit_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)
