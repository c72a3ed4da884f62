"""MIR and HDR of a whole data set: exact where that is small, else estimated with bounds."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax import memory
from mirjax.blocks import block_count, block_size, class_blocks, sum_by_class
from mirjax.checks import ArrayLike, as_float, common_float, same_size, sample_weights
from mirjax.dataset_result import DatasetInterplay, estimated_result, exact_result
from mirjax.decompositions import matmul
from mirjax.entropy import entropy_of
from mirjax.estimate import Method, Options, Target, estimate_entropy
from mirjax.gram import normalize_rows, small_side
from mirjax.information import Interplay, combine
from mirjax.interplay import checked_arguments, feature_interplay, interplay, pair_rows
from mirjax.joint import head_coordinates, head_entropy, joint_of_moments, sides_of
from mirjax.moments import Sums, sums_of
from mirjax.operators import MomentOperator, Operator, PairOperator, RowOperator
from mirjax.sharding import automatic, row_shards
from mirjax.spectrum import total

# Up to this side one decomposition is cheaper than some hundred products, and exact.
EXACT_SIDE = 4096


def dataset_interplay(
    features: Float[ArrayLike, "n d"],
    head: Float[ArrayLike, "c d"],
    labels: Int[ArrayLike, " n"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: Method = "auto",
    key: Array | None = None,
    tolerance: float | None = None,
    target: Target = "standard_error",
    rank: int | None = None,
    probes: int | None = None,
    max_products: int | None = None,
    memory_limit: int | None = None,
) -> DatasetInterplay:
    r"""`interplay` of a whole data set: the same numbers, at a cost linear in n.

    The two marginal entropies are always exact. The joint one is that of an operator with the
    spectrum of `G(features) ⊙ G(head[labels])`, known by its products with vectors: of side n, or of
    side `d · min(num_classes, d)` where the class moments `[num_classes, d, d]` are smaller than the
    features. The top of the spectrum is split off by subspace iteration, the rest is stochastic
    Lanczos quadrature; the bounds follow from the trace, the trace of the square and the Ritz values.

    Args:
        features: `[n, d]`, in memory, or sharded by rows over a mesh (equal parts).
        head: `[num_classes, d]`, one class a row.
        labels: integers `[n]`, sharded as the features. Absent and rare classes cost nothing extra.
        weights: non-negative `[n]`; weight 0 drops a sample exactly.
        method: `"exact"` decomposes the smaller side; `"lanczos"` estimates; `"auto"` is exact up to
            a side of 4,096.
        key: for the random vectors; `jax.random.key(0)` if not given, so that a call repeats itself.
        tolerance: relative to the joint entropy (or to 0.25 nats, if that is more). Products are spent
            until the standard error, or half the width of the bracket, is below it; `converged` says
            whether that was reached. At most a quarter of the spectrum and 1,024 vectors are split off.
            Without it one round is made. Needs concrete arrays.
        target: what the tolerance is of, `"standard_error"` or `"bracket"`.
        rank: how many vectors are split off first; 128 if not given. More make the bracket narrow.
        probes: random vectors of the rest; 16 if not given.
        max_products: at which to give up; 20,000 if not given.
        memory_limit: bytes on each device; what is free, if not given.

    Returns:
        `DatasetInterplay`. Degenerate input as `interplay`.

    Raises:
        TypeError, ValueError: shapes, dtypes or options do not fit.
        MemoryError: the method does not fit; says what it needs and which method would fit.

    Cost: `O(n d²)` once and `O(num_classes d²)` a product, or `O(n d)` a product; 704 products
    without a tolerance. Memory `O(n d)`. Not meant to be differentiated: the losses are.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(10, 64), jnp.arange(9000) % 10
        >>> features = head[labels] + 0.1 * jax.random.normal(jax.random.key(1), (9000, 64))
        >>> exact = mirjax.dataset_interplay(features, head, labels)
        >>> result = mirjax.dataset_interplay(features, head, labels, method="lanczos")
        >>> bool(result.lower.mir <= exact.mir <= result.upper.mir)
        True
        >>> exact.method, result.method, result.products
        ('exact', 'lanczos', 704)

    Source: Song et al. 2024 (arXiv 2406.03999) for the metrics, which are computed there on batches.
    """
    options = Options(method, key, tolerance, target, rank, probes, max_products, memory_limit)
    options.checked()
    shards = row_shards(features)
    arrays = checked_arguments(features, head, labels, weights)
    features, head, labels, weights = map(automatic, arrays)
    _one_set(features, "features")
    (samples, width), classes = features.shape, len(head)
    # Products with the moments are the cheaper ones, and n does not enter.
    by_moments = classes * width <= 2 * samples
    side = min(samples, width * min(classes, width))
    exact = _is_exact(options, side)
    size, own = features.dtype.itemsize, samples // shards
    places = block_size(own, classes) * block_count(own, classes)
    rows = 4 * size * places * width
    moments = rows + memory.of_moments(classes, width, size)
    vectors = side if by_moments else places
    needs = {
        "exact": (rows if side == samples else moments) + memory.of_matrix(side, size),
        "lanczos": (moments if by_moments else rows)
        + memory.of_vectors(vectors, options.rank_for(side), size),
    }
    sizes = f"n, d, C = {samples}, {width}, {classes}"
    memory.check("exact" if exact else "lanczos", needs, memory_limit, sizes)
    if exact and side == samples:
        result, weight = _interplay(features, head, labels, weights)
        return exact_result(result, weight, options)
    if exact or by_moments:
        sums = _sums(features, labels, weights, classes, shards)
        chosen = options._replace(method="exact" if exact else "lanczos")
        return interplay_of_sums(sums, head, chosen, samples=samples)
    operator, entropy1, entropy2, weight = _row_operator(features, head, labels, weights, shards)
    return _estimated(operator, entropy1, entropy2, weight, options)


def dataset_feature_interplay(
    features1: Float[ArrayLike, "n d1"],
    features2: Float[ArrayLike, "n d2"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: Method = "auto",
    key: Array | None = None,
    tolerance: float | None = None,
    target: Target = "standard_error",
    rank: int | None = None,
    probes: int | None = None,
    max_products: int | None = None,
    memory_limit: int | None = None,
) -> DatasetInterplay:
    r"""`feature_interplay` of a whole data set: two representations of the same samples.

    Args:
        features1: `[n, d1]`, in memory or sharded by rows.
        features2: `[n, d2]`, the same samples in the same order.
        weights: non-negative `[n]`; weight 0 drops a sample exactly.
        method: `"exact"` decomposes the side `min(n, d1 · d2)`.
        key: as in `dataset_interplay`, like the other options.
        tolerance: relative to the joint entropy.
        target: of the tolerance.
        rank: vectors that are split off first.
        probes: random vectors of the rest.
        max_products: at which to give up.
        memory_limit: in bytes.

    Returns:
        `DatasetInterplay`. Where `n (d1 + d2) > 200 d1 d2` the trace of the square of the joint matrix
        is only bounded, and the bracket is wider.

    Raises:
        TypeError, ValueError, MemoryError: as `dataset_interplay`.

    Cost: `O(n d1 d2)` a product.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> before = jax.random.normal(jax.random.key(0), (500, 16))
        >>> pruned = jnp.where(jnp.abs(before) > 1, before, 0.0)
        >>> result = mirjax.dataset_feature_interplay(before, pruned)
        >>> print(result.method, f"{result.mir:.2f}")
        exact 0.20

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between two representations.
    """
    options = Options(method, key, tolerance, target, rank, probes, max_products, memory_limit)
    options.checked()
    shards = row_shards(features1)
    features1 = as_float(features1, "features1", axes="n d")
    features2 = as_float(features2, "features2", axes="n d")
    _one_set(features1, "features1")
    _one_set(features2, "features2")
    what = "the number of samples n"
    same_size(features1, "features1", features2, "features2", axis=(-2, -2), what=what)
    features1, features2 = map(automatic, common_float(features1, features2))
    weights = automatic(sample_weights(weights, features1, "features1"))
    samples, pairs = len(features1), features1.shape[1] * features2.shape[1]
    side, size = min(samples, pairs), features1.dtype.itemsize
    exact = _is_exact(options, side)
    rows = 3 * size * (features1.size + features2.size) // shards
    vectors = pairs if pairs < samples else samples // shards
    needs = {
        "exact": rows + memory.of_matrix(side, size),
        "lanczos": rows + memory.of_vectors(vectors, options.rank_for(side), size),
    }
    sizes = f"n, d1, d2 = {samples}, {features1.shape[1]}, {features2.shape[1]}"
    memory.check("exact" if exact else "lanczos", needs, memory_limit, sizes)
    if exact and side == samples:
        result, weight = _feature_interplay(features1, features2, weights)
        return exact_result(result, weight, options)
    operator, entropy1, entropy2, weight = _pair_operator(features1, features2, weights, shards)
    if exact:
        joint = _pair_entropy(operator)
        return exact_result(combine(entropy1, entropy2, joint), weight, options)
    return _estimated(operator, entropy1, entropy2, weight, options)


def _is_exact(options: Options, side: int) -> bool:
    return options.method == "exact" or (options.method == "auto" and side <= EXACT_SIDE)


def interplay_of_sums(
    sums: Sums, head: Array, options: Options, *, samples: int | None = None
) -> DatasetInterplay:
    """From the statistics of `ClassMoments` and a head of their dtype; `samples` if that is known."""
    classes, width = head.shape
    side, size = width * min(classes, width), head.dtype.itemsize
    exact = _is_exact(options, side)
    moments = memory.of_moments(classes, width, size)
    needs = {
        "exact": moments + memory.of_matrix(side, size),
        "lanczos": moments + memory.of_vectors(side, options.rank_for(side), size),
    }
    what = f"d, C = {width}, {classes}"
    memory.check("exact" if exact else "lanczos", needs, options.memory_limit, what)
    operator, entropy1, entropy2, weight = _moment_operator(sums, head, samples)
    if exact:
        joint = _moment_entropy(operator.moments, normalize_rows(head))
        return exact_result(combine(entropy1, entropy2, joint), weight, options)
    return _estimated(operator, entropy1, entropy2, weight, options)


_sums = jax.jit(sums_of, static_argnums=(3, 4))


@jax.jit
def _interplay(
    features: Array, head: Array, labels: Array, weights: Array
) -> tuple[Interplay, Array]:
    counted = _weight_of(sides_of(features, head, labels, weights).root, weights)
    return interplay(features, head, labels, weights=weights), counted


@jax.jit
def _feature_interplay(rows1: Array, rows2: Array, weights: Array) -> tuple[Interplay, Array]:
    counted = _weight_of(pair_rows(rows1, rows2, weights)[2], weights)
    return feature_interplay(rows1, rows2, weights=weights), counted


def _weight_of(root: Array, weights: Array) -> Array:
    """Weight of the samples whose share `root²` is not 0; NaN stays NaN."""
    return jnp.sum(jnp.where(root[:, 0] == 0, 0.0, weights))


@functools.partial(jax.jit, static_argnames="samples")
def _moment_operator(
    sums: Sums, head: Array, samples: int | None = None
) -> tuple[MomentOperator, Array, Array, Array]:
    heads = normalize_rows(head)
    # A class whose head row has no direction drops out, unless there is a NaN in it.
    live = jnp.any(heads != 0, axis=-1) | jnp.isnan(sums.unit_count)
    moments = jnp.where(live[:, None, None], sums.second, 0.0)
    # The share of a class is its trace: what the sums have lost to rounding, they have lost alike.
    traces = jnp.trace(moments, axis1=-2, axis2=-1)
    scale = total(traces)
    scale = jnp.where(scale == 0, 1.0, scale)
    moments = moments / scale
    coordinates = head_coordinates(heads)
    side = moments.shape[-1] * coordinates.shape[-1]
    count = jnp.asarray(side if samples is None else min(samples, side), head.dtype)
    operator = MomentOperator(moments, coordinates, count)
    weight = jnp.sum(jnp.where(live, sums.unit_count, 0.0))
    return (
        operator,
        entropy_of(jnp.sum(moments, axis=0)),
        head_entropy(heads, traces / scale),
        weight,
    )


@jax.jit
def _moment_entropy(moments: Array, heads: Array) -> Array:
    return entropy_of(joint_of_moments(moments, heads))


@functools.partial(jax.jit, static_argnames="shards")
def _row_operator(
    features: Array, head: Array, labels: Array, weights: Array, shards: int
) -> tuple[RowOperator, Array, Array, Array]:
    sides = sides_of(features, head, labels, weights)
    rows = sides.root * sides.rows
    trace = total(jnp.square(rows))
    rows = rows / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))
    blocks = class_blocks(rows, sides.labels, len(head), shards)
    shares = jnp.sum(jnp.square(blocks.rows), axis=(-2, -1))[:, :, None]
    shares = sum_by_class(shares, blocks.classes, len(head))[:, 0]
    entropy2 = head_entropy(sides.heads, shares)
    operator = RowOperator(*blocks, sides.heads, samples=len(features))
    return operator, entropy_of(small_side(rows)), entropy2, _weight_of(sides.root, weights)


@functools.partial(jax.jit, static_argnames="shards")
def _pair_operator(
    features1: Array, features2: Array, weights: Array, shards: int = 1
) -> tuple[PairOperator, Array, Array, Array]:
    rows1, rows2, root = pair_rows(features1, features2, weights)
    entropies = entropy_of(small_side(root * rows1)), entropy_of(small_side(root * rows2))
    trace = total(jnp.square(root * rows1))
    root = root / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))
    operator = PairOperator(root * rows1, jnp.where(root == 0, 0.0, rows2), shards)
    return operator, *entropies, _weight_of(root, weights)


@jax.jit
def _pair_entropy(operator: PairOperator) -> Array:
    """Of the Gram matrix of all `ẑ1 ⊗ ẑ2`, summed over some rows at a time."""
    rows1, rows2 = operator.rows1, operator.rows2
    samples, pairs = len(rows1), operator.size
    step = max(1, min(samples, 2**25 // pairs))
    pad = -samples % step
    rows1, rows2 = (
        jnp.pad(r, ((0, pad), (0, 0))).reshape(-1, step, r.shape[1]) for r in (rows1, rows2)
    )

    def add(carry: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        both = (part[0][:, :, None] * part[1][:, None, :]).reshape(step, pairs)
        return carry + matmul(both.T, both), None

    return entropy_of(lax.scan(add, jnp.zeros((pairs, pairs), rows1.dtype), (rows1, rows2))[0])


def _estimated(
    operator: Operator, entropy1: Array, entropy2: Array, weight: Array, options: Options
) -> DatasetInterplay:
    joint, products, converged = estimate_entropy(operator, options)
    return estimated_result(
        entropy1,
        entropy2,
        joint,
        weight,
        products=products,
        converged=converged,
    )


def _one_set(features: Array, name: str) -> None:
    if features.ndim != 2:
        raise ValueError(f"{name} must be [n, d] without batch axes, got {features.shape}.")
