"""Normalised rows and Gram matrices, from which the metrics of a batch start."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._checks import ArrayLike, as_float
from mirjax._linalg.precision import matmul
from mirjax._mesh import automatic


def normalize_rows(features: Float[ArrayLike, "*batch n d"], /) -> Float[Array, "*batch n d"]:
    """Divides each row by its L2 norm; a zero row stays zero, with zero derivative.

    Args:
        features: `[..., n, d]`, with rows of any scale (1e-20 as well as 1e20 in float32).

    Returns:
        `[..., n, d]` in float32, or in float64 for float64 input.

    Raises:
        TypeError, ValueError: the dtype or the number of axes is wrong.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> mirjax.normalize_rows(jnp.array([[3e20, 4e20], [0.0, 0.0]]))
        Array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """
    features = as_float(features, "features", axes="n d")
    # Squares of the raw entries could overflow or underflow. The result does not depend on the
    # scale, so the scale needs no derivative.
    scale = lax.stop_gradient(jnp.max(jnp.abs(features), axis=-1, keepdims=True))
    empty = scale == 0
    rows = features / jnp.where(empty, 1.0, scale)
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    return jnp.where(empty, 0.0, rows / jnp.sqrt(jnp.where(empty, 1.0, squares)))


def gram(features: Float[ArrayLike, "*batch n d"], /) -> Float[Array, "*batch n n"]:
    r"""Gram matrix of the normalised rows, `G(Z) = Ẑ Ẑᵀ` with `Z = features`.

    It is positive semi-definite with ones on the diagonal; a zero row of the features gives a zero
    row and column, a row with NaN a row and column of NaN. Products run at full precision on every
    backend. `O(n² d)`; differentiable, with derivative 0 at zero rows.

    Args:
        features: `[..., n, d]`, one sample per row.

    Returns:
        `[..., n, n]`, entries in [-1, 1].

    Raises:
        TypeError, ValueError: the dtype or the number of axes is wrong.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> mirjax.gram(jnp.array([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]]))
        Array([[1., 0., 1.],
               [0., 1., 0.],
               [1., 0., 1.]], dtype=float32)

    Source: Song et al. 2024 (arXiv 2406.03999), definition of the Gram matrix.
    """
    rows = normalize_rows(features)
    return automatic(_products, keeps_rows=True)(rows)


def _products(rows: Float[Array, "*batch n d"]) -> Float[Array, "*batch n n"]:
    return matmul(rows, jnp.swapaxes(rows, -1, -2))


def safe_sqrt(x: Array) -> Array:
    """`√x` with derivative 0 instead of infinity at 0; NaN below 0."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))


def small_side(rows: Float[Array, "n d"]) -> Array:
    """The smaller of `F Fᵀ` and `Fᵀ F`: they share their non-zero spectrum."""
    return matmul(rows, rows.T) if rows.shape[0] <= rows.shape[1] else matmul(rows.T, rows)
