"""Products and sums at full precision, which entropies need."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at full precision, whatever the backend's default is."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def total(x: Array) -> Array:
    """Sum of all entries of a vector or matrix.

    As products, which accumulate in several lanes: a plain float32 sum of 10⁴ entries is off by
    1e-6, which entropies of low-rank matrices magnify.
    """
    while x.ndim:
        x = matmul(x, jnp.ones(x.shape[-1:], x.dtype))
    return x


def mixedness(matrix: Float[Array, "k k"]) -> Float[Array, ""]:
    """`1 - tr(A²)` of a unit-trace matrix, without cancellation: exactly 0 for equal rows."""
    diagonal = jnp.diagonal(matrix)
    return total(diagonal[:, None] * diagonal[None, :] - jnp.square(matrix))
