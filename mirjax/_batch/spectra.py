"""What the spectrum of a representation says: ranks of several definitions, and its decay."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.classes import means_by_class
from mirjax._batch.entropy import centred, entropy_of, shares, unit_trace
from mirjax._batch.gram import safe_sqrt, small_side
from mirjax._batch.joint import head_coordinates
from mirjax._linalg.decompositions import eigh, noise_of, svd, triangle
from mirjax._linalg.decompositions import singular_values as singular_values_of
from mirjax._linalg.eigenvalues import eigenvalues as eigenvalues_of
from mirjax._linalg.precision import matmul, total
from mirjax._linalg.rounding import power_of_two

# What RankMe and LiDAR add to each share of the spectrum.
_OFFSET = 1e-7


class Spectra(NamedTuple):
    """Measures of the spectrum of a representation, each as in the function of the same name.

    With `σ` the singular values of the features as they are and `λ` the eigenvalues of their
    covariance:

    Attributes:
        eigenvalues: `λ`, largest first.
        rankme: `exp(H(σ / Σσ))`.
        stable_rank: `Σσ² / σ_1²`.
        participation_ratio: `(Σλ)² / Σλ²`.
        participation_ratio_debiased: its estimate for the population, without the bias of n.
        nesum: `Σλ / λ_1`.
        alpha_req: minus the slope of `log λ_k` over `log k`.
        lidar: the rank of what separates the classes; None without labels.
        effective_rank: `mirjax.effective_rank`, of unit rows, not centred.
        effective_rank_centred: the same of centred rows.
    """

    eigenvalues: Float[Array, "*batch k"] | None
    rankme: Float[Array, "*batch"] | None
    stable_rank: Float[Array, "*batch"] | None
    participation_ratio: Float[Array, "*batch"] | None
    participation_ratio_debiased: Float[Array, "*batch"] | None
    nesum: Float[Array, "*batch"] | None
    alpha_req: Float[Array, "*batch"] | None
    lidar: Float[Array, "*batch"] | None
    effective_rank: Float[Array, "*batch"] | None
    effective_rank_centred: Float[Array, "*batch"] | None


class Rows(NamedTuple):
    """Rows in units of their largest entry, a power of two, and how the weight is distributed.

    Attributes:
        rows: `[n, d]`, zero where the weight is 0.
        share: `[n]`, with the sum 1.
        scale: the unit.
        size: the largest entry before the mean was subtracted, in this unit.
    """

    rows: Float[Array, "n d"]
    share: Float[Array, " n"]
    scale: Float[Array, ""]
    size: Float[Array, ""]

    @property
    def weighted(self) -> Float[Array, "n d"]:
        """Rows whose scatter is that of all samples, divided by their weight."""
        return safe_sqrt(self.share)[:, None] * self.rows


def prepared(features: Array, weights: Array, *, centre: bool) -> Rows:
    """The samples that count, less their mean if they are to be centred."""
    share = shares(weights)
    counted = (share != 0)[:, None]
    rows = jnp.where(counted, features, 0.0)
    scale = power_of_two(jnp.max(jnp.abs(rows)))
    rows = rows / scale
    size = lax.stop_gradient(jnp.max(jnp.abs(rows)))
    if centre:
        rows = centred(rows, share)
    return Rows(rows, share, scale, size)


def smooth_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    """`exp(-Σ q log q)` with `q = p + 1e-7` for the shares `p` of non-negative values."""
    whole = jnp.sum(values)
    share = values / jnp.where(whole == 0, 1.0, whole) + _OFFSET
    return jnp.exp(-total(share * jnp.log(share)))


def rank_of_order(matrix: Float[Array, "k k"], order: float) -> Float[Array, ""]:
    """`exp` of the entropy of a positive semi-definite matrix of any trace, 1 for a zero matrix."""
    return jnp.exp(entropy_of(unit_trace(matrix), order))


def decay(values: Float[Array, " k"], rounding: Array, first: int, last: int) -> Float[Array, ""]:
    """Minus the slope of `log λ_k` over `log k`, each k with the weight `1 / k`.

    Values up to `rounding` are no part of the range; NaN where fewer than two are left.
    """
    number = jnp.arange(1, len(values) + 1)
    kept = (number >= first) & (number <= last) & ~(values <= rounding)
    number = number.astype(values.dtype)
    weight = jnp.where(kept, 1 / number, 0.0)
    weight = weight / jnp.sum(weight)
    x, y = jnp.log(number), jnp.log(jnp.where(kept, values, 1.0))
    x = x - jnp.sum(weight * x)
    y = y - jnp.sum(weight * y)
    slope = jnp.sum(weight * x * y) / jnp.sum(weight * jnp.square(x))
    return jnp.where(jnp.sum(kept) < 2, jnp.nan, -slope)


def rankme_of(rows: Rows) -> Array:
    """RankMe of rows that are not centred."""
    return smooth_rank(singular_values_of(rows.weighted))


def spectrum_of(rows: Rows, first: int, last: int) -> tuple[Array, Array]:
    """The eigenvalues of the covariance of centred rows, in their own units, and α-ReQ."""
    values = singular_values_of(rows.weighted)
    # Each entry is known up to half a spacing of the largest, whatever was subtracted since.
    entries = 2 * float(jnp.finfo(values.dtype).eps) * rows.size
    rounding = lax.stop_gradient(jnp.maximum(noise_of(values), entries))
    decays = decay(jnp.square(values), jnp.square(rounding), first, last)
    return jnp.square(values * rows.scale), decays


def participation_of(rows: Rows) -> Array:
    """The participation ratio of centred rows."""
    return rank_of_order(small_side(rows.weighted), 2)


def largest_share_of(rows: Rows) -> Array:
    """The trace over the largest eigenvalue: NESum of centred rows, stable rank of others."""
    return rank_of_order(small_side(rows.weighted), jnp.inf)


def debiased_participation_of(rows: Rows, centre: bool) -> Array:
    r"""The participation ratio from sums over different samples only.

    With `K = Z Zᵀ`: `E K_ij²` less its other terms over quadruples of different samples is an
    unbiased estimate of `tr Σ²`, and that of `‖z_i - z_j‖² ‖z_k - z_l‖² / 4` of `(tr Σ)²`.
    """
    z, w = rows.rows, rows.share
    samples = jnp.sum(w > 0)
    g = jnp.sum(jnp.square(z), axis=1)
    once, twice, thrice = w, jnp.square(w), w * jnp.square(w)
    # Over all other samples j: the sums of `w_j^a K_ij` and of `w_j^a K_ij²`, on the smaller side.
    if len(z) <= z.shape[1]:
        kernel = matmul(z, z.T)
        kernel = kernel - jnp.diag(jnp.diagonal(kernel))
        linear = [matmul(kernel, power) for power in (once, twice)]
        squares = [matmul(jnp.square(kernel), power) for power in (once, twice, thrice)]
    else:
        linear = [matmul(z, matmul(p, z)) - p * g for p in (once, twice)]
        squares = [
            jnp.sum(matmul(z, matmul((p[:, None] * z).T, z)) * z, axis=1) - p * jnp.square(g)
            for p in (once, twice, thrice)
        ]
    # Sums of powers of the weights: of all samples, and of all but i.
    s1, s2, s3, s4 = (total(w**a) for a in (1, 2, 3, 4))
    if not centre:
        apart = jnp.square(total(once * g)) - total(twice * jnp.square(g))
        return jnp.where(samples < 2, jnp.nan, apart / total(once * squares[0]))
    quadruples = s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4
    # `Σ w_i w_j K_ij²` over pairs, times the weight of the pairs that are left for k and l.
    rest = (s1**2 - s2) - 2 * s1 * w + 2 * twice
    pairs = total(once * rest * squares[0])
    pairs += total(-2 * s1 * once * squares[1] + 2 * twice * squares[1] + 2 * once * squares[2])
    # `Σ w_i w_j w_k K_ij K_ik`, times the weight that is left for l.
    shared = once * (s1 - w) * (jnp.square(linear[0]) - squares[1])
    shared = total(shared - 2 * once * (linear[0] * linear[1] - squares[2]))
    whole = total(once * linear[0])
    apart = jnp.square(whole) - 4 * total(jnp.square(once * linear[0]))
    apart += 2 * total(twice * squares[1])
    squared = (pairs - 2 * shared + apart) / quadruples
    # Squared distances `D_ij = g_i + g_j - 2 K_ij`, between different samples.
    others = g * (s1 - w) + (total(once * g) - once * g) - 2 * linear[0]
    both = total(twice * jnp.square(g)) * s2 + jnp.square(total(twice * g))
    both -= 2 * total(twice * twice * jnp.square(g))
    both = 2 * both - 8 * total(twice * g * linear[1]) + 4 * total(twice * squares[1])
    trace = jnp.square(total(once * others)) - 4 * total(jnp.square(once * others)) + 2 * both
    return jnp.where(samples < 4, jnp.nan, trace / 4 / quadruples / squared)


def lidar_of(rows: Rows, labels: Array, num_classes: int, delta: float) -> Array:
    """LiDAR of centred rows."""
    z, width = rows.rows, rows.rows.shape[1]
    if len(z) < width:
        z = head_coordinates(z)
    means, weight = means_by_class(z, labels, num_classes, rows.share)
    within = safe_sqrt(rows.share)[:, None] * (z - means[labels])
    between = safe_sqrt(weight)[:, None] * without_noise(means, rows.size)
    fixed = lax.stop_gradient(within)
    # Of many rows the triangle has the same spectrum, and no vector for each row.
    _, values, right = svd(triangle(fixed) if len(fixed) > 2 * fixed.shape[1] else fixed)
    values = jnp.where(values <= noise_of(values), 0.0, values)
    ridge = ridge_of(delta, rows.scale)

    def scatter(x: Array) -> Array:
        return matmul(within.T, matmul(within, x))

    return smooth_rank_of_ratio(between, scatter, jnp.square(values), right.T, ridge, width)


def without_noise(means: Float[Array, "c k"], size: Array) -> Float[Array, "c k"]:
    """Centred class means, 0 where they differ from the mean of all by no more than rounding."""
    rounding = 8 * float(jnp.finfo(means.dtype).eps) * size
    return jnp.where(jnp.max(jnp.abs(means), axis=1, keepdims=True) <= rounding, 0.0, means)


def ridge_of(delta: float, scale: Array) -> Array:
    """`delta` in units of `scale`, as far as its dtype can hold it."""
    limits = jnp.finfo(scale.dtype)
    return jnp.clip(delta / scale / scale, 1e6 * float(limits.tiny), 1e-6 * float(limits.max))


def smooth_rank_of_ratio(
    between: Float[Array, "c k"],
    scatter: Callable[[Array], Array],
    values: Float[Array, " k"],
    vectors: Float[Array, "k k"],
    ridge: Array,
    width: int,
) -> Array:
    """`smooth_rank` of `Σ_w^{-1/2} Σ_b Σ_w^{-1/2}` with a ridge on `Σ_w`.

    Args:
        between: `[c, k]`, rows with the scatter `Σ_b`.
        scatter: `x -> Σ_w x`.
        values: `[k]`, the eigenvalues of `Σ_w`.
        vectors: `[k, k]`, its eigenvectors as columns.
        ridge: what is added to each eigenvalue.
        width: d, which may be more than k: all other eigenvalues are 0.
    """
    # Relative to the larger of both, so that nothing overflows at any scale.
    unit = jnp.maximum(ridge, lax.stop_gradient(values[0]))
    unit = jnp.where(unit == 0, 1.0, unit)
    inverse = 1 / (lax.stop_gradient(values) / unit + ridge / unit)
    apart = between.T if len(between) <= between.shape[1] else head_coordinates(between.T)
    solved = lax.custom_linear_solve(
        lambda x: scatter(x) / unit + ridge / unit * x,
        apart,
        lambda _, b: matmul(vectors, inverse[:, None] * matmul(vectors.T, b)),
        symmetric=True,
    )
    ratio = matmul(apart.T, solved)
    ratio = 0.5 * (ratio + ratio.T)
    trace = jnp.trace(ratio)
    entropy = _smooth_entropy(ratio / jnp.where(trace == 0, 1.0, trace))
    missing = width - len(ratio)
    return jnp.exp(entropy - missing * _OFFSET * jnp.log(_OFFSET))


@jax.custom_jvp
def _smooth_entropy(matrix: Float[Array, "k k"]) -> Array:
    values = jnp.maximum(eigenvalues_of(matrix), 0.0) + _OFFSET
    # A zero matrix has no eigenvalues to polish.
    values = jnp.where(jnp.trace(matrix) == 0, _OFFSET, values)
    return -total(values * jnp.log(values))


@_smooth_entropy.defjvp
def _smooth_entropy_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    vectors, values = eigh(matrix)
    slopes = -jnp.log(jnp.maximum(values, 0.0) + _OFFSET) - 1
    gradient = matmul(vectors * slopes[None, :], vectors.T)
    return _smooth_entropy(matrix), total(gradient * tangent)
