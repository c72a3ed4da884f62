"""Eigenvalues of a symmetric matrix of unit trace, to the accuracy that entropies need."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._linalg.decompositions import eigh, tridiagonal
from mirjax._linalg.precision import missing_from_one, purity, total

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
    return polish(eigh(matrix)[1], matrix)


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
    slack = 2 * side * float(finfo.eps) * jnp.maximum(jnp.abs(low), jnp.abs(high))
    pivot = float(finfo.tiny) * jnp.maximum(1.0, jnp.max(squared))
    index = jnp.arange(side)

    def count_below(x: Array) -> Array:
        # As many eigenvalues lie below x as there are negative pivots in the LDLᵀ of T - x.
        def step(carry: tuple[Array, Array], entry: tuple[Array, Array]):
            previous, count = carry
            centre, coupling = entry
            value = centre - x - coupling / previous
            value = jnp.where(jnp.abs(value) < pivot, -pivot, value)
            return (value, count + (value < 0).astype(count.dtype)), None

        # Made from x, so that inside `jax.shard_map` it varies over devices as the result does.
        start = jnp.full_like(x, jnp.inf), jnp.zeros_like(x, index.dtype)
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


def polish(values: Array, matrix: Array) -> Array:
    """Corrects eigenvalues, within their rounding error, to the known trace and Frobenius norm.

    A dense solver finds them up to a few `eps · λ_max`; both sums are known up to rounding. A
    common factor corrects the large ones, a common shift the many small ones.
    """
    squares = total(jnp.square(values))
    values = values + values * (0.5 * (purity(matrix) - squares) / squares)
    return values + missing_from_one(values) / values.shape[0]
