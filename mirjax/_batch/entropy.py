"""Matrix entropy of every order, and the effective rank."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from mirjax._batch.gram import normalize_rows, safe_sqrt, small_side
from mirjax._checks import ArrayLike, as_float, entropy_order, sample_weights, square
from mirjax._linalg.precision import matmul, missing_from_one
from mirjax._linalg.rounding import found_eps, power_of_two, stated_eps
from mirjax._linalg.spectrum import EntropyMethod, spectral_entropy
from mirjax._mesh import automatic


def matrix_entropy(
    kernel: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1.0,
    method: EntropyMethod = "eigh",
    precision: DTypeLike | None = None,
) -> Float[Array, "*batch"]:
    r"""Entropy of the spectrum of a positive semi-definite matrix, in nats.

    With `λ` the eigenvalues of `kernel / tr(kernel)`, which sum to 1:

    `H_1 = -Σ λ log λ`,  `H_α = log(Σ λ^α) / (1 - α)` for any other `order` α (Rényi);

    order 1 is the limit α → 1, and `jnp.inf` the limit α → ∞, the min-entropy `-log λ_max`. The
    trace of a Gram matrix with ones on the diagonal is `n`. `feature_entropy` computes the same
    number from features, at a lower cost.

    Args:
        kernel: symmetric, positive semi-definite `[..., n, n]`, of any scale and rank.
        order: α, a positive Python number or `jnp.inf`. Order 2 needs no eigendecomposition.
        method: how order 1 is computed. `"eigh"` decomposes. `"products"` takes 28 matrix products
            in float32 (84 in float64), one more for the derivative, and no decomposition. `"auto"`
            decomposes a kernel; from features it is `"eigh"` on a CPU and `"products"` elsewhere.
        precision: the dtype in which the kernel was made, where it was cast up since; it decides
            what counts as rank for orders below 1. Found as in `neural_collapse` if not given.

    Returns:
        `[...]`, from 0 (rank one) to `log n`; it decreases with the order. 0 where the trace is 0.
        A kernel with negative eigenvalues gives a meaningless number (`mirjax.check(kernel=...)`
        finds such kernels), or NaN by products if an eigenvalue is below -1e-5 of the largest,
        which rounding to half precision can cause. A kernel with NaN gives NaN.

    Raises:
        TypeError, ValueError: the kernel is not square, its dtype is not a float, the order is not
            positive, or the method is unknown or does not support the order.

    Cost: `O(n³)` for the eigenvalues, and for the eigenvectors if derivatives are taken; by
    products the derivative costs one product. Order 2: `O(n²)`.

    Error: `"eigh"` is off by 1e-5 of the entropy in float32 and by 1e-12 in float64, for orders
    from 0.01 to 1,000, unless the entropy is itself no larger than a rounding error. In float32
    `"products"` is off by at most `1.1e-6 + 7e-8 n` nats in exact arithmetic; the second term only
    matters if many eigenvalues are below a millionth of the largest. Measured on a CPU up to
    n = 2048, it is within 1e-4 nats of the float64 decomposition of the same matrix near rank one,
    and within 2e-5 for the other spectra of `benchmarks/errors.py`.

    Twice differentiable, also at repeated eigenvalues. At a singular kernel the entropy has no
    derivative towards higher rank. The function returns the derivative on the range of the kernel,
    which is exact for every kernel that comes from features. Second derivatives are valid for
    changes that keep the rank, and by products only at full rank. Orders below 1 count only
    eigenvalues above `n · eps · λ_max` as rank, and above `eps / 2` of the Frobenius norm with the
    `eps` of `precision`. At order `jnp.inf` a
    largest eigenvalue that is repeated up to rounding shares the derivative, as in `jnp.max`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.matrix_entropy(jnp.eye(4)):.4f}")
        1.3863
        >>> print(f"{mirjax.matrix_entropy(jnp.ones((4, 4)), order=2):.4f}")
        0.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix entropy (natural logarithm);
    Giraldo et al. 2014 (arXiv 1211.2459) for the orders.
    """
    given = kernel
    kernel = as_float(kernel, "kernel", axes="n n")
    square(kernel, "kernel")
    entropy_order(order, method)
    method = for_kernels(method)
    stated = stated_eps(given.dtype, precision)

    def single(k: Array) -> Array:
        k = symmetric(k)
        eps = None
        if order < 1:
            eps = found_eps(k) if stated is None else jnp.asarray(stated, k.dtype)
        return entropy_of(unit_trace(k), order, method=method, eps=eps)

    return automatic(jnp.vectorize(single, signature="(n,n)->()"))(kernel)


def feature_entropy(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    order: float | int = 1.0,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""`matrix_entropy(gram(features))`, computed on the smaller side, `min(n, d)`.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; `K / n` becomes `√w K √w / Σw`, so that weight 0
            drops a sample exactly. Differentiable where they are positive; the derivative at 0 is
            taken as 0.
        order: α of the Rényi entropy, a positive Python number or `jnp.inf`.
        method: `"eigh"`, `"products"` or `"auto"`, see `matrix_entropy`.

    Returns:
        `[...]` in nats, from 0 (all samples in one direction) to `log min(n, d)`. Zero rows count
        as weight 0. The result is 0 if no weight is left, and NaN for rows with NaN or negative
        weights.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or the method is unknown or does not
            support the order.

    Cost: `O(n d min(n, d))`. Twice differentiable at any rank, see `matrix_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.array([[5.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> print(f"{mirjax.feature_entropy(features, weights=jnp.array([1.0, 1.0, 0.0])):.4f}")
        0.6931

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix entropy.
    """
    features = as_float(features, "features", axes="n d")
    entropy_order(order, method)
    weights = sample_weights(weights, features, "features")

    def single(rows: Array, w: Array) -> Array:
        rows, share = unit_rows(rows, w)
        return entropy_of(small_side(rows * safe_sqrt(share)[:, None]), order, method=method)

    return automatic(jnp.vectorize(single, signature="(n,d),(n)->()"))(features, weights)


def effective_rank(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    order: float | int = 1.0,
    centre: bool = False,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""`exp(H(G(features)))`: the number of directions that the samples would fill evenly.

    Args:
        features: `[..., n, d]`, one sample per row.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        order: α of the Rényi entropy, a positive Python number or `jnp.inf`. Order 2 is the
            participation ratio of the unit rows, `jnp.inf` their stable rank.
        centre: whether to subtract the mean before the rows are divided by their norm. A sample
            at the mean, up to rounding, then counts as weight 0.
        method: `"eigh"`, `"products"` or `"auto"`, see `matrix_entropy`.

    Returns:
        `[...]`, from 1 to `min(n, d)`.

    Errors, cost, differentiability, degenerate input: as in `feature_entropy`. For the mean of
    `centre` zero rows count as any others.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.effective_rank(jnp.eye(5, 8)):.3f}")
        5.000
        >>> print(f"{mirjax.effective_rank(jnp.eye(5, 8), centre=True):.3f}")
        4.000

    Source: Roy & Vetterli 2007, on the Gram matrix of Song et al. 2024; centred, it is the eRank of
    Wei et al. 2024 (arXiv 2401.17139).
    """
    if centre:
        features = as_float(features, "features", axes="n d")
        weights = sample_weights(weights, features, "features")
        features = automatic(jnp.vectorize(_offsets, signature="(n,d),(n)->(n,d)"))(
            features, weights
        )
    return jnp.exp(feature_entropy(features, weights=weights, order=order, method=method))


def _offsets(features: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, "n d"]:
    """The rows less their mean, in other units; zero where that is no more than rounding."""
    share = shares(weights)
    rows = jnp.where((share != 0)[:, None], features, 0.0)
    rows = rows / power_of_two(jnp.max(jnp.abs(rows)))
    size = jnp.max(jnp.abs(rows))
    rows = centred(rows, share)
    rounding = 4 * float(jnp.finfo(rows.dtype).eps) * size
    return jnp.where(jnp.max(jnp.abs(rows), axis=1, keepdims=True) <= rounding, 0.0, rows)


def centred(rows: Float[Array, "n d"], share: Float[Array, " n"]) -> Float[Array, "n d"]:
    """Rows less their mean; a column that varies by no more than rounding becomes zero."""
    size = jnp.max(jnp.abs(rows), axis=0)
    # Twice, since the mean of large entries is off by some eps of them.
    for _ in range(2):
        rows = jnp.where((share != 0)[:, None], rows - matmul(share, rows)[None, :], 0.0)
    rounding = 4 * float(jnp.finfo(rows.dtype).eps) * size
    return jnp.where((jnp.max(jnp.abs(rows), axis=0) <= rounding)[None, :], 0.0, rows)


def for_kernels(method: EntropyMethod) -> EntropyMethod:
    """The method for a kernel: products are only used on request, not by `"auto"`.

    They need eigenvalues that are not negative, which a kernel from elsewhere may not have.
    """
    return "eigh" if method == "auto" else method


def symmetric(kernel: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The mean of a kernel and its transpose, in units of about its largest diagonal entry.

    Solvers read one triangle only, products read both. The scale keeps the sum of two large entries
    finite, and does not matter to what follows.
    """
    kernel = kernel / power_of_two(jnp.max(jnp.abs(jnp.diagonal(kernel))))
    return 0.5 * (kernel + kernel.T)


def unit_trace(kernel: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`kernel / tr(kernel)` at any scale; a zero kernel stays zero."""
    # The result does not depend on the scale, which therefore needs no derivative.
    diagonal = jnp.diagonal(kernel)
    scale = lax.stop_gradient(jnp.max(jnp.abs(diagonal)))
    kernel = kernel / jnp.where(scale == 0, 1.0, scale)
    trace = jnp.trace(kernel)
    return kernel / jnp.where(scale == 0, 1.0, trace)


def entropy_of(
    matrix: Float[Array, "k k"],
    order: float | int = 1.0,
    *,
    method: EntropyMethod = "eigh",
    eps: Array | None = None,
) -> Float[Array, ""]:
    """Entropy of one symmetric matrix of trace 1, or of trace 0 (no weight): then 0."""
    # The trace is 1 up to rounding, and correcting it needs no derivative.
    trace = lax.stop_gradient(jnp.trace(matrix))
    # In place of a zero matrix, any matrix of trace 1: finite, and not used.
    stand_in = jnp.full_like(matrix, 1 / matrix.shape[0])
    matrix = jnp.where(trace == 0, stand_in, matrix / jnp.where(trace == 0, 1.0, trace))
    # A plain sum loses the last digits of the trace, and a large eigenvalue with them.
    matrix = matrix + matrix * lax.stop_gradient(missing_from_one(jnp.diagonal(matrix)))
    entropy = spectral_entropy(matrix, order, method, eps)
    return jnp.where(trace == 0, 0.0, entropy)


def unit_rows(
    rows: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Normalised rows, and each sample's share of the total weight.

    Rows of weight 0 become zero rows, even where they hold NaN; zero rows have share 0.
    """
    rows = jnp.where((weights == 0)[:, None], 0.0, rows)
    unit = normalize_rows(rows)
    # The same expression as in `normalize_rows`, so that a compiled program evaluates it once.
    empty = jnp.max(jnp.abs(rows), axis=-1) == 0
    return unit, shares(jnp.where(empty, 0.0, weights))


def shares(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """`weights / Σ weights`; 0 if no weight is left, NaN if any is negative."""
    weights = jnp.where(weights < 0, jnp.nan, weights)
    # Scaled by the largest first, so that the sum stays finite.
    scale = lax.stop_gradient(jnp.max(weights))
    weights = weights / jnp.where(scale == 0, 1.0, scale)
    return weights / jnp.where(scale == 0, 1.0, jnp.sum(weights))
