"""MIR and HDR of order 2 from all pairs of samples of a data set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax import _memory as memory
from mirjax._batch.debiased import DebiasedInterplay, debiased_interplay
from mirjax._batch.gram import normalize_rows, safe_sqrt
from mirjax._batch.interplay import checked_arguments
from mirjax._batch.joint import NormalizedInputs, normalized_inputs
from mirjax._batch.kernels import Interplay
from mirjax._batch.pairs import from_rows, interplay_of_purities, standard_error
from mirjax._checks import ArrayLike, as_groups
from mirjax._dataset.blocks import (
    Blocks,
    block_count,
    block_size,
    class_blocks,
    some_at_a_time,
)
from mirjax._dataset.sharding import row_shards
from mirjax._dataset.sums import Sums, second_moments
from mirjax._linalg.precision import matmul, total
from mirjax._mesh import automatic, relabelled

# The entries of an array of some classes by all classes.
_BY_CLASS = 2**25
# Pairs within groups up to this size are taken away from all pairs one distance at a time.
_SMALL_GROUP = 16


@automatic
def dataset_debiased_interplay(
    features: Float[ArrayLike, "n d"],
    head: Float[ArrayLike, "c d"],
    labels: Int[ArrayLike, " n"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    groups: Int[ArrayLike, " n"] | None = None,
    memory_limit: int | None = None,
) -> DebiasedInterplay:
    r"""`debiased_interplay` from all pairs of samples of a data set: the number to publish.

    The order of the samples does not matter, so the set may be sorted by class. The means over
    pairs are exact. They are taken from class moments `[num_classes, d, d]` where these fit into
    memory and cost less, and otherwise over the rows, some at a time.

    Args:
        features: `[n, d]`, in memory, or sharded by rows over a mesh (equal parts).
        head: `[num_classes, d]`.
        labels: integers `[n]`, sharded like the features.
        weights: non-negative `[n]`; weight 0 drops a sample exactly.
        groups: integers `[n]`; pairs within a group are left out. Large groups need the rows, and
            so do those that are sharded, or not known, as in a function that is compiled.
        memory_limit: how many bytes may be used on each device; by default those that are free.

    Returns:
        `DebiasedInterplay`. The standard error says how far the infinite population may be that the
        set is a sample of. From moments, as with groups, it is that of the plain jackknife, too
        large by up to a factor of 1.4.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    Cost: `O(n d² + num_classes² d²)` by moments, `O(n² d)` by rows. Memory: `O(num_classes d²)` and
    `O(n d)`. Not meant to be differentiated.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> head, labels = jax.random.normal(jax.random.key(0), (5, 8)), jnp.arange(2000) // 400
        >>> features = head[labels] + jax.random.normal(jax.random.key(1), (2000, 8))
        >>> result = mirjax.dataset_debiased_interplay(features, head, labels)
        >>> print(f"{result.mir:.3f} ± {result.standard_error.mir:.3f}")
        0.437 ± 0.009
    """
    shards = row_shards(features)
    features, head, labels, weights = map(
        relabelled, checked_arguments(features, head, labels, weights)
    )
    if features.ndim != 2:
        raise ValueError(f"features must be [n, d] without batch axes, got {features.shape}.")
    groups = as_groups(groups, features)
    largest = _largest_group(groups)
    (samples, width), classes = features.shape, len(head)
    here = samples // shards
    places = shards * block_size(here, classes) * block_count(here, classes)
    by_moments = 4.0 * places * width**2 + 2.0 * classes**2 * width**2
    by_rows = 2.0 * samples**2 * width * (1 if classes < samples else 2)
    # The moments, the same mixed between the classes, and the rows in blocks beside the rows (with
    # groups also those of neighbours in a group).
    itemsize = features.dtype.itemsize
    held = 2 * classes * width**2 + 2 * classes**2
    copies = 3 if groups is None else 6
    needs = itemsize * (held + copies * here * width + 2 * places * width // shards)
    limit = memory.available() if memory_limit is None else memory_limit
    known = groups is None or (largest and shards == 1)
    if known and samples > classes and by_moments < by_rows and needs <= limit:
        return _by_moments(features, head, labels, weights, groups, shards, largest or 1)
    return _by_rows(features, head, labels, weights, groups)


@jax.jit
def _by_rows(
    features: Array, head: Array, labels: Array, weights: Array, groups: Array | None
) -> DebiasedInterplay:
    return debiased_interplay(features, head, labels, weights=weights, groups=groups)


def _largest_group(groups: Array | None) -> int | None:
    """The size of the largest group, if it is known and small."""
    if groups is None or isinstance(groups, jax.core.Tracer) or len(groups.devices()) > 1:
        return None
    largest = int(np.unique(np.asarray(groups), return_counts=True)[1].max(initial=1))
    return largest if largest <= _SMALL_GROUP else None


@functools.partial(jax.jit, static_argnames=("shards", "largest"))
def _by_moments(
    features: Array,
    head: Array,
    labels: Array,
    weights: Array,
    groups: Array | None,
    shards: int,
    largest: int,
) -> DebiasedInterplay:
    inputs = normalized_inputs(features, head, labels, weights)
    share, classes = jnp.square(inputs.root[:, 0]), len(inputs.head_rows)
    blocks = class_blocks(inputs.root * inputs.rows, inputs.labels, classes, shards)
    moments = second_moments(blocks, classes)
    similarity = jnp.square(matmul(inputs.head_rows, inputs.head_rows.T))
    mixed = matmul(similarity, moments.reshape(classes, -1)).reshape(moments.shape)
    # A row in its block has the squared norm `p`, up to rounding that cancels in differences.
    own = jnp.sum(jnp.square(blocks.rows), axis=-1)
    frequency = jnp.trace(moments, axis1=-2, axis2=-1)
    diagonal = jnp.diagonal(similarity)[blocks.classes][:, :, None] * jnp.square(own)
    first = matmul(blocks.rows, jnp.sum(moments, axis=0))
    first = jnp.sum(first * blocks.rows, axis=-1) - jnp.square(own)
    second = own * matmul(similarity, frequency)[blocks.classes][:, :, None] - diagonal
    joint = _squares_in(mixed, blocks) - diagonal
    row_sums = jnp.stack([first.reshape(-1), second.reshape(-1), joint.reshape(-1)], axis=1)
    own = own.reshape(-1)
    row_weight = own * (total(own) - own)
    if groups is not None:
        # Back from the blocks to the samples, from which the pairs within groups are taken away.
        place = blocks.index.reshape(-1)
        added = jnp.concatenate([own[:, None], row_weight[:, None], row_sums], axis=1)
        added = jnp.zeros((len(labels), 5), own.dtype).at[place].set(added, mode="drop")
        own, row_weight, row_sums = added[:, 0], added[:, 1], added[:, 2:]
        within = _within_groups(inputs, own, similarity, groups, largest)
        row_weight, row_sums = row_weight - within[:, 0], row_sums - within[:, 1:]
        # Of a group with nearly all of the weight, rounding leaves nothing of the pairs.
        least = 1e3 * float(jnp.finfo(own.dtype).eps) * own
        row_weight = jnp.where((own > 0) & (row_weight <= least), jnp.nan, row_weight)
    sums = from_rows(own, row_weight, row_sums)
    # Exactly none with one sample, whatever rounding left.
    alone = jnp.sum(share != 0) < 2
    sums = sums._replace(weight=jnp.where(alone, jnp.nan, sums.weight))
    error = standard_error(sums, groups)
    return DebiasedInterplay(*interplay_of_purities(sums.purities()), error)


def _within_groups(
    inputs: NormalizedInputs, share: Array, similarity: Array, groups: Array, largest: int
) -> Float[Array, "n 4"]:
    """The weight and the sums of each sample's pairs with the others of its group."""
    order = jnp.argsort(groups)
    rows, labels, share, groups = (x[order] for x in (inputs.rows, inputs.labels, share, groups))

    # Sorted by group, the others of a small group are a few places away. One distance at a time, so
    # that the neighbours of one are held.
    def add(away: Array, found: Array) -> Array:
        near = jax.tree.map(lambda x: jnp.roll(x, -away, axis=0), (rows, labels, share))
        same = (jnp.roll(groups, -away) == groups) & (jnp.arange(len(order)) + away < len(order))
        pair = jnp.where(same, share * near[2], 0.0)
        first = jnp.square(jnp.sum(rows * near[0], axis=1))
        second = similarity[labels, near[1]]
        parts = jnp.stack([pair, pair * first, pair * second, pair * first * second], axis=1)
        # Each pair counts for both of its samples.
        return found + parts + jnp.roll(parts, away, axis=0)

    found = lax.fori_loop(1, largest, add, jnp.zeros((len(order), 4), rows.dtype))
    return jnp.zeros_like(found).at[order].set(found)


def _squares_in(matrices: Float[Array, "c d d"], blocks: Blocks) -> Float[Array, "s m b"]:
    """`zᵀ A z` of each row with the matrix of its class, for some blocks at a time."""
    shards, count, size, _ = blocks.rows.shape

    def of_some(part: tuple[Array, Array]) -> Array:
        rows, classes = part
        return jnp.sum(matmul(rows, matrices[classes]) * rows, axis=-1)

    values = jnp.moveaxis(lax.map(of_some, some_at_a_time(blocks)), 0, 1)
    return values.reshape(shards, -1, size)[:, :count]


class ErrorOfPairs(NamedTuple):
    """What a second pass over the samples needs for the standard error of the values by pairs.

    Attributes:
        purities: the means over all pairs of different samples.
        head_rows: `[c, d]`, unit rows of the head.
        similarity: `[c, c]`, their squared cosines.
        first: `[d, d]`, the second moment of the unit features over all classes.
        frequency: `[c]`, the share of each class.
        mixed: `[c, d, d]`, second moments of all classes, mixed by `similarity`.
        whole: the weight of all samples.
        weight: of the pairs of different samples, as a share.
        count: the number of samples, for weights that are about equal.
    """

    purities: Float[Array, " 3"]
    head_rows: Float[Array, "c d"]
    similarity: Float[Array, "c c"]
    first: Float[Array, "d d"]
    frequency: Float[Array, " c"]
    mixed: Float[Array, "c d d"]
    whole: Float[Array, ""]
    weight: Float[Array, ""]
    count: Float[Array, ""]

    def scatter(self, features: Array, labels: Array, weights: Array) -> Float[Array, "3 3"]:
        """`Σ c cᵀ` of what the purities change by without each sample; it adds up over batches."""
        rows = normalize_rows(jnp.where((weights == 0)[:, None], 0.0, features))
        head_rows = self.head_rows[labels]
        live = jnp.any(rows != 0, axis=1) & jnp.any(head_rows != 0, axis=1)
        own = jnp.where(live, weights, 0.0) / self.whole
        square = jnp.square(own)
        first = own * jnp.sum(matmul(rows, self.first) * rows, axis=1) - square
        second = own * matmul(self.similarity, self.frequency)[labels] - square
        # By class, so that no matrix is gathered for each row.
        blocks = class_blocks(rows, labels, len(self.mixed))
        joint = jnp.zeros_like(own).at[blocks.index.reshape(-1)]
        joint = joint.set(_squares_in(self.mixed, blocks).reshape(-1), mode="drop")
        row_sums = jnp.stack([first, second, own * joint - square], axis=1)
        row_weight = own * (1 - own)
        change = 2 * (self.purities[None, :] * row_weight[:, None] - row_sums)
        change = change / (self.weight - 2 * row_weight)[:, None]
        change = jnp.where((own > 0)[:, None], change, 0.0)
        return matmul(change.T, change)

    def interplay(self, scatter: Array) -> DebiasedInterplay:
        """The values, and the standard error of the plain jackknife."""
        slopes = jnp.stack(jax.jacfwd(interplay_of_purities)(self.purities))
        variance = jnp.sum(matmul(slopes, scatter) * slopes, axis=1)
        errors = safe_sqrt((self.count - 1) / self.count * jnp.maximum(variance, 0.0))
        return DebiasedInterplay(*interplay_of_purities(self.purities), Interplay(*errors))


@jax.jit
def error_of_pairs(sums: Sums, head: Array) -> ErrorOfPairs:
    """The first part of the error, from statistics by class and a head."""
    head_rows = normalize_rows(head)
    live = jnp.any(head_rows != 0, axis=-1)
    count = jnp.where(live, sums.unit_count, 0.0)
    moments = jnp.where(live[:, None, None], sums.second, 0.0)
    whole = total(count)
    moments, frequency = moments / whole, count / whole
    squares = total(jnp.where(live, sums.unit_squares, 0.0))
    similarity = jnp.square(matmul(head_rows, head_rows.T))
    mixed = matmul(similarity, moments.reshape(len(moments), -1)).reshape(moments.shape)
    return ErrorOfPairs(
        pair_purities(sums, head),
        head_rows,
        similarity,
        jnp.sum(moments, axis=0),
        frequency,
        mixed,
        whole,
        1 - squares / whole / whole,
        jnp.square(whole) / squares,
    )


@jax.jit
def pair_purities(sums: Sums, head: Array) -> Float[Array, " 3"]:
    """The means over all pairs of different samples, from statistics by class and a head."""
    head_rows = normalize_rows(head)
    # As in the entropies, a class whose row of the head is zero drops out.
    live = jnp.any(head_rows != 0, axis=-1) | jnp.isnan(sums.unit_count)
    count = jnp.where(live, sums.unit_count, 0.0)
    squares = total(jnp.where(live, sums.unit_squares, 0.0))
    moments = jnp.where(live[:, None, None], sums.second, 0.0)
    whole = total(count)
    weight = whole * whole - squares
    # Where one sample has nearly all of the weight, rounding leaves nothing of the pairs.
    eps = float(jnp.finfo(head.dtype).eps)
    weight = jnp.where(weight <= 1e3 * eps * whole * whole, jnp.nan, weight)
    flat = moments.reshape(len(moments), -1)
    step = max(1, min(len(flat), _BY_CLASS // len(flat)))

    # Some classes against all of them: no array of classes by classes is large.
    def of_some(start: Array) -> Array:
        index = start + jnp.arange(step)
        rows, own, sums = (
            jnp.take(x, index, axis=0, mode="fill", fill_value=0) for x in (head_rows, count, flat)
        )
        similarity = jnp.square(matmul(rows, head_rows.T))
        second = total(similarity * own[:, None] * count[None, :])
        return jnp.stack([second, total(similarity * matmul(sums, flat.T))])

    by_class = jnp.sum(lax.map(of_some, jnp.arange(0, len(flat), step)), axis=0)
    first = total(jnp.square(jnp.sum(moments, axis=0)))
    return (jnp.concatenate([first[None], by_class]) - squares) / weight
