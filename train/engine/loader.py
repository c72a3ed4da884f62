"""Where the batches of each step come from: arrays on the device, or records streamed from disk."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.data.batches import stream
from train.data.types import RecordSplit, Split
from train.engine.sharding import replicated
from train.run.lanes import ORDER, Lane, host_seed, stream_key

Batches = Callable[[int, int], tuple[Any, Any]]
"""`(step, count) -> (sources, indices)`: arrays, and what each of `count` steps from `step` on takes of
them, as a tree of `[count, lanes, ...]`."""


class Loader(Protocol):
    """The batches of all lanes."""

    streamed: bool
    """Whether each step brings arrays of its own, so that a call takes one step."""

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """The batches of these lanes, asked for in the order of the steps."""
        ...

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """Sources, and indices `[1, lanes, ...]` of one step, of the shapes and types that come."""
        ...

    def take(self, sources: Any, indices: Any) -> tuple[Array, ...]:
        """What the step of each lane is given, `[lanes, ...]`, by indices without the first axis."""
        ...


def loader_of(split: Split | RecordSplit, batch_size: int, mesh: Mesh) -> "Loader":
    """Labelled batches of a training split: from the device if it is in memory, else from disk."""
    if isinstance(split, RecordSplit):
        return StreamLoader(split, batch_size)
    return DeviceLoader(split, batch_size, mesh)


def images_and_labels(sources: Any, indices: Any) -> tuple[Array, ...]:
    """Images and labels of these indices."""
    images, labels = sources
    return images[indices], labels[indices]


class DeviceLoader:
    """Images and labels, all of them on the device."""

    streamed = False

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        self._samples, self._batch_size = len(split), batch_size
        arrays = jnp.asarray(split.images), jnp.asarray(split.labels)
        self._sources = replicated(arrays, mesh)

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """A permutation an epoch, see `BatchOrder`."""
        order = BatchOrder(lanes, self._samples, self._batch_size)
        return lambda step, count: (self._sources, order(step, count))

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """The arrays themselves."""
        return self._sources, np.zeros((1, len(lanes), self._batch_size), np.int32)

    take = staticmethod(images_and_labels)


class StreamLoader:
    """Images and labels of one step at a time."""

    streamed = True

    def __init__(self, split: RecordSplit, batch_size: int):
        self._split, self._batch_size = split, batch_size

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """One shuffled stream for each lane, and for each copy that it draws as."""
        streams: dict[tuple[int, int], Iterator] = {}

        def draw(place: int, copy: int, step: int) -> dict[str, np.ndarray]:
            # Opened where it is first asked for: at the step of a resumed run or of a branch.
            if (place, copy) not in streams:
                seed = lanes[place].seed
                seed = host_seed(seed, copy) if copy else seed
                streams[place, copy] = iter(
                    stream(self._split, batch_size=self._batch_size, seed=seed, start_step=step)
                )
            return next(streams[place, copy])

        def batches(step: int, count: int) -> tuple[Any, Any]:
            del count
            copies = enumerate(copies_at(lanes, step))
            parts = [draw(place, copy, step) for place, copy in copies]
            sources = tuple(np.concatenate([part[k] for part in parts]) for k in ("image", "label"))
            return sources, self._indices(len(lanes))

        return batches

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """Arrays of zeros."""
        samples = len(lanes) * self._batch_size
        images = np.zeros((samples, *self._split.image_shape), np.uint8)
        return (images, np.zeros(samples, np.int32)), self._indices(len(lanes))

    take = staticmethod(images_and_labels)

    def _indices(self, lanes: int) -> np.ndarray:
        return np.arange(lanes * self._batch_size, dtype=np.int32).reshape(1, lanes, -1)


class BatchOrder:
    """Which samples each step of each lane takes: a permutation an epoch.

    It is a function of seed, copy and epoch alone, so that a run resumes in its middle. The last
    samples of an epoch that fill no batch are left out.
    """

    def __init__(self, lanes: Sequence[Lane], samples: int, batch_size: int):
        if samples < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the training split, {samples} samples."
            )
        self._lanes, self._batch = lanes, batch_size
        self._seeds = np.asarray([lane.seed for lane in lanes], np.int32)
        self.steps_per_epoch = samples // batch_size
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
            # The epoch before is kept: a call may begin in it.
            kept = {k: order for k, order in self._epochs.items() if k[0] >= epoch - 1}
            copies = np.asarray(wanted[1], np.int32)
            kept[wanted] = np.asarray(self._order(self._seeds, copies, epoch), np.int32)
            self._epochs = kept
        return self._epochs[wanted][:, place * self._batch : (place + 1) * self._batch]


def copies_at(lanes: Sequence[Lane], step: int) -> tuple[int, ...]:
    """The copy whose draws each lane takes at a step: copy 0 before it branches off."""
    return tuple(lane.copy if step >= lane.branch_step else 0 for lane in lanes)
