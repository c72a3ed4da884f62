"""Means over pairs of different samples: purities of the population, whatever the batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.classes import SQUARE, occurring
from mirjax._batch.gram import safe_sqrt
from mirjax._batch.interplay import pair_rows
from mirjax._batch.joint import NormalizedInputs, normalized_inputs
from mirjax._batch.kernels import Interplay, combine
from mirjax._linalg.precision import matmul, total

# The entries of a part of the pairs; the rows of larger batches are taken some at a time.
_PAIRS = 2**24

# From numbers of samples to their rows of the squared Gram matrices of both views, `[k, n]` each.
Squares = Callable[[Int[Array, " k"]], tuple[Array, Array]]


class Spread(NamedTuple):
    """Sums of squares over ordered pairs of samples of different groups.

    Attributes:
        weight: `Σ (p_i p_j)²`.
        sums: `Σ (p_i p_j)² k_ij` of each kernel.
        squares: `Σ (p_i p_j)² k_ij k'_ij` of two kernels.
    """

    weight: Float[Array, ""]
    sums: Float[Array, " 3"]
    squares: Float[Array, "3 3"]


class PairSums(NamedTuple):
    """Sums over ordered pairs of samples of different groups.

    The kernels are the squared Gram matrices of both views and their product.

    Attributes:
        share: `p`, the share of each sample in the weight.
        weight: `Σ p_i p_j`.
        sums: `Σ p_i p_j k_ij` of each kernel.
        row_weight: the part of `weight` that has sample i in front.
        row_sums: the parts of `sums` likewise.
        spread: sums of squares, or None where they are not known.
    """

    share: Float[Array, " n"]
    weight: Float[Array, ""]
    sums: Float[Array, " 3"]
    row_weight: Float[Array, " n"]
    row_sums: Float[Array, "n 3"]
    spread: Spread | None

    def purities(self) -> Float[Array, " 3"]:
        """The means of the kernels over the pairs; NaN without any pair."""
        return self.sums / self.weight


def pairs_of_labels(
    features: Array, head: Array, labels: Array, weights: Array, groups: Array | None = None
) -> PairSums:
    """The sums of features and the rows of the head at the labels."""
    inputs = normalized_inputs(features, head, labels, weights)
    return pair_sums(_squares_of_labels(inputs), jnp.square(inputs.root[:, 0]), groups)


def pairs_of_features(
    features1: Array, features2: Array, weights: Array, groups: Array | None = None
) -> PairSums:
    """The sums of two representations of the same samples."""
    rows1, rows2, root = pair_rows(features1, features2, weights)
    return pair_sums(_squares_of_rows(rows1, rows2), jnp.square(root[:, 0]), groups)


def _squares_of_labels(inputs: NormalizedInputs) -> Squares:
    """The squared Gram matrices of normalised features and of the rows of the head."""
    rows, head, labels = inputs.rows, inputs.head_rows, inputs.labels
    if inputs.by_sample:
        return _squares_of_rows(rows, head)
    if len(head) > SQUARE:
        return _squares_of_rows(rows, head[labels])
    similarity = jnp.square(matmul(head, head.T))

    def squares(index: Array) -> tuple[Array, Array]:
        # Two gathers of whole rows, as in `joint`.
        second = similarity[labels[index]].T[labels].T
        return jnp.square(matmul(rows[index], rows.T)), second

    return squares


def _squares_of_rows(rows1: Float[Array, "n d1"], rows2: Float[Array, "n d2"]) -> Squares:
    """The squared Gram matrices of two sets of normalised rows."""

    def squares(index: Array) -> tuple[Array, Array]:
        first, second = (jnp.square(matmul(r[index], r.T)) for r in (rows1, rows2))
        return first, second

    return squares


def pair_sums(
    squares: Squares, share: Float[Array, " n"], groups: Int[Array, " n"] | None
) -> PairSums:
    """All sums over pairs, from the share of each sample in the weight."""
    samples = len(share)
    if groups is None:
        # Each sample is a group, and no pair with itself.
        groups = jnp.arange(samples)
    step = max(1, min(samples, _PAIRS // samples))
    # Places that are left over in the last part have no weight.
    index = jnp.minimum(jnp.arange(-(-samples // step) * step), samples - 1)
    here = jnp.where(jnp.arange(len(index)) < samples, share[index], 0.0)

    def of_some(part: tuple[Array, Array]) -> tuple[Array, Array, Spread]:
        index, here = part
        first, second = squares(index)
        differ = groups[index][:, None] != groups[None, :]
        pair = jnp.where(differ, here[:, None] * share[None, :], 0.0)
        kernels = first, second, first * second
        fourth = jnp.square(pair)
        weighted = [fourth * kernel for kernel in kernels]
        products = [[total(w * kernel) for kernel in kernels] for w in weighted]
        row_sums = jnp.stack([jnp.sum(pair * kernel, axis=1) for kernel in kernels], axis=1)
        spread = Spread(
            total(fourth),
            jnp.stack([total(w) for w in weighted]),
            jnp.stack([jnp.stack(row) for row in products]),
        )
        return jnp.sum(pair, axis=1), row_sums, spread

    if len(index) == step:
        row_weight, row_sums, spread = of_some((index, here))
    else:
        # Derivatives form the kernels again, or all of them would be kept.
        parts = index.reshape(-1, step), here.reshape(-1, step)
        row_weight, row_sums, spread = lax.map(jax.checkpoint(of_some), parts)
        row_weight = row_weight.reshape(-1)[:samples]
        row_sums = row_sums.reshape(-1, 3)[:samples]
        spread = jax.tree.map(lambda x: jnp.sum(x, axis=0), spread)
    return from_rows(share, row_weight, row_sums, spread)


def from_rows(
    share: Float[Array, " n"],
    row_weight: Float[Array, " n"],
    row_sums: Float[Array, "n 3"],
    spread: Spread | None = None,
) -> PairSums:
    """All sums from those that have one sample in front."""
    sums = jnp.stack([total(column) for column in row_sums.T])
    return PairSums(share, total(row_weight), sums, row_weight, row_sums, spread)


def interplay_of_purities(purities: Float[Array, " 3"]) -> Interplay:
    """All fields of `Interplay` at order 2, from the purities of both views and of both."""
    # `0.0 -` turns -0.0 into 0.0.
    first, second, joint = (0.0 - jnp.log(purity) for purity in purities)
    return combine(first, second, joint)


def standard_error(sums: PairSums, groups: Int[Array, " n"] | None = None) -> Interplay:
    """The standard error of `interplay_of_purities`, by leaving out one sample or group at a time.

    The jackknife counts twice what a pair adds to its two samples. The spread of the kernels over
    the pairs says how much that is, and it is taken out where the spread is known; not with
    `groups`, in which pairs depend on each other.
    """
    purities = sums.purities()
    slopes = jnp.stack(jax.jacfwd(interplay_of_purities)(purities))
    row_weight, row_sums, present = sums.row_weight, sums.row_sums, sums.share > 0
    if groups is not None:
        own = occurring(groups)[1]
        added = jnp.concatenate([row_weight[:, None], row_sums, sums.share[:, None]], axis=1)
        added = jnp.zeros_like(added).at[own].add(added)
        row_weight, row_sums, present = added[:, 0], added[:, 1:4], added[:, 4] > 0
    # What the purities change by without one sample, which is in front of half of its pairs.
    change = 2 * (purities[None, :] * row_weight[:, None] - row_sums)
    change = change / (sums.weight - 2 * row_weight)[:, None]
    change = jnp.where(present[:, None], change, 0.0)
    count = jnp.sum(present.astype(change.dtype))
    jackknife = (count - 1) / count * jnp.sum(jnp.square(matmul(change, slopes.T)), axis=0)
    if groups is None and sums.spread is not None:
        jackknife = jackknife - _counted_twice(sums, sums.spread, slopes, jackknife)
    return Interplay(*safe_sqrt(jackknife))


def _counted_twice(sums: PairSums, spread: Spread, slopes: Array, jackknife: Array) -> Array:
    """How much of the jackknife variance is too much; exact for equal weights."""
    # Of a kernel with the slopes of a metric, `alone` is the variance of what one sample adds and
    # `pair` of what a pair adds to that. The jackknife is `a alone + 2 b c3 pair`, the variance of
    # the kernel over the pairs `2 c1 alone + c2 pair`, and that of the metric `a alone + b pair`.
    # Three samples do not tell the two parts apart.
    n = 1 / total(jnp.square(sums.share))
    enough = n > 3.5
    n = jnp.where(enough, n, 4.0)
    c1, c2, c3 = (n - 2) / n, 1 - 2 / (n * (n - 1)), (n - 1) / (n - 2)
    a = 4 * total(jnp.square(sums.row_weight)) / jnp.square(sums.weight)
    b = 2 * spread.weight / jnp.square(sums.weight)
    mean = matmul(slopes, sums.purities())
    variance = jnp.sum(matmul(slopes, spread.squares) * slopes, axis=1)
    variance = variance - 2 * mean * matmul(slopes, spread.sums)
    variance = variance / spread.weight + jnp.square(mean)
    pair = (a / (2 * c1) * variance - jackknife) / (a * c2 / (2 * c1) - 2 * b * c3)
    pair = jnp.clip(pair, 0.0, jackknife / (2 * b * c3))
    return jnp.where(enough, pair * b * (2 * c3 - 1), 0.0)
