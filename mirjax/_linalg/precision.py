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


def mixedness(matrix: Float[Array, "k k"]) -> Float[Array, ""]:
    """`1 - tr(A²)` of a unit-trace matrix without cancellation: exactly 0 for equal rows."""
    # 1 is the square of the trace, so the difference can be taken entry by entry.
    diagonal = jnp.diagonal(matrix)
    return total(diagonal[:, None] * diagonal[None, :] - jnp.square(matrix))
