"""Decompositions that are safe to batch on a CPU, and the pseudo-inverse.

jaxlib's CPU kernels split a batch over XLA's thread pool and wait inside it. Two batched
decompositions that run at the same time can fill a small pool with waiting threads, and the program
hangs (seen with jaxlib 0.10 on 2 cores). So a batch becomes a loop on the CPU, and stays a batch
elsewhere.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._linalg.precision import matmul

Arrays = tuple[Array, ...]


def _looped_on_cpu(decompose: Callable[[Array], Arrays]) -> Callable[[Array], Arrays]:
    @jax.custom_batching.custom_vmap
    def single(matrix: Array) -> Arrays:
        return decompose(matrix)

    @single.def_vmap
    def batched(axis_size: int, in_batched: list[bool], matrices: Array):
        del axis_size, in_batched  # there is one argument, and it is batched
        # The loop calls `single`, so that several batch axes become nested loops.
        result = lax.platform_dependent(
            matrices, cpu=lambda stack: lax.map(single, stack), default=jax.vmap(decompose)
        )
        return result, jax.tree.map(lambda _: True, result)

    return single


@_looped_on_cpu
def _eigh(matrix: Array) -> Arrays:
    return tuple(lax.linalg.eigh(matrix, symmetrize_input=False))


@_looped_on_cpu
def _tridiagonal(matrix: Array) -> Arrays:
    return tuple(lax.linalg.tridiagonal(matrix, lower=True)[1:3])


@_looped_on_cpu
def _svd(matrix: Array) -> Arrays:
    return tuple(lax.linalg.svd(matrix, full_matrices=False))


@_looped_on_cpu
def _singular_values(matrix: Array) -> Arrays:
    return (lax.linalg.svd(matrix, full_matrices=False, compute_uv=False),)


@_looped_on_cpu
def _triangle(matrix: Array) -> Arrays:
    return (jnp.linalg.qr(matrix, mode="r"),)


def eigh(matrix: Float[Array, "k k"]) -> Arrays:
    """Eigenvectors `[k, k]` and ascending eigenvalues `[k]`; reads the lower triangle."""
    return _eigh(matrix)


def tridiagonal(matrix: Float[Array, "k k"]) -> Arrays:
    """Diagonal `[k]` and off-diagonal `[k - 1]` of an orthogonally similar tridiagonal matrix."""
    return _tridiagonal(matrix)


def svd(matrix: Float[Array, "m n"]) -> Arrays:
    """Thin singular value decomposition `(u, s, vᵀ)`."""
    return _svd(matrix)


def triangle(matrix: Float[Array, "m n"]) -> Float[Array, "k n"]:
    """A matrix of `k = min(m, n)` rows with the same products of columns."""
    return _triangle(matrix)[0]


def noise_of(values: Float[Array, " k"]) -> Array:
    """Below this, a descending singular value is not told from 0: rounding of the largest.

    It does not depend on the longer side: measured, null values are about one eps of the largest.
    """
    return 8 * len(values) ** 0.5 * float(jnp.finfo(values.dtype).eps) * values[0]


@jax.custom_jvp
def singular_values(matrix: Float[Array, "m n"]) -> Float[Array, " k"]:
    """The `k = min(m, n)` singular values, descending.

    Once differentiable. The derivative of one that is 0 up to rounding, which has no direction, is
    0; where values coincide, it is right for what treats them alike.
    """
    return _singular_values(matrix)[0]


@singular_values.defjvp
def _singular_values_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    left, values, right = svd(primals[0])
    derivative = jnp.sum(left * matmul(tangents[0], right.T), axis=0)
    return values, jnp.where(values > noise_of(values), derivative, 0.0)


@jax.custom_jvp
def pinv(matrix: Float[Array, "m n"], rank: Array, floor: Array) -> Float[Array, "n m"]:
    """Moore-Penrose inverse; its derivative is valid while the rank does not change.

    The rank is known to be at most `rank`. Singular values beyond that number count as 0, and so do
    those below `floor` or below the rounding error of the largest.
    """
    left, values, right = svd(matrix)
    rounding = max(matrix.shape) * float(jnp.finfo(matrix.dtype).eps) * values[0]
    kept = (values > jnp.maximum(rounding, floor)) & (jnp.arange(len(values)) < rank)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)
    return matmul(right.T * inverse[None, :], left.T)


@pinv.defjvp
def _pinv_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    # Golub & Pereyra 1973, for constant rank. Differentiating the SVD itself would divide by
    # differences of singular values, which vanish where they coincide. In this order of products no
    # matrix has the longer side twice.
    (matrix, rank, floor), (tangent, *_) = primals, tangents
    inverse = pinv(matrix, rank, floor)

    def off_range(rows: Array) -> Array:
        return rows - matmul(matmul(rows, matrix), inverse)

    def off_rows(columns: Array) -> Array:
        return columns - matmul(inverse, matmul(matrix, columns))

    derivative = -matmul(inverse, matmul(tangent, inverse))
    if matrix.shape[0] >= matrix.shape[1]:
        derivative += matmul(matmul(inverse, inverse.T), off_range(tangent.T))
        derivative += matmul(off_rows(matmul(tangent.T, inverse.T)), inverse)
    else:
        derivative += matmul(inverse, matmul(inverse.T, off_range(tangent.T)))
        derivative += off_rows(matmul(tangent.T, matmul(inverse.T, inverse)))
    return inverse, derivative
