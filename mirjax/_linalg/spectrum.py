"""Entropies of the spectrum of a positive semi-definite matrix of unit trace.

Every function here takes *one* symmetric matrix `[k, k]` of trace 1 (the callers normalise and
`vmap`). It is twice differentiable at any rank without added jitter, because the derivatives are
taken on the range of the matrix, where `log` is finite.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._linalg.decompositions import eigh
from mirjax._linalg.eigenvalues import eigenvalues, polish
from mirjax._linalg.entropy_range import entropy_range
from mirjax._linalg.precision import collision_entropy, matmul, mixedness, total
from mirjax._linalg.products import entropy_by_products

EntropyMethod = Literal["eigh", "products", "auto"]
"""How an entropy of order 1 is computed: by decomposition, by matrix products, or by the faster."""


def spectral_entropy(
    matrix: Float[Array, "k k"],
    order: float | int,
    method: EntropyMethod = "eigh",
    eps: Array | None = None,
) -> Float[Array, ""]:
    r"""`-Σ λ log λ` for order 1, otherwise `log(Σ λ^order) / (1 - order)`.

    Order 2 needs no eigenvalues, and order infinity is `-log λ_max`. The method matters for order 1
    only. First and second derivatives are exact on the range of `matrix` (for order >= 1,
    eigenvalues above `eps · λ_max`), for changes that keep the trace. Orders below 1 count
    eigenvalues above `k · eps · λ_max` as rank and, where the data are known to the relative
    spacing `eps` only, those above the rounding that this allows. `O(k³)`.
    """
    if order == 2:
        return collision_entropy(mixedness(matrix), total(jnp.square(matrix)))
    if eps is None:
        eps = jnp.asarray(jnp.finfo(matrix.dtype).eps, matrix.dtype)
    return _spectral_entropy(matrix, eps, order, method if order == 1 else "eigh")


def _by(method: EntropyMethod, matrix: Array, eigh: Callable, products: Callable) -> Any:
    if method == "auto":
        # Time by products over time by decomposition, both with the gradient: on two CPUs 0.8 to
        # 1.05 up to a side of 64, and more beyond; on an H100 0.45 at 64 and 0.16 at 512; on an
        # H200 0.3 to 0.5 from 16 to 128 (`benchmarks/README.md`).
        return lax.platform_dependent(matrix, cpu=eigh, default=products)
    return products(matrix) if method == "products" else eigh(matrix)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _spectral_entropy(matrix: Array, eps: Array, order: float, method: EntropyMethod) -> Array:
    return _by(
        method,
        matrix,
        eigh=lambda m: _entropy(eigenvalues(m), m, eps, order),
        products=lambda m: entropy_by_products(m)[0],
    )


@_spectral_entropy.defjvp
def _spectral_entropy_jvp(
    order: float, method: EntropyMethod, primals: tuple[Array, Array], tangents: tuple[Array, Array]
):
    matrix, eps = primals
    value, gradient = _by(
        method,
        matrix,
        eigh=lambda m: _value_and_gradient(m, eps, order),
        products=entropy_by_products,
    )
    return value, total(gradient * tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _value_and_gradient(matrix: Array, eps: Array, order: float) -> tuple[Array, Array]:
    vectors, values = eigh(matrix)
    slopes = _slopes(values, _in_range(values, eps, order), order)
    gradient = matmul(vectors * slopes.entropy[None, :], vectors.T)
    return _entropy(polish(values, matrix), matrix, eps, order), gradient


@_value_and_gradient.defjvp
def _value_and_gradient_jvp(
    order: float, primals: tuple[Array, Array], tangents: tuple[Array, Array]
):
    # Daleckii-Krein: in the eigenbasis the derivative of a matrix function is an entrywise product
    # with divided differences, which stay finite where eigenvalues coincide.
    (matrix, eps), (tangent, _) = primals, tangents
    vectors, values = eigh(matrix)
    # A null eigenvalue that is kept does harm here: the factor that vanishes has a derivative.
    kept = _in_range(values, eps, order, margin=values.shape[0])
    slopes = _slopes(values, kept, order)
    gradient = matmul(vectors * slopes.entropy[None, :], vectors.T)
    value = _entropy(polish(values, matrix), matrix, eps, order)
    rotated = matmul(vectors.T, matmul(tangent, vectors))
    differences = _divided_differences(values, kept, order)
    d_gradient = matmul(vectors, matmul(differences * rotated, vectors.T))
    # The divisor of the slopes, a sum over the whole spectrum, changes too.
    d_gradient -= jnp.sum(slopes.log_sum * jnp.diagonal(rotated)) * gradient
    return (value, gradient), (total(gradient * tangent), d_gradient)


def _in_range(values: Array, eps: Array, order: float, margin: float | None = None) -> Array:
    # For order >= 1 a null eigenvalue that is kept does no harm: a factor F of the matrix vanishes
    # there, and so does F times a logarithm. Below order 1 the terms are steep at 0, so a larger
    # margin decides what counts as rank.
    rounding = float(jnp.finfo(values.dtype).eps)
    if margin is None:
        margin = 1.0 if order >= 1 else values.shape[0]
    if order >= 1:
        return values > margin * rounding * values[-1]
    # Entries that are each off by half a spacing move an eigenvalue by no more than their norm.
    noise = 0.5 * eps * jnp.sqrt(jnp.sum(jnp.square(values)))
    return values > jnp.maximum(margin * rounding * values[-1], noise)


def _entropy(values: Array, matrix: Array, eps: Array, order: float) -> Array:
    """The entropy of ascending eigenvalues with the sum 1."""
    if order == math.inf:
        # `0.0 -` rather than a minus sign, which can give -0.0.
        near_one = 0.0 - jnp.log1p(-total(values[:-1]))
        return jnp.where(values[-1] > 0.5, near_one, -jnp.log(values[-1]))
    # The odd extension: rounding scatters null eigenvalues around 0, and their terms cancel.
    logs = jnp.log(jnp.where(values == 0, 1.0, jnp.abs(values)))
    if order == 1:
        bounds = entropy_range(mixedness(matrix), total(jnp.square(matrix)), len(values))
        return jnp.clip(-total(values * logs), *bounds)
    growth = jnp.expm1((order - 1) * logs)
    if order < 1:
        growth = jnp.where(_in_range(values, eps, order), growth, 0.0)
    # `Σ (λ^order - λ)`: all terms have the same sign, so nothing cancels even near order 1.
    excess = total(values * growth)
    near_one = 0.0 - jnp.log1p(jnp.where(excess > -0.5, excess, 0.0)) / (order - 1)
    if order < 1:
        return near_one
    # In units of the largest eigenvalue the sum neither underflows nor loses digits to the 1 above.
    # With a sum below 1/2 the order is far enough from 1 for the division.
    scaled = total(jnp.sign(values) * jnp.exp(order * (logs - logs[-1])))
    spread = -(order * logs[-1] + jnp.log(scaled)) / (order - 1)
    return jnp.where(excess > -0.5, near_one, spread)


class _Slopes(NamedTuple):
    """Derivatives along the eigenvalues, 0 off the range.

    Attributes:
        entropy: of the entropy, up to a constant, which does not matter for a fixed trace.
        log_sum: of the logarithm of the sum that `entropy` is divided by; 0 for order 1.
    """

    entropy: Array
    log_sum: Array


def _slopes(values: Array, kept: Array, order: float) -> _Slopes:
    if order == 1:
        safe = jnp.where(kept, values, 1.0)
        return _Slopes(jnp.where(kept, -jnp.log(safe) - 1, 0.0), jnp.zeros_like(values))
    # In units of the largest eigenvalue no power overflows. The constant is chosen so that the
    # slope of a finite order is 0 at the largest.
    largest = values[-1]
    logs = jnp.log(jnp.where(kept, values / largest, 1.0))
    if order == math.inf:
        # A largest eigenvalue that is repeated, up to rounding, shares the slope.
        tied = _tied(values)
        powers = tied / (largest * jnp.sum(tied))
        slope = -powers
    else:
        divisor = largest * total(jnp.where(kept, jnp.exp(order * logs), 0.0))
        slope = order / (1 - order) * jnp.expm1((order - 1) * logs) / divisor
        powers = order * jnp.exp((order - 1) * logs) / divisor
    return _Slopes(*(jnp.where(kept, part, 0.0) for part in (slope, powers)))


def _tied(values: Array) -> Array:
    """1 for the eigenvalues that equal the largest up to rounding, 0 for the others."""
    margin = values.shape[0] * float(jnp.finfo(values.dtype).eps)
    return (values >= (1 - margin) * values[-1]).astype(values.dtype)


def _divided_differences(values: Array, kept: Array, order: float) -> Array:
    """`(g(λi) - g(λj)) / (λi - λj)` for the slope `g`, with `g = 0` off the range."""
    slopes, safe = _slopes(values, kept, order).entropy, jnp.where(kept, values, values[-1])
    if order == math.inf:
        apart = safe[:, None] - safe[None, :]
        rise = slopes[:, None] - slopes[None, :]
        inside = jnp.where(rise == 0, 0.0, rise / jnp.where(rise == 0, 1.0, apart))
    else:
        # Relative to the larger of the two, so that no power overflows.
        base = jnp.maximum(safe[:, None], safe[None, :])
        ratio = (jnp.minimum(safe[:, None], safe[None, :]) - base) / base
        equal = ratio == 0
        # log1p and expm1 of the relative difference: nothing cancels for close eigenvalues.
        logs = jnp.log(safe)
        far = -jnp.abs(logs[:, None] - logs[None, :])
        log_ratio = jnp.where(ratio < -0.5, far, jnp.log1p(jnp.maximum(ratio, -0.5)))
        if order == 1:
            rise, limit = -log_ratio, -1.0
        else:
            largest = values[-1]
            scaled = jnp.log(safe / largest)
            divisor = largest * total(jnp.where(kept, jnp.exp(order * scaled), 0.0))
            power = order / (1 - order) * jnp.exp((order - 1) * jnp.log(base / largest)) / divisor
            rise, limit = power * jnp.expm1((order - 1) * log_ratio), power * (order - 1)
        inside = jnp.where(equal, limit, rise / jnp.where(equal, 1.0, ratio)) / base
    # Between range and null space (λj = 0, g = 0): a change that keeps the rank.
    across = slopes[:, None] / safe[:, None] + slopes[None, :] / safe[None, :]
    both, either = kept[:, None] & kept[None, :], kept[:, None] ^ kept[None, :]
    return jnp.where(both, inside, jnp.where(either, across, 0.0))
