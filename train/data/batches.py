"""Batches of a split: an endless shuffled stream for training, and a single pass for evaluation."""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from train.data.types import RecordSplit, Split, require

# Threads that read batches, and how many batches they read ahead. grain's own defaults (500 and 16)
# are meant for single records: 500 batches of 256 images of 224 x 224 would take 19 GB.
READ_THREADS = 4
READ_AHEAD = 8


def batch_indices(
    size: int, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[np.ndarray]:
    """Endless batches of indices, from one fresh permutation of `range(size)` after another.

    A batch may reach from one epoch into the next, so every epoch holds each index exactly once.
    The batches from step k on are the same whether the iteration starts at 0 or at k.

    Args:
      size: the number of examples.
      batch_size: indices per batch.
      seed: the seed of the permutations, at least 0.
      start_step: the number of batches to skip.

    Returns:
      An iterator of int64 `[batch_size]`.
    """
    _check_batches(size, batch_size)
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed and start_step must be at least 0, got {seed} and {start_step}")

    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(size)

    def generate() -> Iterator[np.ndarray]:
        # An epoch is a function of its number, so that skipped batches need not be drawn.
        epoch, offset = divmod(start_step * batch_size, size)
        pending = permutation(epoch)[offset:]
        while True:
            while len(pending) < batch_size:
                epoch += 1
                pending = np.concatenate([pending, permutation(epoch)])
            yield pending[:batch_size]
            pending = pending[batch_size:]

    return generate()


def stream(
    split: Split | RecordSplit,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches, reproducible from any step.

    Supervised training takes them of records on disk; splits in memory have an order of their own
    there, see `train.engine.loader.BatchOrder`, which leaves out the end of an epoch.

    A split in memory is gathered by `batch_indices`; records are read ahead by grain. Both shuffle
    each epoch anew, let a batch reach into the next epoch, and give the same batches from step k
    on whether they start at 0 or at k. Their orders differ.

    Args:
      split: what to read.
      batch_size: examples per batch.
      seed: the seed of the order, at least 0 and below 2^32.
      start_step: the number of batches to skip, which costs nothing.
      rows: which samples of each batch to read, in this order; if None, all of them. The order of
        the data does not depend on it, so that several processes can share a batch.

    Returns:
      An iterator of `image`, uint8 `[batch_size, h, w, c]`, and `label`, int32 `[batch_size]`; with
      `rows`, as many as these.
    """
    rows = np.arange(batch_size) if rows is None else rows
    if isinstance(split, Split):
        indices = batch_indices(len(split), batch_size, seed=seed, start_step=start_step)
        chosen = (i[rows] for i in indices)
        return ({"image": split.images[i], "label": split.labels[i]} for i in chosen)
    _check_batches(len(split), batch_size)
    if not 0 <= seed < 2**32 or start_step < 0:
        raise ValueError(f"needs 0 <= seed < 2^32 and start_step >= 0, got {seed}, {start_step}")
    grain = require("grain", "a data set that does not fit in memory")
    dataset = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True).map(lambda indices: indices[rows])
    return _read_ahead(grain, split, dataset, start_step)


def batches(
    split: Split | RecordSplit, batch_size: int, *, rows: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Goes through a split once, always in the same order, in batches of one shape.

    Args:
      split: what to read. A streamed split is read in a fixed random order, and so is a split in
        memory whose labels are sorted: batches of a single class would not represent the whole.
      batch_size: examples per batch; the last batch is filled up with zeros.
      rows: which rows of each batch to give, in ascending order; if None, all of them.

    Returns:
      An iterator of `image`, uint8 `[batch_size, h, w, c]`, `label`, int32 `[batch_size]`, and
      `weight`, float32 `[batch_size]`: 1 for an example, 0 for a filler. With `rows`, as many as
      these.
    """
    _check_batches(len(split), batch_size)
    rows = np.arange(batch_size) if rows is None else rows

    def some(indices: np.ndarray) -> np.ndarray:
        # At least one, which `_fill` drops again: nothing can be read of no records.
        chosen = indices[rows[rows < len(indices)]]
        return chosen if len(chosen) else indices[:1]

    if isinstance(split, Split):
        order = np.arange(len(split))
        if np.all(np.diff(split.labels) >= 0):
            order = np.random.default_rng(0).permutation(order)
        chunks = (order[i : i + batch_size] for i in range(0, len(split), batch_size))
        chosen = map(some, chunks)
        parts = ({"image": split.images[i], "label": split.labels[i]} for i in chosen)
    else:
        grain = require("grain", "a data set that does not fit in memory")
        dataset = grain.MapDataset.range(len(split)).seed(0).shuffle()
        # Every example counts in an evaluation, so the last batch may be short.
        dataset = dataset.batch(batch_size, drop_remainder=False).map(some)
        parts = _read_ahead(grain, split, dataset, 0)
    starts = range(0, len(split), batch_size)
    there = (rows < len(split) - start for start in starts)
    return (_fill(part, weight) for part, weight in zip(parts, there, strict=True))


def _fill(batch: dict[str, np.ndarray], there: np.ndarray) -> dict[str, np.ndarray]:
    # One shape for all batches, so that what is compiled for one serves them all.
    count = np.count_nonzero(there)
    filled = {
        key: np.concatenate(
            [value[:count], np.zeros((len(there) - count, *value.shape[1:]), value.dtype)]
        )
        for key, value in batch.items()
    }
    return filled | {"weight": there.astype(np.float32)}


def _read_ahead(
    grain: ModuleType, split: RecordSplit, dataset: Any, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Reads the batches of indices in `dataset` in threads, from step `start_step` on.

    Grain handles indices, not records, because sources read a batch of records twice as fast as
    one record after another.
    """
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    read = dataset.map(split.take).to_iter_dataset(options)
    # Closed even if the caller stops early: its threads would keep on reading.
    with contextlib.closing(iter(read)) as iterator:
        iterator.set_state({"next_index": start_step})
        yield from iterator


def _check_batches(size: int, batch_size: int) -> None:
    if size < 1 or batch_size < 1:
        raise ValueError(f"needs at least one example and a batch of one, got {size}, {batch_size}")
