"""Class means, and neural collapse, NC1 to NC4 (Papyan, Han & Donoho 2020, PNAS 117(40))."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.entropy import shares
from mirjax._batch.gram import means_by_class, normalize_rows, safe_sqrt
from mirjax._checks import (
    ArrayLike,
    as_float,
    as_labels,
    common_float,
    head_of,
    same_size,
    sample_weights,
)
from mirjax._linalg.decompositions import pinv
from mirjax._linalg.precision import matmul


class ClassMeans(NamedTuple):
    """The mean of each class and how much weight it rests on.

    Attributes:
        means: `[..., num_classes, d]`, the weighted mean of each class; 0 for one without weight.
        weight: `[..., num_classes]`, the sum of the weights of each class: its number of samples,
            if no weights are given.
    """

    means: Float[Array, "*batch c d"]
    weight: Float[Array, "*batch c"]


def class_means(
    features: Float[ArrayLike, "*batch n d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    num_classes: int,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> ClassMeans:
    r"""The weighted mean of the features of each class, `μ_c = Σ w_i z_i / Σ w_i` over class c.

    The rows are averaged as they are: they are neither normalised nor centred.

    Args:
        features: `[..., n, d]`, one sample per row. Unlike in `interplay` the weighted sums of the
            raw rows must be finite numbers.
        labels: integers `[..., n]`.
        num_classes: C, a positive Python number.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly, whatever it holds (NaN,
            label -1). The derivative at weight 0 is taken as 0.

    Returns:
        `ClassMeans` of `[..., num_classes, d]` means and `[..., num_classes]` weights. Each entry
        of a mean lies, up to rounding, between the least and the greatest value in its class. A
        class without weight has mean 0; for `class_interplay` to leave it out, put the global mean
        in its place. All is NaN where a counted sample has a label outside `[0, num_classes)` or a
        negative weight. A NaN in a counted sample makes its column NaN in the means of all classes.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or `num_classes` is not a positive
            integer.

    Cost: `O(n d num_classes)`, one matrix product at full precision. Differentiable any number of
    times in the features and in positive weights; the mean of a class without weight has
    derivative 0.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
        >>> result = mirjax.class_means(features, jnp.array([0, 0, 2]), num_classes=3)
        >>> result.means
        Array([[2., 1.],
               [0., 0.],
               [5., 5.]], dtype=float32)
        >>> result.weight
        Array([2., 0., 1.], dtype=float32)

    Source: the class means `μ_c` of Papyan et al. 2020 (PNAS 117(40)), here with weights.
    """
    features = as_float(features, "features", axes="n d")
    labels = as_labels(labels)
    same_size(features, "features", labels, "labels", axis=(-2, -1), what="the number of samples n")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer):
        raise TypeError(
            "num_classes must be a Python integer (it is static), got "
            f"{type(num_classes).__name__}."
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive, got {num_classes}.")
    weights = sample_weights(weights, features, "features")

    def single(rows: Array, y: Array, w: Array) -> tuple[Array, Array]:
        valid = (y >= 0) & (y < num_classes)
        broken = jnp.any((w != 0) & ~(valid & (w > 0)))  # not `w < 0`: NaN is broken too
        # A constant 0, so that the weight of a masked sample has no derivative.
        w = jnp.where(w == 0, 0.0, w)
        rows = jnp.where((w == 0)[:, None], 0.0, rows)
        means, weight = means_by_class(rows, jnp.where(valid, y, 0), num_classes, w)
        return jnp.where(broken, jnp.nan, means), jnp.where(broken, jnp.nan, weight)

    vectorized = jnp.vectorize(single, signature="(n,d),(n),(n)->(c,d),(c)")
    return ClassMeans(*vectorized(features, labels, weights))


class NeuralCollapse(NamedTuple):
    """How far a network is from neural collapse; at collapse all fields but `nc4` are 0.

    Attributes:
        nc1: `tr(Σ_W Σ_B⁺) / C`, within-class over between-class covariance; at least 0. Here
            and below C counts the classes that have samples. No field has a unit.
        nc2_equinorm: standard deviation over mean of the norms of the centred class means.
        nc2_equiangle: mean of `|cos + 1/(C-1)|` over all pairs of centred class means.
        nc2_equinorm_head: like `nc2_equinorm`, for the rows of the head (not centred).
        nc2_equiangle_head: like `nc2_equiangle`, for the rows of the head.
        nc3: `‖W/‖W‖_F - M/‖M‖_F‖_F²` between head and centred class means, in [0, 4].
        nc4: share of the samples that the head assigns to the class with the nearest mean, in
            [0, 1]; 1 at collapse. Not differentiable (derivative 0).
    """

    nc1: Float[Array, "*batch"]
    nc2_equinorm: Float[Array, "*batch"]
    nc2_equiangle: Float[Array, "*batch"]
    nc2_equinorm_head: Float[Array, "*batch"]
    nc2_equiangle_head: Float[Array, "*batch"]
    nc3: Float[Array, "*batch"]
    nc4: Float[Array, "*batch"]


def neural_collapse(
    features: Float[ArrayLike, "*batch n d"],
    labels: Int[ArrayLike, "*batch n"],
    head: Float[ArrayLike, "*batch c d"],
    /,
    *,
    num_classes: int,
    bias: Float[ArrayLike, "*batch c"] | None = None,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> NeuralCollapse:
    r"""NC1 to NC4 of features, labels and head.

    `μ_G` is the mean of all samples, `μ_c` the mean of class c, `Σ_W` the average over samples
    of `(z - μ_y)(z - μ_y)ᵀ`, `Σ_B` the average over classes of `(μ_c - μ_G)(μ_c - μ_G)ᵀ`
    and `M = [μ_c - μ_G]`. Classes without a sample are left out of every average. No d × d
    matrix is formed: the pseudo-inverse is that of `M`.

    Args:
        features: `[..., n, d]`, the input of the head, one sample per row.
        labels: integers `[..., n]`.
        head: `[..., num_classes, d]`, one class per row.
        num_classes: C; checked against the head.
        bias: `[..., num_classes]`, the bias of the head, which only `nc4` uses. Zero if not given.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `NeuralCollapse` of `[...]` arrays. `nc1` is infinite where all class means coincide. All
        fields are NaN where a counted sample has a NaN, a negative weight or a label outside
        `[0, num_classes)`, or where no weight is left.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match; the message names argument and shapes.

    Cost: `O(n d num_classes)`. Differentiable in features and head except for `nc4`; `nc1` is
    differentiable while the rank of the class means does not change.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(4, 6), jnp.arange(12) % 4
        >>> result = mirjax.neural_collapse(7.0 * head[labels], labels, head, num_classes=4)
        >>> print(f"{result.nc1:.4f} {result.nc2_equiangle:.4f} {result.nc3:.4f} {result.nc4:.1f}")
        0.0000 0.0000 0.0000 1.0

    Source: Papyan et al. 2020, figures 2 to 7.
    """
    features = as_float(features, "features", axes="n d")
    head = as_float(head, "head", axes="num_classes d")
    labels = as_labels(labels)
    head_of(features, head)
    same_size(features, "features", labels, "labels", axis=(-2, -1), what="the number of samples n")
    if head.shape[-2] != num_classes:
        raise ValueError(
            f"head of shape {head.shape} has {head.shape[-2]} rows, but num_classes is "
            f"{num_classes}."
        )
    features, head = common_float(features, head)
    weights = sample_weights(weights, features, "features")
    if bias is None:
        bias = jnp.zeros((num_classes,), head.dtype)
    bias = as_float(bias, "bias", axes="num_classes").astype(head.dtype)
    same_size(head, "head", bias, "bias", axis=(-2, -1), what="num_classes")
    outputs = ",".join("()" for _ in NeuralCollapse._fields)
    vectorized = jnp.vectorize(_neural_collapse, signature=f"(n,d),(n),(c,d),(c),(n)->{outputs}")
    return NeuralCollapse(*vectorized(features, labels, head, bias, weights))


def _neural_collapse(
    features: Array, labels: Array, head: Array, bias: Array, weights: Array
) -> NeuralCollapse:
    classes = head.shape[0]
    valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(valid, labels, 0)
    share = shares(jnp.where(valid | (weights == 0), weights, jnp.nan))
    counted = (share != 0)[:, None]
    # Zeros in place of masked rows, which may hold NaN.
    features = jnp.where(counted, features, 0.0)
    # NC1 to NC3 do not depend on the scale, and a unit scale keeps squares finite. NC4 does depend
    # on it, through the bias.
    scale = lax.stop_gradient(jnp.max(jnp.abs(features)))
    unit = features / jnp.where(scale == 0, 1.0, scale)
    unit = jnp.where(counted, unit - matmul(share, unit)[None, :], 0.0)
    means, weight_of_class = means_by_class(unit, labels, classes, share)
    # Means that equal the global mean up to rounding have no direction.
    noise = 8 * jnp.finfo(unit.dtype).eps
    means = jnp.where(jnp.max(jnp.abs(means), axis=-1, keepdims=True) <= noise, 0.0, means)
    present = weight_of_class != 0
    # Squared distances but for the norm of the sample, which is the same for all classes.
    distances = jnp.sum(jnp.square(means), axis=-1)[None, :] - 2 * matmul(unit, means.T)
    nearest = jnp.argmin(jnp.where(present[None, :], distances, jnp.inf), axis=-1)
    predicted = jnp.argmax(matmul(features, head.T) + bias[None, :], axis=-1)
    apart = jnp.sum(share * (nearest != predicted).astype(share.dtype))
    nc4 = jnp.clip(1 - apart, 0.0, 1.0)

    def within_trace(inverse: Array) -> Array:
        within = matmul(unit - means[labels], inverse)
        return jnp.sum(share * jnp.sum(jnp.square(within), axis=-1))

    weight = jnp.sum(share)
    broken = (weight == 0) | jnp.isnan(weight) | jnp.any(jnp.isnan(unit))
    return collapse_of_means(means, present, within_trace, head, nc4, broken)


def collapse_of_means(
    means: Float[Array, "c d"],
    present: Array,
    within_trace: Callable[[Array], Array],
    head: Float[Array, "c d"],
    nc4: Array,
    broken: Array,
) -> NeuralCollapse:
    """NC1 to NC3 from the centred class means, and `nc4` as it is given; NaN where `broken`.

    Means and covariance are in units of the largest feature, so tiny values in them are rounding
    errors. `within_trace(x)` is `tr(xᵀ Σ_W x)` for `x` of shape `[d, c]`, with the within-class
    covariance `Σ_W`.
    """
    # Each entry of a mean is known up to some eps: a smaller singular value is no direction.
    floor = 8 * float(jnp.finfo(means.dtype).eps) * len(means) ** 0.5
    # The weighted sum of centred means is 0, so they span one direction fewer than there are
    # classes, even if rounding adds another.
    nc1 = within_trace(pinv(means, jnp.sum(present) - 1, floor))
    # A single class, or equal means: there is no variance between classes to divide by.
    alone = jnp.sum(present) < 2
    nc1 = jnp.where(alone | jnp.all(means == 0), jnp.inf, nc1)
    # Rows of the head for classes without samples have no mean to compare with.
    used = jnp.where(present[:, None], head, 0.0)
    nc3 = jnp.sum(jnp.square(_unit_norm(used) - _unit_norm(means)))
    values = (nc1, *_equinorm_equiangle(means, present), *_equinorm_equiangle(used, present))
    return NeuralCollapse(*(jnp.where(broken, jnp.nan, value) for value in (*values, nc3, nc4)))


def _unit_norm(matrix: Array) -> Array:
    # Scaled by the largest entry first, so that squares stay finite.
    largest = lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    matrix = matrix / jnp.where(largest == 0, 1.0, largest)
    squares = jnp.sum(jnp.square(matrix))
    return matrix / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def _equinorm_equiangle(rows: Array, present: Array) -> tuple[Array, Array]:
    mask = present.astype(rows.dtype)
    classes = jnp.sum(mask)
    squares = jnp.sum(jnp.square(_unit_norm(rows)), axis=-1)
    norms = safe_sqrt(squares)
    average = jnp.sum(mask * norms) / classes
    variance = jnp.sum(mask * jnp.square(norms - average)) / classes
    spread = safe_sqrt(variance)
    cosines = matmul(normalize_rows(rows), normalize_rows(rows).T)
    pairs = mask[:, None] * mask[None, :] * (1 - jnp.eye(len(rows), dtype=rows.dtype))
    # A single class has no pair, and nothing to deviate from.
    others = jnp.maximum(classes - 1, 1)
    deviation = jnp.sum(pairs * jnp.abs(cosines + 1 / others)) / (classes * others)
    return spread / jnp.where(average == 0, 1.0, average), deviation
