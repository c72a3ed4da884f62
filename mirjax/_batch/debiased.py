"""MI, MIR and HDR of order 2 without the bias of the batch: means over pairs of samples."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mirjax._batch.interplay import checked_arguments, checked_pair
from mirjax._batch.kernels import Interplay
from mirjax._batch.pairs import (
    PairSums,
    interplay_of_purities,
    pairs_of_features,
    pairs_of_labels,
    standard_error,
)
from mirjax._checks import ArrayLike, as_groups
from mirjax._mesh import automatic


class DebiasedInterplay(NamedTuple):
    """Estimates of the interplay of order 2 in the population that the samples come from.

    With `P1`, `P2` and `P12` the means of `(ẑ·ẑ')²`, of `(ŵ·ŵ')²` and of their product over pairs
    of different samples, the entropies are `-log P`. They are estimates: mutual information and MIR
    scatter around the true value, below 0 too where that is 0, and are not clipped.

    Attributes:
        entropy1: `-log P1`, of the features (or the first representation), in nats.
        entropy2: `-log P2`, of the rows of the head at the labels (or the second representation).
        joint_entropy: `-log P12`.
        mutual_information: `log P12 - log P1 - log P2`.
        entropy_difference: `|log P1 - log P2|`.
        mir: `mutual_information / min(entropy1, entropy2)`; 0 where the smaller entropy is 0 (0/0).
        hdr: `entropy_difference / max(entropy1, entropy2)`; 0 where both entropies are 0 (0/0).
        standard_error: an `Interplay` of the standard errors of the other fields, or None where
            they are not known.
    """

    entropy1: Float[Array, "*batch"]
    entropy2: Float[Array, "*batch"]
    joint_entropy: Float[Array, "*batch"]
    mutual_information: Float[Array, "*batch"]
    entropy_difference: Float[Array, "*batch"]
    mir: Float[Array, "*batch"]
    hdr: Float[Array, "*batch"]
    standard_error: Interplay | None

    @property
    def interplay(self) -> Interplay:
        """The estimates alone."""
        return Interplay(**{name: getattr(self, name) for name in Interplay._fields})


def debiased_interplay(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    groups: Int[ArrayLike, "*batch n"] | None = None,
) -> DebiasedInterplay:
    r"""The interplay of features and head that a batch of any size estimates without its bias.

    `interplay` of a batch is mostly the size of the batch: each sample agrees with itself, which
    puts `1/n` into every mean over pairs. Here a sample is never compared with itself:
    `P = Σ_{i≠j} w_i w_j k_ij / Σ_{i≠j} w_i w_j` is an unbiased estimate of the purity of the
    population for independent samples, and `-log P` its Rényi entropy of order 2. What is left is
    the bias of a logarithm, of the order of the squared standard error.

    Args:
        features: `[..., n, d]`, the input of the head, one sample per row, of any scale.
        head: `[..., num_classes, d]`, one class per row. The bias is not used.
        labels: integers `[..., n]`.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly, whatever it holds.
        groups: integers `[..., n]`; pairs within a group are left out. Samples that are nearly
            copies of each other (an image and its flip, the pairs (a, b) and (b, a), tokens of one
            prompt) belong in one group, or they bring the bias back.

    Returns:
        `DebiasedInterplay` of `[...]` arrays. The standard error is that of the jackknife, which
        leaves out one sample (or group) at a time, less what this counts twice; with groups the
        latter stays in, and the error may be too large by up to a factor of 1.4. Fewer than two
        samples with weight (or groups) have no pair: NaN; fewer than three have no error: NaN. A
        purity of 0, where the rows of all pairs are orthogonal, has an infinite entropy, and the
        ratios are then NaN. Zero rows, NaN and invalid labels: as in `interplay`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match; the message names argument and shapes.

    Cost: two Gram matrices, `O(n² d)`, and no decomposition. Memory: `O(n²)` up to n = 4,096, and
    then `O(n d)`. Differentiable any number of times.

    The samples must be drawn at random. A batch that is sorted by class has too many pairs of one
    class; `ClassMoments.debiased_interplay` and `dataset_debiased_interplay` take all pairs of a
    set, and `PairMoments` averages over batches.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> z, w = (jax.random.normal(jax.random.key(i), (n, 20)) for i, n in ((30, 64), (31, 10)))
        >>> labels = jnp.arange(64) % 10
        >>> plain, found = mirjax.interplay(z, w, labels), mirjax.debiased_interplay(z, w, labels)
        >>> print(f"{plain.mir:.2f}, but {found.mir:.2f} ± {found.standard_error.mir:.2f}")
        0.47, but 0.00 ± 0.03

    Source: U-statistics of the entropy of order 2 (arXiv 1211.2459) in place of the entropy of
    Song et al. 2024 (arXiv 2406.03999).
    """
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    groups = as_groups(groups, features)
    estimate = _over_batches(pairs_of_labels, "(n,d),(c,d),(n),(n)", groups)
    return estimate(features, head, labels, weights)


def debiased_feature_interplay(
    features1: Float[ArrayLike, "*batch n d1"],
    features2: Float[ArrayLike, "*batch n d2"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    groups: Int[ArrayLike, "*batch n"] | None = None,
) -> DebiasedInterplay:
    r"""`debiased_interplay` of two representations of the same samples.

    The means over pairs of samples are those of `(ẑ1·ẑ1')²`, of `(ẑ2·ẑ2')²` and of their product.

    Args:
        features1: `[..., n, d1]`, one sample per row.
        features2: `[..., n, d2]`, the same samples in the same order.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        groups: integers `[..., n]`; pairs within a group are left out.

    Returns, errors, cost and differentiability: as in `debiased_interplay`. A sample with a zero
    row in either array counts as weight 0.

    Example:
        >>> import jax, mirjax
        >>> z = jax.random.normal(jax.random.key(1), (2, 100, 20))
        >>> result = mirjax.debiased_feature_interplay(z[0], z[1])
        >>> print(f"{result.mir:.2f} {mirjax.feature_interplay(z[0], z[1]).mir:.2f}")
        0.00 0.46
    """
    features1, features2, weights = checked_pair(features1, features2, weights)
    groups = as_groups(groups, features1, "features1")
    estimate = _over_batches(pairs_of_features, "(n,d),(n,e),(n)", groups)
    return estimate(features1, features2, weights)


def _over_batches(
    pairs_of: Callable[..., PairSums], signature: str, groups: Array | None
) -> Callable[..., DebiasedInterplay]:
    """Extends an estimate from the pairs of one batch to batch axes."""
    extra = [] if groups is None else [groups]

    def single(*arguments: Array) -> tuple[Array, ...]:
        sums = pairs_of(*arguments)
        errors = standard_error(sums, arguments[-1] if extra else None)
        return *interplay_of_purities(sums.purities()), *errors

    fields = len(Interplay._fields)
    outputs = ",".join(["()"] * (2 * fields))
    signature += ",(n)" * len(extra)
    vectorized = jnp.vectorize(single, signature=f"{signature}->{outputs}")

    def estimate(*arrays: Array) -> DebiasedInterplay:
        found = automatic(vectorized)(*arrays, *extra)
        return DebiasedInterplay(*Interplay(*found[:fields]), Interplay(*found[fields:]))

    return estimate
