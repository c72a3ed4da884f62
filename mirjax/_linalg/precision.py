"""Matrix products and sums at the full precision that entropies need."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at full precision, whatever the default of the backend."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def total(x: Array) -> Array:
    """Sum of all entries of a vector or matrix.

    It is computed as products with ones, which accumulate in several lanes: a plain float32 sum of
    10⁴ entries is off by 1e-6, and entropies of low-rank matrices magnify this error.
    """
    while x.ndim:
        x = matmul(x, jnp.ones(x.shape[-1:], x.dtype))
    return x


def missing_from_one(values: Float[Array, " k"]) -> Float[Array, ""]:
    """`1 - Σ values` for values with a sum near 1, to the last digit."""
    # Multiples of 2 eps add up exactly, so what is missing from 1 is not lost in rounding.
    unit = 2 * float(jnp.finfo(values.dtype).eps)
    coarse = jnp.round(values / unit) * unit
    return (1 - jnp.sum(coarse)) - jnp.sum(values - coarse)


def mixedness(matrix: Float[Array, "k k"]) -> Float[Array, ""]:
    """`1 - tr(A²)` of a unit-trace matrix without cancellation: exactly 0 for equal rows."""
    # 1 is the square of the trace, so the difference can be taken entry by entry.
    diagonal = jnp.diagonal(matrix)
    return total(diagonal[:, None] * diagonal[None, :] - jnp.square(matrix))


def purity(matrix: Float[Array, "k k"]) -> Float[Array, ""]:
    """`tr(A²)` of a unit-trace matrix, in the form that loses less to rounding."""
    mixed = mixedness(matrix)
    return jnp.where(mixed < 0.5, 1 - mixed, total(jnp.square(matrix)))


def collision_entropy(mixed: Float[Array, ""], squares: Float[Array, ""]) -> Float[Array, ""]:
    """`-log tr(A²)` from `1 - tr(A²)` and `tr(A²)`, accurate from rank one to equal eigenvalues."""
    is_near_one = mixed < 0.5
    # The branch that is not taken gets a harmless number, or its derivative could be NaN.
    near_one = -jnp.log1p(-jnp.where(is_near_one, mixed, 0.0))
    spread = -jnp.log(jnp.where(is_near_one, 1.0, squares))
    # `0.0 +` turns -0.0 into 0.0.
    return 0.0 + jnp.where(is_near_one, near_one, spread)
