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

from mirjax._linalg.decompositions import eigh
from mirjax._linalg.eigenvalues import eigenvalues, polish
from mirjax._linalg.entropy_range import entropy_range
from mirjax._linalg.precision import matmul, mixedness, total
from mirjax._linalg.products import entropy_by_products

EntropyMethod = Literal["eigh", "products", "auto"]
"""How an entropy of order 1 is computed: by decomposition, by matrix products, or by the faster."""


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
    return _sum_of_terms(polish(values, matrix), matrix, order), gradient


@_value_and_gradient.defjvp
def _value_and_gradient_jvp(order: float, primals: tuple[Array], tangents: tuple[Array]):
    # Daleckii-Krein: in the eigenbasis the derivative of a matrix function is an entrywise product
    # with divided differences, which stay finite where eigenvalues coincide.
    (matrix,), (tangent,) = primals, tangents
    vectors, values = eigh(matrix)
    # A null eigenvalue that is kept does harm here: the factor that vanishes has a derivative.
    kept = _in_range(values, order, margin=values.shape[0])
    gradient = matmul(vectors * _slope(values, kept, order)[None, :], vectors.T)
    value = _sum_of_terms(polish(values, matrix), matrix, order)
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
