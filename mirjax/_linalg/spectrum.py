"""Functions of the spectrum of a positive semi-definite matrix of unit trace.

Every function here takes *one* symmetric matrix `[k, k]` of trace 1 (the callers normalise and
`vmap`). It is twice differentiable at any rank without added jitter, because the derivatives are
taken on the range of the matrix, where `log` is finite.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._linalg.decompositions import eigh, tridiagonal
from mirjax._linalg.entropy_range import entropy_range
from mirjax._linalg.precision import matmul, mixedness, total
from mirjax._linalg.products import entropy_by_products

EntropyMethod = Literal["eigh", "products", "auto"]
"""How an entropy of order 1 is computed: by decomposition, by matrix products, or by the faster."""

# Up to this side one call of the dense solver is cheaper than tridiagonalisation and bisection.
_DENSE_SIDE = 40
# Bisection continues this many bits below eps * ||T||, since hundreds of tiny eigenvalues add up.
_EXTRA_BITS = 6


def eigenvalues(matrix: Float[Array, "k k"]) -> Float[Array, " k"]:
    """Eigenvalues of a symmetric matrix, ascending; a NaN in the matrix makes all of them NaN."""
    if matrix.shape[-1] <= _DENSE_SIDE:
        return _dense_eigenvalues(matrix)
    return lax.platform_dependent(matrix, cpu=_tridiagonal_eigenvalues, default=_dense_eigenvalues)


def _dense_eigenvalues(matrix: Array) -> Array:
    return _polish(eigh(matrix)[1], matrix)


def _tridiagonal_eigenvalues(matrix: Array) -> Array:
    # JAX's dense solver always computes the eigenvectors too, which doubles the cost.
    values = _bisect(*tridiagonal(matrix))
    # The solver reads one triangle: a NaN in the other one must show too.
    return jnp.where(jnp.isfinite(jnp.sum(matrix)), values, jnp.nan)


def _bisect(diagonal: Array, off_diagonal: Array) -> Array:
    """Eigenvalues of a symmetric tridiagonal matrix by Sturm counts.

    `jax.scipy.linalg.eigh_tridiagonal` stops at `eps * ||T||` for each eigenvalue. Summed over the
    null space of a low-rank matrix of side 600, that gives an error of 1e-4 in a float32 entropy.
    """
    side, dtype = diagonal.shape[0], diagonal.dtype
    finfo = jnp.finfo(dtype)
    squared = jnp.square(off_diagonal)
    # Gershgorin: every eigenvalue lies in an interval around a diagonal entry.
    reach = jnp.pad(jnp.abs(off_diagonal), (1, 1))
    radius = reach[1:] + reach[:-1]
    low, high = jnp.min(diagonal - radius), jnp.max(diagonal + radius)
    slack = 2 * side * finfo.eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    pivot = finfo.tiny * jnp.maximum(1.0, jnp.max(squared))
    index = jnp.arange(side)

    def count_below(x: Array) -> Array:
        # As many eigenvalues lie below x as there are negative pivots in the LDLᵀ of T - x.
        def step(carry: tuple[Array, Array], entry: tuple[Array, Array]):
            previous, count = carry
            centre, coupling = entry
            value = centre - x - coupling / previous
            value = jnp.where(jnp.abs(value) < pivot, -pivot, value)
            return (value, count + (value < 0).astype(count.dtype)), None

        start = jnp.full((side,), jnp.inf, dtype), jnp.zeros((side,), index.dtype)
        entries = diagonal, jnp.pad(squared, (1, 0))
        (_, count), _ = lax.scan(step, start, entries, unroll=4)
        return count

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        lower, upper = bracket
        middle = 0.5 * (lower + upper)
        below = count_below(middle) <= index
        return jnp.where(below, middle, lower), jnp.where(below, upper, middle)

    bracket = jnp.full((side,), low - slack), jnp.full((side,), high + slack)
    lower, upper = lax.fori_loop(0, finfo.nmant + 2 + _EXTRA_BITS, halve, bracket)
    return 0.5 * (lower + upper)


def spectral_sum(
    matrix: Float[Array, "k k"], order: float | int, method: EntropyMethod = "eigh"
) -> Float[Array, ""]:
    r"""`-Σ λ log λ` for order 1, otherwise `Σ (λ^order - λ)`, from which an entropy follows.

    First and second derivatives are exact on the range of `matrix` (for order >= 1, eigenvalues
    above `eps · λ_max`). `O(k³)`. Orders other than 1 always use `"eigh"`.
    """
    return _spectral_sum(matrix, order, method if order == 1 else "eigh")


def _by(method: EntropyMethod, matrix: Array, eigh: Callable, products: Callable) -> Any:
    if method == "auto":
        # Time by products over time by decomposition, both with the gradient: on two CPUs 0.8 to
        # 1.05 up to a side of 64, and more beyond; on an H100 0.45 at 64 and 0.16 at 512; on an
        # H200 0.3 to 0.5 from 16 to 128 (`benchmarks/README.md`).
        return lax.platform_dependent(matrix, cpu=eigh, default=products)
    return products(matrix) if method == "products" else eigh(matrix)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _spectral_sum(matrix: Array, order: float, method: EntropyMethod) -> Array:
    return _by(
        method,
        matrix,
        eigh=lambda m: _sum_of_terms(eigenvalues(m), m, order),
        products=lambda m: entropy_by_products(m)[0],
    )


@_spectral_sum.defjvp
def _spectral_sum_jvp(
    order: float, method: EntropyMethod, primals: tuple[Array], tangents: tuple[Array]
):
    value, gradient = _by(
        method,
        primals[0],
        eigh=lambda m: _value_and_gradient(m, order),
        products=entropy_by_products,
    )
    return value, total(gradient * tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _value_and_gradient(matrix: Array, order: float) -> tuple[Array, Array]:
    vectors, values = eigh(matrix)
    return _value_and_gradient_of(vectors, values, matrix, order)


def _value_and_gradient_of(
    vectors: Array, values: Array, matrix: Array, order: float
) -> tuple[Array, Array]:
    slopes = _slope(values, _in_range(values, order), order)
    gradient = matmul(vectors * slopes[None, :], vectors.T)
    return _sum_of_terms(_polish(values, matrix), matrix, order), gradient


@_value_and_gradient.defjvp
def _value_and_gradient_jvp(order: float, primals: tuple[Array], tangents: tuple[Array]):
    # Daleckii-Krein: in the eigenbasis the derivative of a matrix function is an entrywise product
    # with divided differences, which stay finite where eigenvalues coincide.
    (matrix,), (tangent,) = primals, tangents
    vectors, values = eigh(matrix)
    # A null eigenvalue that is kept does harm here: the factor that vanishes has a derivative.
    kept = _in_range(values, order, margin=values.shape[0])
    gradient = matmul(vectors * _slope(values, kept, order)[None, :], vectors.T)
    value = _sum_of_terms(_polish(values, matrix), matrix, order)
    rotated = matmul(vectors.T, matmul(tangent, vectors))
    differences = _divided_differences(values, kept, order)
    d_gradient = matmul(vectors, matmul(differences * rotated, vectors.T))
    return (value, gradient), (total(gradient * tangent), d_gradient)


def _in_range(values: Array, order: float, margin: float | None = None) -> Array:
    # For order >= 1 a null eigenvalue that is kept does no harm: a factor F of the matrix vanishes
    # there, and so does F times a logarithm. Below order 1 the terms are steep at 0, so a larger
    # margin decides what counts as rank.
    if margin is None:
        margin = 1.0 if order >= 1 else values.shape[0]
    return values > margin * jnp.finfo(values.dtype).eps * values[-1]


def _sum_of_terms(values: Array, matrix: Array, order: float) -> Array:
    if order < 1:
        kept = _in_range(values, order)
        safe = jnp.where(kept, values, 1.0)
        return total(jnp.where(kept, safe * jnp.expm1((order - 1) * jnp.log(safe)), -values))
    # The odd extension: rounding scatters null eigenvalues around 0, and their terms cancel.
    logs = jnp.log(jnp.where(values == 0, 1.0, jnp.abs(values)))
    if order != 1:
        return total(values * jnp.expm1((order - 1) * logs))
    return jnp.clip(-total(values * logs), *entropy_range(mixedness(matrix), matrix.shape[0]))


def _polish(values: Array, matrix: Array) -> Array:
    """Corrects eigenvalues, within their rounding error, to the known trace and Frobenius norm.

    A dense solver finds them up to a few `eps · λ_max`; both sums are known up to rounding. A
    common factor corrects the large ones, a common shift the many small ones.
    """
    squares = total(jnp.square(values))
    mixed = mixedness(matrix)
    # Each form of the purity is used where it loses less to rounding.
    purity = jnp.where(mixed < 0.5, 1 - mixed, total(jnp.square(matrix)))
    values = values + values * (0.5 * (purity - squares) / squares)
    # Multiples of 2 eps add up exactly, so what is missing from 1 is not lost in rounding.
    unit = 2 * jnp.finfo(values.dtype).eps
    coarse = jnp.round(values / unit) * unit
    missing = (1 - jnp.sum(coarse)) - jnp.sum(values - coarse)
    return values + missing / values.shape[0]


def _slope(values: Array, kept: Array, order: float) -> Array:
    safe = jnp.where(kept, values, 1.0)
    if order == 1:
        slope = -jnp.log(safe) - 1
    else:
        slope = order * jnp.exp((order - 1) * jnp.log(safe)) - 1
    return jnp.where(kept, slope, 0.0)


def _divided_differences(values: Array, kept: Array, order: float) -> Array:
    """`(g(λi) - g(λj)) / (λi - λj)` for the slope `g`, with `g = 0` off the range."""
    slopes = _slope(values, kept, order)
    safe = jnp.where(kept, values, 1.0)
    base = safe[None, :]
    ratio = (safe[:, None] - base) / base
    equal = ratio == 0
    # log1p and expm1 of the relative difference: nothing cancels for close eigenvalues.
    log_ratio = jnp.log1p(jnp.where(equal, 1.0, ratio))
    if order == 1:
        rise, limit = -log_ratio, -1.0
    else:
        power = order * jnp.exp((order - 1) * jnp.log(base))
        rise, limit = power * jnp.expm1((order - 1) * log_ratio), power * (order - 1)
    inside = jnp.where(equal, limit, rise / jnp.where(equal, 1.0, ratio)) / base
    # Between range and null space (λj = 0, g = 0): a change that keeps the rank.
    across = slopes[:, None] / safe[:, None] + slopes[None, :] / safe[None, :]
    both, either = kept[:, None] & kept[None, :], kept[:, None] ^ kept[None, :]
    return jnp.where(both, inside, jnp.where(either, across, 0.0))


def entropy_rounding(dtype: jnp.dtype) -> float:
    """How far rounding can move an entropy below 1 nat, or a larger one per nat."""
    return 2e-5 if jnp.finfo(dtype).bits == 32 else 1e-12
