"""Sums over classes, for any number of them: no array of all samples by all classes is large."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._linalg.precision import matmul

# Up to so many classes an array of classes by classes is small.
SQUARE = 2**12
# Up to so many entries a one-hot matrix is small, and a product with it is the fastest sum.
_ONE_HOT = 2**22
# The entries of a tile of scores.
_TILE = 2**22


def sums_by_class(
    values: Float[Array, "n m"], labels: Int[Array, " n"], num_classes: int
) -> Float[Array, "c m"]:
    """The sum of the rows of each class; a NaN makes its column NaN in all classes.

    A scatter-add of a million float32 numbers, one after the other, is off by 1e-3. Both forms here
    are correct up to rounding.
    """
    if len(labels) * num_classes <= _ONE_HOT:
        return matmul(jax.nn.one_hot(labels, num_classes, dtype=values.dtype).T, values)
    order = jnp.argsort(labels)
    ordered, is_first = labels[order], starts_of(labels[order])

    # Sums that start anew at each class, in a tree: pairs, pairs of pairs, and so on.
    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        total = jnp.where(right[1][:, None], right[0], left[0] + right[0])
        return total, left[1] | right[1]

    running, _ = lax.associative_scan(add, (values[order], is_first))
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    last = jnp.searchsorted(ordered, classes, side="right", method="sort") - 1
    occurs = (last >= 0) & (ordered[last] == classes)
    sums = jnp.where(occurs[:, None], running[last], 0.0)
    is_broken = ~jnp.isfinite(jnp.sum(values, axis=0))
    return jnp.where(is_broken[None, :], jnp.nan, sums)


def weight_by_class(
    weights: Float[Array, " n"], labels: Int[Array, " n"], num_classes: int
) -> Float[Array, " c"]:
    """The sum of the weights of the samples of each class."""
    if len(labels) * num_classes <= _ONE_HOT:
        members = jax.nn.one_hot(labels, num_classes, dtype=weights.dtype)
        return jnp.sum(members * weights[:, None], axis=0)
    return sums_by_class(weights[:, None], labels, num_classes)[:, 0]


def means_by_class(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    weights: Float[Array, " n"],
) -> tuple[Float[Array, "c d"], Float[Array, " c"]]:
    """Weighted mean of each class (0 for a class without weight) and the weight of each class."""
    if len(labels) * num_classes <= _ONE_HOT:
        members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype) * weights[:, None]
        sums, weight = matmul(members.T, features), jnp.sum(members, axis=0)
    else:
        both = jnp.concatenate([weights[:, None] * features, weights[:, None]], axis=1)
        sums = sums_by_class(both, labels, num_classes)
        sums, weight = sums[:, :-1], sums[:, -1]
    return sums / jnp.where(weight == 0, 1.0, weight)[:, None], weight


def occurring(
    labels: Int[Array, " n"], *, fill: int = 0, size: int | None = None
) -> tuple[Int[Array, " k"], Int[Array, " n"]]:
    """The classes that occur, ascending, and for each sample the place of its own among them.

    The list has `size` places (as many as there are samples, if it is not known how many classes
    occur); those that are left over hold `fill`.
    """
    order = jnp.argsort(labels)
    place = jnp.cumsum(starts_of(labels[order])) - 1
    own = jnp.zeros_like(labels).at[order].set(place.astype(labels.dtype))
    classes = jnp.full_like(labels, fill, shape=(size or len(labels),))
    return classes.at[place].set(labels[order]), own


def starts_of(ordered: Int[Array, " n"]) -> Array:
    """Where a class begins in sorted labels."""
    return jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])


def best_class(
    rows: Float[Array, "n d"], classes: Float[Array, "c d"], offset: Float[Array, " c"]
) -> Int[Array, " n"]:
    """The class with the greatest `rows @ classes.T + offset`, with some classes at a time."""
    step = max(128, _TILE // len(rows))
    if len(classes) <= step:
        return jnp.argmax(matmul(rows, classes.T) + offset[None, :], axis=-1)
    pad = -len(classes) % step
    tiles = jnp.pad(classes, ((0, pad), (0, 0))).reshape(-1, step, classes.shape[1])
    offsets = jnp.pad(offset, (0, pad), constant_values=-jnp.inf).reshape(-1, step)

    def best_of_tile(tile: tuple[Array, Array]) -> tuple[Array, Array]:
        scores = matmul(rows, tile[0].T) + tile[1][None, :]
        # `max` is NaN where a score is, and so wins below, as it does in `argmax`.
        return jnp.argmax(scores, axis=-1), jnp.max(scores, axis=-1)

    places, scores = lax.map(best_of_tile, (tiles, offsets))
    tile = jnp.argmax(scores, axis=0)
    return tile * step + jnp.take_along_axis(places, tile[None, :], axis=0)[0]
