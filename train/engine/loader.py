"""Loaders: the batches of each step, from arrays on the device or from records on disk."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.data.batches import stream
from train.data.types import RecordSplit, Split
from train.engine.sharding import DATA, EVERYWHERE, LANES, place, rows_here
from train.run.lanes import ORDER, Lane, host_seed, stream_key

Batches = Callable[[int, int], tuple[Any, Any]]
"""`(step, count) -> (sources, indices)`: arrays, and a tree of indices `[count, lanes, ...]` that
says what each of `count` steps from `step` on takes from them."""


class Loader(Protocol):
    """Gives lanes their batches. Sources and indices are trees of arrays for its `take`."""

    streamed: bool
    """Whether each step has new sources, so that a call can take only one step."""
    divided: bool
    """Whether the devices of a row divide a batch."""
    sources_spec: PartitionSpec
    """How the sources lie on the mesh."""
    indices_spec: PartitionSpec
    """How the indices of several steps lie on the mesh."""

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """The batches of these lanes, to be requested in the order of the steps."""
        ...

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """Sources and indices `[1, lanes, ...]` of one step, right in shapes and types alone."""
        ...

    def take(self, sources: Any, indices: Any) -> tuple[Array, ...]:
        """The batch of each lane, `[lanes, ...]`, by the indices `[lanes, ...]` of one step."""
        ...


def loader_of(split: Split | RecordSplit, batch_size: int, mesh: Mesh) -> "Loader":
    """Labelled batches of a training split, from the device if it is in memory, else from disk."""
    if isinstance(split, RecordSplit):
        return StreamLoader(split, batch_size, mesh)
    return DeviceLoader(split, batch_size, mesh)


def images_and_labels(sources: Any, indices: Any) -> tuple[Array, ...]:
    """The images and labels at these indices."""
    images, labels = sources
    return images[indices], labels[indices]


class DeviceLoader:
    """Labelled batches of a split that lies on each device as a whole."""

    streamed, divided = False, True
    sources_spec, indices_spec = EVERYWHERE, PartitionSpec(None, LANES, DATA)

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        self._samples, self._batch_size = len(split), batch_size
        arrays = jnp.asarray(split.images), jnp.asarray(split.labels)
        self._sources = place(arrays, mesh)

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """Batches in the order of `BatchOrder`."""
        order = BatchOrder(lanes, self._samples, self._batch_size)
        return lambda step, count: (self._sources, order(step, count))

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """The arrays themselves."""
        return self._sources, np.zeros((1, len(lanes), self._batch_size), np.int32)

    take = staticmethod(images_and_labels)


class StreamLoader:
    """Labelled batches that are read from disk, one step at a time.

    Each process reads what its own devices take of each batch. The order is that of the whole
    batches, however many processes there are.
    """

    streamed, divided = True, True
    sources_spec, indices_spec = PartitionSpec(LANES, DATA), EVERYWHERE

    def __init__(self, split: RecordSplit, batch_size: int, mesh: Mesh):
        self._split, self._batch_size, self._mesh = split, batch_size, mesh
        self._rows = rows_here(mesh, DATA, batch_size)

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """Batches of one shuffled stream for each seed, and for each copy that a lane follows."""
        streams: dict[tuple[int, int], Iterator] = {}
        sharding = NamedSharding(self._mesh, self.sources_spec)
        # The lanes of which a device of this process takes a part.
        here = rows_here(self._mesh, LANES, len(lanes))

        def draw(key: tuple[int, int], step: int) -> dict[str, np.ndarray]:
            # Opened at the step that first asks for it: that of a resumed run or of a branch.
            if key not in streams:
                seed, copy = key
                seed = host_seed(seed, copy) if copy else seed
                streams[key] = iter(
                    stream(
                        self._split,
                        batch_size=self._batch_size,
                        seed=seed,
                        start_step=step,
                        rows=self._rows,
                    )
                )
            return next(streams[key])

        def batches(step: int, count: int) -> tuple[Any, Any]:
            keys = [(lanes[i].seed, copy) for i, copy in enumerate(copies_at(lanes, step))]
            # Lanes that follow the same stream read it once.
            drawn = {key: draw(key, step) for key in dict.fromkeys(keys[i] for i in here)}

            def stacked(name: str) -> Array:
                example = next(iter(drawn.values()))[name]

                def part(index: Any) -> np.ndarray:
                    of_batch = np.arange(self._batch_size)[index[1]]
                    rows = np.searchsorted(self._rows, of_batch)
                    return np.stack([drawn[key][name][rows] for key in keys[index[0]]])

                whole = (len(lanes), self._batch_size, *example.shape[1:])
                return jax.make_array_from_callback(whole, sharding, part)

            return (stacked("image"), stacked("label")), np.zeros((count, 0), np.int32)

        return batches

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """Zeros, since nothing is to be read for an example."""
        shape = (len(lanes), self._batch_size)
        images = np.zeros((*shape, *self._split.image_shape), np.uint8)
        return (images, np.zeros(shape, np.int32)), np.zeros((1, 0), np.int32)

    @staticmethod
    def take(sources: Any, indices: Any) -> tuple[Array, ...]:
        """The batches as they were read; there is nothing to choose."""
        del indices
        return sources


class BatchOrder:
    """The samples that each step of each lane takes: one permutation per epoch.

    A permutation depends on seed, copy and epoch alone, so that a run can resume in its middle. The
    last samples of an epoch, which fill no batch, are left out.
    """

    def __init__(self, lanes: Sequence[Lane], samples: int, batch_size: int):
        if samples < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the training split, {samples} samples."
            )
        self._lanes, self._batch = lanes, batch_size
        self._seeds = np.asarray([lane.seed for lane in lanes], np.int32)
        self.steps_per_epoch = samples // batch_size
        # Permutations by epoch and by the copies that the lanes draw as.
        self._epochs: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

        def order(seed: Array, copy: Array, epoch: Array) -> Array:
            key = jax.random.fold_in(stream_key(seed, copy, ORDER), epoch)
            return jax.random.permutation(key, samples)[: self.steps_per_epoch * batch_size]

        self._order = jax.jit(jax.vmap(order, in_axes=(0, 0, None)))

    def __call__(self, step: int, count: int) -> np.ndarray:
        """Indices `[count, lanes, batch]` of the steps from `step` on."""
        return np.stack([self._of_step(step + i) for i in range(count)])

    def _of_step(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps_per_epoch)
        wanted = epoch, copies_at(self._lanes, step)
        if wanted not in self._epochs:
            # The previous epoch is kept, since a call may begin in it.
            kept = {k: order for k, order in self._epochs.items() if k[0] >= epoch - 1}
            copies = np.asarray(wanted[1], np.int32)
            kept[wanted] = np.asarray(self._order(self._seeds, copies, epoch), np.int32)
            self._epochs = kept
        return self._epochs[wanted][:, place * self._batch : (place + 1) * self._batch]


def copies_at(lanes: Sequence[Lane], step: int) -> tuple[int, ...]:
    """The copy whose draws each lane takes at a step: copy 0 until the lane branches off."""
    return tuple(lane.copy if step >= lane.branch_step else 0 for lane in lanes)
