"""Where the arrays of a run lie: a mesh of two axes over the devices of all processes.

Networks that are trained at once (lanes) lie on different rows of it, which takes no communication;
the devices of a row divide the batch of their lanes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from train.run import hosts

LANES, DATA = "lanes", "data"

EVERYWHERE = PartitionSpec()
BY_LANE = PartitionSpec(LANES)


def mesh_of(
    networks: int, batch_size: int, *, devices: int | None = None, lane_devices: int | None = None
) -> Mesh:
    """The mesh for so many networks that are trained at once on batches of this size.

    Of the numbers of rows that leave the fewest networks to a device, it has the smallest; a row
    has as many devices as are left for it and divide the batch. Where `devices` is given, exactly
    as many are used. Every process has at least one device in the mesh.

    Args:
        networks: the number of lanes in a call.
        batch_size: what the devices of a row divide; 1 if it cannot be divided.
        devices: how many devices of all processes to use; if None, as many as can be.
        lane_devices: the number of rows; if None, it is chosen.

    Raises:
        ValueError: there are fewer devices, or networks and batches cannot be divided like this.
    """
    visible = jax.devices()
    processes = sorted({device.process_index for device in visible})
    if devices is not None and devices > len(visible):
        raise ValueError(f"devices is {devices}, but JAX sees {len(visible)}: {visible}.")
    if devices is not None and devices < len(processes):
        raise ValueError(
            f"devices is {devices}, but there are {len(processes)} processes, each of which needs "
            "one: give more, or start fewer processes."
        )
    most = len(visible) if devices is None else devices
    if lane_devices is not None and lane_devices > most:
        raise ValueError(f"lane_devices is {lane_devices}, but there are {most} devices to use.")

    def columns(rows: int) -> int:
        return next(k for k in range(most // rows, 0, -1) if batch_size % k == 0)

    shapes = [
        (rows, columns(rows))
        for rows in ([lane_devices] if lane_devices else range(1, most + 1))
        # A process without a device would have nothing to do, and could not take part.
        if rows * columns(rows) >= len(processes)
    ]
    if devices is not None:
        shapes = [(rows, cut) for rows, cut in shapes if rows * cut == devices]
    # Rows beyond the number of networks hold copies, which no more than fill what is left idle.
    fitting = [shape for shape in shapes if shape[0] <= networks] or (
        [] if devices is not None and processes == [0] else shapes
    )
    if not fitting:
        given = f" of {lane_devices} rows" if lane_devices else ""
        raise ValueError(
            f"batch_size {batch_size} cannot be cut into devices = {devices or most} equal parts, "
            f"nor into fewer for {networks} network{'s' * (networks != 1)} at once{given}."
        )
    rows, cut = min(fitting, key=lambda shape: (-(-networks // shape[0]), shape[0]))
    chosen = _spread(visible, rows * cut)
    return Mesh(np.asarray(chosen).reshape(rows, cut), (LANES, DATA))


def _spread(visible: Sequence[jax.Device], count: int) -> list[jax.Device]:
    """So many of the devices, as evenly of each process as possible, in the order of processes."""
    by_process: dict[int, list[jax.Device]] = {}
    for device in visible:
        by_process.setdefault(device.process_index, []).append(device)
    turns = [
        device
        for turn in range(max(map(len, by_process.values())))
        for _, of_process in sorted(by_process.items())
        for device in of_process[turn : turn + 1]
    ]
    # A row then has its devices in one process where it can, and its sums stay in the host.
    return sorted(turns[:count], key=lambda device: (device.process_index, device.id))


def described(mesh: Mesh, networks: int) -> str | None:
    """How the mesh divides the work, in a line; None if there is nothing to divide it over."""
    visible = len(jax.devices())
    if visible == 1:
        return None
    rows, cut = mesh.shape[LANES], mesh.shape[DATA]
    line = f"{mesh.size} of {visible} devices"
    if hosts.several():
        line += f" in {jax.process_count()} processes"
    line += f": {networks} network{'s' * (networks != 1)} over {rows}"
    if networks % rows:
        line += f" (unevenly: at most {-(-networks // rows)} each)"
    return line + f", each batch over {cut}"


def padded(items: Sequence[Any], mesh: Mesh) -> list[Any]:
    """The items, one for each lane, with the last repeated until the rows of the mesh are even."""
    return [*items, *[items[-1]] * (-len(items) % mesh.shape[LANES])]


def padded_states(states: Any, mesh: Mesh) -> Any:
    """Stacked states with the last repeated, as `padded` does."""
    lanes = jax.tree.leaves(states)[0].shape[0]
    if lanes % mesh.shape[LANES] == 0:
        return states
    places = np.asarray(padded(range(lanes), mesh))
    return jax.tree.map(lambda x: x[places], states)


def place(tree: Any, mesh: Mesh, spec: PartitionSpec = EVERYWHERE) -> Any:
    """The arrays of a tree on the mesh; each process has all of them, and gives its devices' parts.

    Arrays that lie there already stay where they are.
    """
    sharding = NamedSharding(mesh, spec)

    def put(x: ArrayLike) -> Array:
        if isinstance(x, Array) and x.sharding == sharding:
            return x
        if not hosts.several():
            return jax.device_put(x, sharding)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


def constrain(x: Array, mesh: Mesh | None, *axes: str | None) -> Array:
    """Tells the compiler which axis of an array the devices of a row divide: that named `DATA`.

    For use within `over_lanes`, where the lanes are divided by hand already.
    """
    if mesh is None or mesh.shape[DATA] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def by_hand(spec: PartitionSpec) -> PartitionSpec:
    """The part of a partition that `over_lanes` divides; the compiler divides batches."""
    return PartitionSpec(*(axis if axis == LANES else None for axis in spec))


def over_lanes(function: Any, mesh: Mesh | None, arguments: Sequence[Any], results: Any) -> Any:
    """The function of stacked lanes, run by each row of the mesh for its own lanes.

    Divided by hand: the compiler would join the lanes of a convolution into one, and exchange what
    need not be exchanged.

    Args:
        function: takes and returns arrays of lanes, and what all lanes share.
        mesh: the mesh; if it has a single device or is None, the function is returned as it is.
        arguments: for each argument, the partition of its arrays over `LANES`.
        results: the partition of the results.
    """
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(arguments),
        out_specs=results,
        axis_names={LANES},
        # The loop of a step starts from zeros, which are the same for all lanes, unlike its sums.
        check_vma=False,
    )


def owned(mesh: Mesh | None, lanes: int) -> list[int]:
    """The lanes, of so many, that this process measures: those of the rows that begin in it."""
    if not hosts.several() or mesh is None:
        return list(range(lanes))
    rows = mesh.shape[LANES]
    each = -(-lanes // rows)
    first = [device.process_index for device in mesh.devices[:, 0]]
    return [i for i in range(lanes) if first[i // each] == jax.process_index()]


def local_lane(tree: Any, place: int) -> Any:
    """One of the lanes that this process owns, of arrays divided by lanes, on one device of it.

    Always on the same one, since each device has its own compiled programs.
    """

    def take(x: Any) -> Any:
        if not isinstance(x, Array) or len(x.sharding.device_set) == 1:
            return x[place]
        for shard in x.addressable_shards:
            start = shard.index[0].start or 0
            if start <= place < start + shard.data.shape[0]:
                part = shard.data[place - start]
                return jax.device_put(part, jax.local_devices()[0])
        raise AssertionError(f"lane {place} lies in another process")

    return jax.tree.map(take, tree)


def local_values(x: Array, lanes: Sequence[int]) -> np.ndarray:
    """The values of the lanes that this process owns, of an array divided by lanes."""
    if not hosts.several():
        return np.asarray(x)[list(lanes)]
    # Each part once, though the devices of a row have the same.
    parts = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
    values = {start + i: row for start, part in parts.items() for i, row in enumerate(part)}
    return np.asarray([values[lane] for lane in lanes])


def local_step(states: Any) -> int:
    """The step of stacked states, which is the same for all lanes."""
    return int(np.asarray(states.step.addressable_shards[0].data)[0])


def rows_here(mesh: Mesh, axis: str, size: int) -> np.ndarray:
    """The indices, along an axis of arrays that an axis of the mesh divides, that lie here.

    They are those of lanes or of the samples of a batch, on the devices of this process.
    """
    where = NamedSharding(mesh, PartitionSpec(axis)).addressable_devices_indices_map((size,))
    return np.unique([i for index in where.values() for i in np.arange(size)[index or ...]])


def from_owners(values: dict[int, Any]) -> list[Any]:
    """What the owners of all lanes have found for them, in the order of lanes."""
    together: dict[int, Any] = {}
    # JSON has no keys but strings.
    for of_process in hosts.gathered([[lane, value] for lane, value in values.items()]):
        together |= dict(of_process)
    return [together[lane] for lane in sorted(together)]


def whole(tree: Any) -> Any:
    """The arrays of a tree, complete in each process."""
    if not hosts.several():
        return tree

    def complete(x: Any) -> Any:
        # Arrays of this process alone are those of the others too.
        if not isinstance(x, Array) or x.is_fully_addressable:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(complete, tree)
