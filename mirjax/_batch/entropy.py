"""Matrix entropy of every order, and the effective rank."""

import math

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.gram import normalize_rows, safe_sqrt, small_side
from mirjax._checks import ArrayLike, as_float, entropy_method, sample_weights, square
from mirjax._linalg.precision import mixedness
from mirjax._linalg.spectrum import Method, spectral_sum


def matrix_entropy(
    kernel: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1.0,
    method: Method = "eigh",
) -> Float[Array, "*batch"]:
    r"""Entropy of the spectrum of a positive semi-definite matrix, in nats.

    With `λ` the eigenvalues of `kernel / tr(kernel)`, which sum to 1:

    `H_1 = -Σ λ log λ`,  `H_α = log(Σ λ^α) / (1 - α)` for another `order` α (Rényi),

    where order 1 is the limit. For a Gram matrix with ones on the diagonal the trace is `n`.
    For features rather than a kernel `feature_entropy` is the same number at a lower cost.

    Args:
        kernel: symmetric, positive semi-definite `[..., n, n]`, of any scale and rank.
        order: α, a positive finite Python number. 2 needs no eigendecomposition.
        method: of order 1. `"eigh"` decomposes; `"products"` takes 28 matrix products in float32 (84 in
            float64), one more with the derivative, and no decomposition. `"auto"` decomposes a kernel; from features
            it is `"eigh"` on a CPU and `"products"` elsewhere.

    Returns:
        `[...]`, from 0 (rank one) to `log n`; falls with the order. 0 where the trace is 0. A kernel
        with negative eigenvalues gives a number without meaning (`mirjax.check(kernel=...)` finds
        it), and NaN by products if they are below -1e-5 of the largest, as rounding to half precision makes
        them. One with NaN gives NaN.

    Raises:
        TypeError, ValueError: the kernel is not square, the dtype no float, the order not positive, the
            method unknown or not for this order.

    Cost: `O(n³)` (eigenvalues; with derivatives also eigenvectors; by products the derivative is one product),
    order 2 `O(n²)`.

    Error in float32, in nats: `"eigh"` 1e-5 of the entropy. `"products"` is in exact arithmetic off by at most
    `1.1e-6 + 7e-8 n`; the second part is only there when many eigenvalues lie below a millionth of the largest.
    Measured on a CPU up to n = 2048 it is within 1e-4 of the float64 decomposition of the same matrix near rank one,
    and within 2e-5 of it for the other spectra of `benchmarks/errors.py`.

    Differentiable twice, at repeated eigenvalues too. Where the kernel is singular the entropy has
    no derivative towards higher rank; what is returned is the derivative on the range of the kernel,
    which is exact for anything that comes from features; second derivatives hold for changes that keep the
    rank, and by products for full rank only. Orders below 1 count only eigenvalues
    above `n · eps · λ_max` as rank.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.matrix_entropy(jnp.eye(4)):.4f}")
        1.3863
        >>> print(f"{mirjax.matrix_entropy(jnp.ones((4, 4)), order=2):.4f}")
        0.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix entropy (natural logarithm);
    orders: Giraldo et al. 2014 (arXiv 1211.2459).
    """
    kernel = as_float(kernel, "kernel", axes="n n")
    square(kernel, "kernel")
    _check_order(order)
    entropy_method(method, order)
    method = for_kernels(method)
    kernel = 0.5 * (kernel + jnp.swapaxes(kernel, -1, -2))

    def single(k: Array) -> Array:
        return entropy_of(unit_trace(k), order, method=method)

    return jnp.vectorize(single, signature="(n,n)->()")(kernel)


def feature_entropy(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    order: float | int = 1.0,
    method: Method = "eigh",
) -> Float[Array, "*batch"]:
    r"""`matrix_entropy(gram(features))`, computed on the smaller side, `min(n, d)`.

    Args:
        features: `[..., n, d]`, one sample a row, of any scale.
        weights: non-negative `[..., n]`; `K / n` becomes `√w K √w / Σw`, so that weight 0 drops a
            sample exactly. Constants, unless positive and asked for: the derivative at 0 is taken
            as 0.
        order: α of the Rényi entropy, a positive finite Python number.
        method: `"eigh"`, `"products"` or `"auto"`, see `matrix_entropy`.

    Returns:
        `[...]` in nats, from 0 (all samples in one direction) to `log min(n, d)`. Zero rows count as
        weight 0; 0 if no weight is left; NaN for NaN rows or negative weights.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit, or the method does not.

    Cost: `O(n d min(n, d))`. Differentiable twice at any rank, see `matrix_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.array([[5.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> print(f"{mirjax.feature_entropy(features, weights=jnp.array([1.0, 1.0, 0.0])):.4f}")
        0.6931

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix entropy.
    """
    features = as_float(features, "features", axes="n d")
    _check_order(order)
    entropy_method(method, order)
    weights = sample_weights(weights, features, "features")

    def single(rows: Array, w: Array) -> Array:
        rows, share = unit_rows(rows, w)
        return entropy_of(small_side(rows * safe_sqrt(share)[:, None]), order, method=method)

    return jnp.vectorize(single, signature="(n,d),(n)->()")(features, weights)


def effective_rank(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    method: Method = "eigh",
) -> Float[Array, "*batch"]:
    r"""`exp(H(G(features)))`: how many directions the samples fill evenly.

    Args:
        features: `[..., n, d]`, one sample a row.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        method: `"eigh"`, `"products"` or `"auto"`, see `matrix_entropy`.

    Returns:
        `[...]`, from 1 to `min(n, d)`.

    Raises, cost, differentiability, degenerate input: as `feature_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.effective_rank(jnp.eye(5, 8)):.3f}")
        5.000

    Source: Roy & Vetterli 2007, on the Gram matrix of Song et al. 2024.
    """
    return jnp.exp(feature_entropy(features, weights=weights, method=method))


def _check_order(order: float | int) -> None:
    if isinstance(order, bool) or not isinstance(order, (int, float)):
        raise TypeError(
            f"order must be a Python number (it is static), got {type(order).__name__}."
        )
    if not (order > 0 and math.isfinite(order)):
        raise ValueError(f"order must be positive and finite, got {order}.")


def for_kernels(method: Method) -> Method:
    """Nobody vouches for the small eigenvalues of a kernel, which products must not find negative."""
    return "eigh" if method == "auto" else method


def unit_trace(kernel: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`kernel / tr(kernel)` at any scale; a zero kernel stays zero."""
    # No scale, no derivative: see normalize_rows.
    diagonal = jnp.diagonal(kernel)
    scale = lax.stop_gradient(jnp.max(jnp.abs(diagonal)))
    kernel = kernel / jnp.where(scale == 0, 1.0, scale)
    trace = jnp.trace(kernel)
    return kernel / jnp.where(scale == 0, 1.0, trace)


def entropy_of(
    matrix: Float[Array, "k k"], order: float | int = 1.0, *, method: Method = "eigh"
) -> Float[Array, ""]:
    """Entropy of one symmetric matrix of trace 1, or of trace 0 (no weight): then 0."""
    # The trace is 1 up to rounding: mending that needs no derivative.
    trace = lax.stop_gradient(jnp.trace(matrix))
    some = jnp.full_like(matrix, 1 / matrix.shape[0])
    matrix = jnp.where(trace == 0, some, matrix / jnp.where(trace == 0, 1.0, trace))
    if order == 1:
        entropy = spectral_sum(matrix, order, method)
    elif order == 2:
        entropy = 0.0 - jnp.log1p(-mixedness(matrix))
    else:
        entropy = jnp.log1p(spectral_sum(matrix, order)) / (1 - order)
    return jnp.where(trace == 0, 0.0, entropy)


def unit_rows(
    rows: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Normalised rows and each sample's share of the weight; what is masked is not looked at.

    Rows of weight 0 become zero rows even where they hold NaN; zero rows get share 0.
    """
    rows = jnp.where((weights == 0)[:, None], 0.0, rows)
    unit = normalize_rows(rows)
    # Asked as `normalize_rows` does, so that a compiled program looks at the rows once for both.
    empty = jnp.max(jnp.abs(rows), axis=-1) == 0
    return unit, shares(jnp.where(empty, 0.0, weights))


def shares(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """`weights / Σ weights`, 0 where no weight is left, NaN where one is negative."""
    weights = jnp.where(weights < 0, jnp.nan, weights)
    scale = lax.stop_gradient(jnp.max(weights))
    weights = weights / jnp.where(scale == 0, 1.0, scale)
    return weights / jnp.where(scale == 0, 1.0, jnp.sum(weights))
