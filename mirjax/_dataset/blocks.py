"""Rows sorted by class and cut into blocks, so that sums over a class become matrix products."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from mirjax._batch.classes import sums_by_class

# A row in a block costs d² operations, a further block the memory traffic of a d × d matrix,
# which costs about as much as this many rows.
_BLOCK_OVERHEAD = 32
_SMALLEST, _LARGEST = 2, 4096
# Classes are about balanced if blocks as large as the largest of them have this many places a row,
# or no more of them than blocks for any distribution.
_BALANCED = 1.5
# The numbers in the d × d matrices of so many blocks as are worked on at a time.
_WORK = 2**25


class Blocks(NamedTuple):
    """Blocks of rows, `[shards, blocks, size, d]`; all rows of a block belong to the same class.

    Attributes:
        rows: the rows, zero where a block is not full.
        classes: the class of each block.
        index: for each place in a block the index of its row, or the number of rows if it is empty.
    """

    rows: Float[Array, "s m b d"]
    classes: Int[Array, "s m"]
    index: Int[Array, "s m b"]


def block_size(samples: int, num_classes: int) -> int:
    """A power of two that balances padding (small blocks) and the number of blocks (large ones)."""
    per_class = samples / num_classes
    # Of classes with few samples the padding would take more memory than the samples.
    best = min(math.sqrt(_BLOCK_OVERHEAD * per_class), per_class)
    size = 2 ** round(math.log2(max(best, 1)))
    return min(max(size, _SMALLEST), _LARGEST)


def block_count(samples: int, num_classes: int) -> int:
    """The number of blocks that is enough for any distribution of the labels."""
    size = block_size(samples, num_classes)
    return samples // size + min(num_classes, samples)


def balanced_size(labels: Int[Array, " n"], num_classes: int) -> int | None:
    """The size of blocks of which each class has just one; None unless classes are balanced.

    The labels have to be known, on one device.
    """
    if isinstance(labels, jax.core.Tracer) or len(labels.devices()) > 1:
        return None
    known = np.asarray(labels)
    if not len(known) or known.min() < 0 or known.max() >= num_classes:
        return None
    counts = np.bincount(known, minlength=num_classes)
    size = int(counts.max())
    if size * num_classes > len(known):
        # Coarse steps, or other labels would mostly have another size and compile anew.
        step = max(8, 2 ** (size.bit_length() - 4))
        size = -(-size // step) * step
    otherwise = block_size(len(known), num_classes) * block_count(len(known), num_classes)
    most = max(_BALANCED * len(known), otherwise)
    is_balanced = counts.min() > 0 and size * num_classes <= most
    return size if is_balanced and size <= _LARGEST else None


def place_rows(rows: Float[Array, "n d"], index: Int[Array, "s m b"]) -> Float[Array, "s m b d"]:
    """The rows in their places in the blocks; 0 in empty places."""
    # An empty place has the index `n`, which is out of bounds and so filled with 0.
    shards = rows.reshape(index.shape[0], -1, rows.shape[-1])
    return jax.vmap(lambda r, i: r.at[i].get(mode="fill", fill_value=0))(shards, index)


def sum_of_blocks(
    values: Float[Array, "s m d"], classes: Int[Array, "s m"], num_classes: int
) -> Float[Array, "c d"]:
    """The sum of the values of all blocks of each class, first on each shard."""
    return jnp.sum(jax.vmap(lambda v, c: sums_by_class(v, c, num_classes))(values, classes), axis=0)


def some_at_a_time(blocks: Blocks) -> tuple[Array, Array]:
    """The rows `[k, s, m', b, d]` and classes of the blocks in k parts, for a scan.

    A part has so many blocks that a d × d matrix for each fits; blocks that fill up the last part
    are zero.
    """
    shards, count, size, width = blocks.rows.shape
    step = max(1, min(count, _WORK // (shards * width * width)))
    pad = -count % step
    rows = jnp.pad(blocks.rows, ((0, 0), (0, pad), (0, 0), (0, 0)))
    classes = jnp.pad(blocks.classes, ((0, 0), (0, pad)))
    rows = jnp.moveaxis(rows.reshape(shards, -1, step, size, width), 1, 0)
    return rows, jnp.moveaxis(classes.reshape(shards, -1, step), 1, 0)


def class_blocks(
    rows: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    shards: int = 1,
    size: int | None = None,
) -> Blocks:
    """Cuts each of `shards` equal parts of the rows into blocks; no row leaves its part.

    Rows that should not count must be zero. Imbalanced and absent classes need no more blocks than
    balanced ones: there are at most `n / size` full blocks, and one more block for each class. With
    a `size` from `balanced_size`, block c holds all rows of class c.
    """
    samples = len(rows)
    if samples % shards:
        raise ValueError(f"{samples} rows cannot be cut into {shards} equal shards.")
    labels = labels.reshape(shards, samples // shards)
    classes, index = jax.vmap(lambda y: _one_shard(y, num_classes, size))(labels)
    return Blocks(place_rows(rows, index), classes, index)


def _one_shard(labels: Array, num_classes: int, one_each: int | None) -> tuple[Array, Array]:
    samples = len(labels)
    size = one_each or block_size(samples, num_classes)
    blocks = num_classes if one_each else block_count(samples, num_classes)
    # The rows sorted by class, where those of each class start, and how many blocks they fill.
    by_class = jnp.argsort(labels)
    count = jnp.zeros(num_classes, jnp.int32).at[labels].add(1)
    first_row = jnp.cumsum(count) - count
    needed = -(-count // size)
    first_block = jnp.cumsum(needed) - needed
    # Shapes must not depend on the labels: blocks beyond those that are needed stay empty.
    block = jnp.arange(blocks, dtype=jnp.int32)
    classes = jnp.searchsorted(first_block + needed, block, side="right", method="sort")
    # Blocks that are not needed lie behind the last class; any class will do for zero rows.
    used = classes < num_classes
    classes = jnp.where(used, classes, num_classes - 1).astype(jnp.int32)
    start = (block - first_block[classes]) * size
    offset = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
    filled = used[:, None] & (offset < count[classes][:, None])
    place = jnp.where(filled, first_row[classes][:, None] + offset, 0)
    return classes, jnp.where(filled, by_class[place].astype(jnp.int32), samples)
