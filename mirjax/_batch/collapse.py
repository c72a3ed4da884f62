"""Class means, and neural collapse, NC1 to NC4 (Papyan, Han & Donoho 2020, PNAS 117(40))."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mirjax._batch.classes import best_class, means_by_class, occurring, sums_by_class
from mirjax._batch.entropy import shares
from mirjax._batch.gram import normalize_rows, safe_sqrt
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
from mirjax._linalg.rounding import found_eps, power_of_two, stated_eps
from mirjax._mesh import automatic

# The entries of a tile of pairs of classes.
_TILE = 2**22


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

    Cost: one matrix product at full precision, `O(n d num_classes)`; for many classes sums over
    sorted samples, `O(n d)`. Differentiable any number of times in the features and in positive
    weights; the mean of a class without weight has derivative 0.

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
    return ClassMeans(*automatic(vectorized)(features, labels, weights))


class NeuralCollapse(NamedTuple):
    """How far a network is from neural collapse; at collapse all fields but `nc4` are 0.

    Here C counts the classes that have samples. No field has a unit.

    Attributes:
        nc1: `tr(Σ_W Σ_B⁺) / C`, within-class over between-class covariance; at least 0.
        nc2_equinorm: standard deviation over mean of the norms of the centred class means.
        nc2_equiangle: mean of `|cos + 1/(C-1)|` over all pairs of centred class means.
        nc2_equinorm_head: like `nc2_equinorm`, for the rows of the head (not centred).
        nc2_equiangle_head: like `nc2_equiangle`, for the rows of the head.
        nc3: `‖W/‖W‖_F - M/‖M‖_F‖_F²` between head and centred class means, in [0, 4].
        nc4: share of the samples that the head assigns to the class with the nearest mean, in
            [0, 1]; 1 at collapse. Not differentiable (derivative 0). None where it was not asked
            for, see `ClassMoments.collapse`.
        nc1_quotient: `tr Σ_W / tr Σ_B`, which needs no pseudo-inverse; at least 0.
        cdnv: class-distance normalised variance, the mean over all pairs of classes of
            `(v + v') / (2 ‖μ - μ'‖²)` with `v` the mean squared distance to the class mean.
        nc2_generalised: variance over all pairs of `log(1 / ‖m̂ - m̂'‖)`, with `m̂` the centred class
            means of unit length; infinite where two of them coincide.
        nc3_uniform: variance over the classes of the cosine of head row and centred class mean.
    """

    nc1: Float[Array, "*batch"]
    nc2_equinorm: Float[Array, "*batch"]
    nc2_equiangle: Float[Array, "*batch"]
    nc2_equinorm_head: Float[Array, "*batch"]
    nc2_equiangle_head: Float[Array, "*batch"]
    nc3: Float[Array, "*batch"]
    nc4: Float[Array, "*batch"] | None
    nc1_quotient: Float[Array, "*batch"]
    cdnv: Float[Array, "*batch"]
    nc2_generalised: Float[Array, "*batch"]
    nc3_uniform: Float[Array, "*batch"]


def neural_collapse(
    features: Float[ArrayLike, "*batch n d"],
    labels: Int[ArrayLike, "*batch n"],
    head: Float[ArrayLike, "*batch c d"],
    /,
    *,
    num_classes: int,
    bias: Float[ArrayLike, "*batch c"] | None = None,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    precision: DTypeLike | None = None,
) -> NeuralCollapse:
    r"""NC1 to NC4 of features, labels and head, and measures that suit many classes.

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
        precision: the dtype in which the features were made, such as `"bfloat16"`, where they were
            cast up since. It decides which directions of the class means are rounding errors and
            not counted by `nc1`. If not given, half-precision features say it themselves, and in
            others it is looked for: values that all fit a coarser format, though they lie on no
            grid of that many bits (as integers and pixels do), come from it. Features that were
            computed with since, by a scaling for instance, do not show it any more.

    Returns:
        `NeuralCollapse` of `[...]` arrays. `nc1`, `nc1_quotient` and `cdnv` are infinite where all
        class means coincide up to rounding, and `cdnv` where two of them do. All fields are NaN
        where a counted sample has a NaN, a negative weight or a label outside `[0, num_classes)`,
        or where no weight is left.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or the precision is unknown; the
            message names argument and shapes.

    Cost: `O(n d num_classes)` for `nc4`, `O(k² d)` for the pairs and the pseudo-inverse of `k =
    min(n, num_classes)` class means. Scores and pairs are formed in tiles, so no array of `n ×
    num_classes` or `num_classes × num_classes` is large. Differentiable in features and head except
    for `nc4`; `nc1` is differentiable while the rank of the class means does not change.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(4, 6), jnp.arange(12) % 4
        >>> result = mirjax.neural_collapse(7.0 * head[labels], labels, head, num_classes=4)
        >>> print(f"{result.nc1:.4f} {result.nc2_equiangle:.4f} {result.nc3:.4f} {result.nc4:.1f}")
        0.0000 0.0000 0.0000 1.0

    Source: Papyan et al. 2020, figures 2 to 7; Galanti et al. 2021 (arXiv 2112.15121) for `cdnv`;
    Liu et al. 2023 (arXiv 2303.06484) and, with cosines in place of dot products, Wu & Papyan 2024
    (arXiv 2405.17767) for `nc2_generalised` and `nc3_uniform`.
    """
    given = features
    features = as_float(features, "features", axes="n d")
    eps = stated_eps(given.dtype, precision)
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
    single = functools.partial(_neural_collapse, eps=eps)
    vectorized = jnp.vectorize(single, signature=f"(n,d),(n),(c,d),(c),(n)->{outputs}")
    return NeuralCollapse(*automatic(vectorized)(features, labels, head, bias, weights))


def _neural_collapse(
    features: Array,
    labels: Array,
    head: Array,
    bias: Array,
    weights: Array,
    eps: float | None,
) -> NeuralCollapse:
    samples, num_classes = len(features), len(head)
    valid = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(valid, labels, 0)
    share = shares(jnp.where(valid | (weights == 0), weights, jnp.nan))
    counted = (share != 0)[:, None]
    # Zeros in place of masked rows, which may hold NaN.
    features = jnp.where(counted, features, 0.0)
    # Of more classes than samples only those that occur matter.
    classes, own = jnp.arange(num_classes, dtype=labels.dtype), labels
    if samples < num_classes:
        classes, own = occurring(labels)
    # NC1 to NC3 do not depend on scale and offset. A common offset costs digits unless it goes
    # first, at a scale at which squares are finite; powers of two divide without rounding.
    scale = power_of_two(jnp.max(jnp.abs(features)))
    unit = features / scale
    for _ in range(2):
        unit = jnp.where(counted, unit - matmul(share, unit)[None, :], 0.0)
    spread = power_of_two(jnp.max(jnp.abs(unit)))
    unit = unit / spread
    means, weight_of_class = means_by_class(unit, own, len(classes), share)
    # What is known of the data in these units: their size and, relative to it, their rounding.
    raw = lax.stop_gradient(features / scale / spread)
    spacing = found_eps(features) if eps is None else jnp.asarray(eps, features.dtype)
    means = without_noise(means, spacing * jnp.max(jnp.abs(raw)))
    present = weight_of_class != 0
    within = unit - means[own]
    squares = share * jnp.sum(jnp.square(within), axis=-1)
    sizes = share * jnp.sum(jnp.square(raw), axis=-1)
    per_class = sums_by_class(jnp.stack([squares, sizes], axis=1), own, len(classes))
    variances, sizes = (per_class / jnp.where(present, weight_of_class, 1.0)[:, None]).T
    parts = CentredMeans(
        means, present, variances, jnp.sum(squares), noise_of_means(spacing, sizes)
    )

    # Squared distances but for the norm of the sample, which is the same for all classes.
    fixed_unit, fixed_means = lax.stop_gradient((unit, means))
    offset = -jnp.sum(jnp.square(fixed_means), axis=-1)
    offset = jnp.where(present, offset, -jnp.inf)
    nearest = classes[best_class(fixed_unit, 2 * fixed_means, offset)]
    predicted = best_class(*lax.stop_gradient((features, head, bias)))
    apart = jnp.sum(share * (nearest != predicted.astype(nearest.dtype)).astype(share.dtype))
    weight = jnp.sum(share)

    def within_trace(inverse: Array) -> Array:
        projected = matmul(within, inverse)
        return jnp.sum(share * jnp.sum(jnp.square(projected), axis=-1))

    return collapse_of_means(
        parts,
        within_trace,
        head if samples >= num_classes else head[classes],
        nc4=jnp.clip(1 - apart, 0.0, 1.0),
        broken=(weight == 0) | jnp.isnan(weight) | jnp.any(jnp.isnan(unit)),
    )


class CentredMeans(NamedTuple):
    """What the measures of collapse need of the features, in units of about their largest entry.

    Attributes:
        means: class means less the global mean, 0 for a class without samples.
        present: which classes have samples.
        variances: the mean squared distance of the samples of each class to its mean.
        within: `tr Σ_W`, the mean squared distance over all samples.
        noise: a bound on the norm of what rounding of the data adds to `means`.
    """

    means: Float[Array, "c d"]
    present: Array
    variances: Float[Array, " c"]
    within: Float[Array, ""]
    noise: Float[Array, ""]


def without_noise(means: Array, rounding: Array) -> Array:
    """The centred class means, where those that are zero up to rounding become exactly zero."""
    # An entry is known up to half a spacing of the largest feature, and to some eps after sums.
    smallest = jnp.maximum(8 * float(jnp.finfo(means.dtype).eps), 0.5 * rounding)
    return jnp.where(jnp.max(jnp.abs(means), axis=-1, keepdims=True) <= smallest, 0.0, means)


def noise_of_means(eps: Array, sizes: Float[Array, " c"]) -> Array:
    """A bound on the Frobenius norm of the rounding errors of class means.

    Each entry of a feature is off by `eps / 2` of itself at most; `sizes` has the mean of the
    squared norm of the features of each class, as they are given.
    """
    return lax.stop_gradient(0.5 * eps * jnp.sqrt(jnp.sum(sizes)))


def collapse_of_means(
    parts: CentredMeans,
    within_trace: Callable[[Array], Array],
    head: Float[Array, "c d"],
    *,
    nc4: Array | None,
    broken: Array,
) -> NeuralCollapse:
    """All measures from the centred class means, and `nc4` as it is given; NaN where `broken`.

    `within_trace(x)` is `tr(xᵀ Σ_W x)` for `x` of shape `[d, c]`, with the within-class covariance
    `Σ_W`.
    """
    means, present = parts.means, parts.present
    # Each entry of a mean is known up to some eps: a smaller singular value is no direction.
    floor = 8 * float(jnp.finfo(means.dtype).eps) * len(means) ** 0.5
    # The weighted sum of centred means is 0, so they span one direction fewer than there are
    # classes, even if rounding adds another.
    floor = jnp.maximum(floor, parts.noise)
    inverse = pinv(means, jnp.sum(present) - 1, floor)
    nc1 = within_trace(inverse)
    between = jnp.sum(jnp.square(means)) / jnp.sum(present.astype(means.dtype))
    quotient = parts.within / jnp.where(between == 0, 1.0, between)
    # A single class, or equal means: there is no variance between classes to divide by. Only NC1
    # asks the pseudo-inverse, so that what does not need it can do without.
    alone = (jnp.sum(present) < 2) | (jnp.sum(jnp.square(means)) <= jnp.square(floor))
    # Rows of the head for classes without samples have no mean to compare with.
    used = jnp.where(present[:, None], head, 0.0)
    nc3 = jnp.sum(jnp.square(_unit_norm(used) - _unit_norm(means)))
    directions = normalize_rows(means), normalize_rows(used)
    cosines = jnp.sum(directions[0] * directions[1], axis=-1)
    pairs = _over_pairs(parts, directions)
    fields = NeuralCollapse(
        nc1=jnp.where(alone | jnp.all(inverse == 0), jnp.inf, nc1),
        nc2_equinorm=_equinorm(means, present),
        nc2_equiangle=pairs.equiangle,
        nc2_equinorm_head=_equinorm(used, present),
        nc2_equiangle_head=pairs.equiangle_head,
        nc3=nc3,
        nc4=nc4,
        nc1_quotient=jnp.where(alone, jnp.inf, quotient),
        cdnv=jnp.where(alone, jnp.inf, pairs.cdnv),
        nc2_generalised=pairs.generalised,
        nc3_uniform=_variance(cosines, present),
    )
    return jax.tree.map(lambda value: jnp.where(broken, jnp.nan, value), fields)


def _unit_norm(matrix: Array) -> Array:
    # Scaled by the largest entry first, so that squares stay finite.
    largest = lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    matrix = matrix / jnp.where(largest == 0, 1.0, largest)
    squares = jnp.sum(jnp.square(matrix))
    return matrix / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def _variance(values: Array, present: Array) -> Array:
    mask = present.astype(values.dtype)
    average = jnp.sum(mask * values) / jnp.sum(mask)
    return jnp.sum(mask * jnp.square(values - average)) / jnp.sum(mask)


def _equinorm(rows: Array, present: Array) -> Array:
    norms = safe_sqrt(jnp.sum(jnp.square(_unit_norm(rows)), axis=-1))
    mask = present.astype(norms.dtype)
    average = jnp.sum(mask * norms) / jnp.sum(mask)
    spread = safe_sqrt(_variance(norms, present))
    return spread / jnp.where(average == 0, 1.0, average)


class _Pairs(NamedTuple):
    """Means over all pairs of classes."""

    equiangle: Array
    equiangle_head: Array
    generalised: Array
    cdnv: Array


def _over_pairs(parts: CentredMeans, directions: tuple[Array, Array]) -> _Pairs:
    """What is averaged over pairs of classes, in tiles of some classes by all."""
    means, present, variances, *_ = parts
    count, eps = len(means), float(jnp.finfo(means.dtype).eps)
    classes = jnp.sum(present.astype(means.dtype))
    # A single class has no pair, and nothing to deviate from.
    others = jnp.maximum(classes - 1, 1)
    norms = jnp.sum(jnp.square(means), axis=-1)
    roots = safe_sqrt(norms)
    # 1, or 0 for a class without a direction.
    lengths = (norms > 0).astype(means.dtype)
    # Of the logarithms only deviations from the one at collapse are summed: they do not cancel.
    expected = jnp.log(2 + 2 / others)
    step = max(1, min(count, _TILE // count))

    def of_tile(tile: Array) -> Array:
        """The sums over the pairs of the classes in `tile` with all classes."""
        is_pair = (
            present[tile][:, None]
            & present[None, :]
            & (tile[:, None] != jnp.arange(count)[None, :])
        )
        # The last tile is filled up with the index that follows the last class.
        is_pair &= (tile < count)[:, None]
        cosines, head_cosines = (matmul(rows[tile], rows.T) for rows in directions)
        apart = lengths[tile][:, None] + lengths[None, :] - 2 * cosines
        coincide = is_pair & (apart <= 8 * eps)
        logs = expected - jnp.log(jnp.where(is_pair & ~coincide, apart, jnp.exp(expected)))
        size = norms[tile][:, None] + norms[None, :]
        distances = size - 2 * roots[tile][:, None] * roots[None, :] * cosines
        touch = is_pair & (distances <= 8 * eps * size)
        ratios = variances[tile][:, None] + variances[None, :]
        ratios = ratios / jnp.where(is_pair & ~touch, 2 * distances, 1.0)
        sums = (
            jnp.abs(cosines + 1 / others),
            jnp.abs(head_cosines + 1 / others),
            jnp.where(coincide, jnp.inf, 0.5 * logs),
            jnp.square(jnp.where(coincide, 0.0, 0.5 * logs)),
            jnp.where(touch, jnp.inf, ratios),
        )
        return jnp.stack([jnp.sum(jnp.where(is_pair, part, 0.0)) for part in sums])

    if step == count:
        sums = of_tile(jnp.arange(count))
    else:
        tiles = jnp.minimum(jnp.arange(count + -count % step), count).reshape(-1, step)
        # Derivatives compute a tile again: kept, the tiles would be an array of all pairs.
        sums = jnp.sum(lax.map(jax.checkpoint(of_tile), tiles), axis=0)
    equiangle, equiangle_head, log, log_square, cdnv = sums / (classes * others)
    generalised = jnp.maximum(log_square - jnp.square(log), 0.0)
    generalised = jnp.where(jnp.isinf(log), jnp.inf, generalised)
    return _Pairs(equiangle, equiangle_head, generalised, cdnv)
