"""The additive statistics of a labelled data set: weights, sums and second moments by class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.classes import sums_by_class
from mirjax._batch.gram import normalize_rows
from mirjax._dataset.blocks import (
    Blocks,
    class_blocks,
    place_rows,
    some_at_a_time,
    sum_of_blocks,
)
from mirjax._linalg.precision import matmul


class Sums(NamedTuple):
    """Statistics that add up over samples, up to a correction of `scatter` and `spread`.

    Attributes:
        count: weight of each class.
        sums: weighted sum of the rows of each class, less an origin that is kept elsewhere.
        scatter: within-class scatter of the raw rows, `Σ w (z - μ_y)(z - μ_y)ᵀ`.
        spread: the trace of the part of `scatter` that belongs to each class.
        unit_count: weight of each class without zero rows, which have no direction.
        unit_squares: the sum of the squares of the weights in `unit_count`.
        second: `Σ w ẑ ẑᵀ` over each class, with `ẑ = z / ‖z‖`; or over all classes, with g = 1.
    """

    count: Float[Array, " c"]
    sums: Float[Array, "c d"]
    scatter: Float[Array, "d d"]
    spread: Float[Array, " c"]
    unit_count: Float[Array, " c"]
    unit_squares: Float[Array, " c"]
    second: Float[Array, "g d d"]


def valid_rows(
    features: Array, labels: Array, weights: Array, classes: int
) -> tuple[Array, Array, Array]:
    """The arguments with 0 in place of invalid labels and dropped rows, NaN for invalid weights."""
    # A NaN weight makes the statistics NaN; rows of weight 0 may hold anything.
    valid = (labels >= 0) & (labels < classes)
    weights = jnp.where((valid & (weights >= 0)) | (weights == 0), weights, jnp.nan)
    labels = jnp.where(valid, labels, 0)
    return jnp.where((weights == 0)[:, None], 0.0, features), labels, weights


def sums_of(
    features: Array,
    labels: Array,
    weights: Array,
    classes: int,
    shards: int,
    *,
    origin: Array | None = None,
    second: bool = True,
) -> Sums:
    """The statistics of some rows, without compensation for rounding.

    The rows lie in `shards` equal parts. Without `second` there is one second moment for all
    classes.
    """
    features, labels, weights = valid_rows(features, labels, weights, classes)
    rows = normalize_rows(features)
    directed = jnp.where(jnp.any(rows != 0, axis=-1) | jnp.isnan(weights), weights, 0.0)
    if origin is not None:
        features = features - origin[None, :]
    per_row = jnp.stack([weights, directed, jnp.square(directed)], axis=1)
    # The weight goes into the rows as a square root, since second moments multiply them twice.
    root = jnp.sqrt(weights)[:, None]
    if second:
        blocks = class_blocks(root * rows, labels, classes, shards)
        counts = place_rows(per_row, blocks.index)
        placed = place_rows(features, blocks.index)
        # Summed within each block as a product with the weights, then over the blocks of a class.
        sums = matmul(jnp.swapaxes(counts[..., :1], -1, -2), placed)[:, :, 0]
        sums = sum_of_blocks(sums, blocks.classes, classes)
        counts = sum_of_blocks(jnp.sum(counts, axis=2), blocks.classes, classes)
        moments = second_moments(blocks, classes)
    else:
        columns = jnp.concatenate([per_row, weights[:, None] * features], axis=1)
        sums = _by_class(columns, labels, classes, shards)
        counts, sums = sums[:, :3], sums[:, 3:]
        moments = matmul((root * rows).T, root * rows)[None]
    count, unit_count, unit_squares = counts.T
    # Centred before they are squared: a large common mean would cancel digits of the scatter.
    means = sums / jnp.where(count == 0, 1.0, count)[:, None]
    centred = root * (features - means[labels])
    spread = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    spread = _by_class(spread, labels, classes, shards)[:, 0]
    scatter = matmul(centred.T, centred)
    return Sums(count, sums, scatter, spread, unit_count, unit_squares, moments)


def _by_class(values: Array, labels: Array, classes: int, shards: int) -> Array:
    """The sum of the rows of each class, first within each part of the rows."""
    parts = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), (values, labels))
    return jnp.sum(jax.vmap(lambda v, y: sums_by_class(v, y, classes))(*parts), axis=0)


def second_moments(blocks: Blocks, num_classes: int) -> Float[Array, "c d d"]:
    """`Σ z zᵀ` over the rows of each class."""
    shards, width = blocks.rows.shape[0], blocks.rows.shape[-1]

    def add(carry: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        rows, classes = part
        products = matmul(jnp.swapaxes(rows, -1, -2), rows)
        added = jax.vmap(lambda sums, c, new: sums.at[c].add(new))(carry, classes, products)
        return added, None

    # Made from the rows: inside `jax.shard_map` the sums vary over devices as they do.
    start = jnp.zeros_like(blocks.rows, shape=(shards, num_classes, width, width))
    return jnp.sum(lax.scan(add, start, some_at_a_time(blocks))[0], axis=0)
