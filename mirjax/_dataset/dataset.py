"""MIR and HDR of a whole data set: exact where the matrix is small, otherwise estimated."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from mirjax import _memory as memory
from mirjax._batch.interplay import checked_arguments, feature_interplay, interplay, pair_rows
from mirjax._batch.joint import normalized_inputs
from mirjax._batch.kernels import Interplay
from mirjax._checks import ArrayLike, as_float, common_float, same_size, sample_weights
from mirjax._dataset import plan
from mirjax._dataset.blocks import balanced_size
from mirjax._dataset.estimate import DatasetMethod, Options, Target
from mirjax._dataset.marginals import (
    joint_entropy_of_pair,
    of_pair,
    of_pair_of_samples,
    of_rows,
    of_samples,
    weight_of,
)
from mirjax._dataset.result import (
    DatasetInterplay,
    estimated_joint,
    exact_joint,
    exact_result,
    interplay_of_sums,
    is_exact,
)
from mirjax._dataset.sharding import row_shards
from mirjax._dataset.sums import sums_of
from mirjax._mesh import automatic, relabelled

# From so many classes on it is worth looking for those that do not occur.
_MANY = 256


@automatic
def dataset_interplay(
    features: Float[ArrayLike, "n d"],
    head: Float[ArrayLike, "c d"],
    labels: Int[ArrayLike, " n"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: DatasetMethod = "auto",
    key: Array | None = None,
    tolerance: float | None = None,
    target: Target = "standard_error",
    rank: int | None = None,
    probes: int | None = None,
    max_products: int | None = None,
    memory_limit: int | None = None,
    exact_side: int | None = None,
) -> DatasetInterplay:
    r"""`interplay` of a whole data set: the same numbers, at a cost linear in n.

    The two marginal entropies are always exact. The joint entropy is that of an operator with the
    spectrum of `G(features) ⊙ G(head[labels])`, of which only products with vectors are needed.
    It is applied by class moments `[num_classes, d, d]`, by rows in blocks of one class, or as a
    matrix of all samples, whichever takes the fewest operations and fits into memory. No array of
    classes by classes is formed where there are many. Subspace iteration splits off the top of the
    spectrum; stochastic Lanczos quadrature estimates the rest. The bounds follow from the trace,
    the trace of the square and the Ritz values.

    Args:
        features: `[n, d]`, in memory, or sharded by rows over a mesh (equal parts).
        head: `[num_classes, d]`, one class per row.
        labels: integers `[n]`, sharded like the features. Rare classes cost nothing extra, and
            absent ones are left out where there are many of them and the labels are concrete.
        weights: non-negative `[n]`; weight 0 drops a sample exactly.
        method: `"exact"` decomposes the smaller side; `"lanczos"` estimates; `"auto"` is exact up
            to a side of `exact_side`.
        key: random key of the probes; `jax.random.key(0)` if not given, so that calls are
            repeatable.
        tolerance: relative to the joint entropy, or to 0.25 nats if that is more. Products are
            spent until the standard error, or half the width of the bracket, is below it;
            `converged` says whether that was reached. At most a quarter of the spectrum and 1,024
            vectors are split off. Without a tolerance there is one round. Needs concrete arrays.
        target: what must meet the tolerance, `"standard_error"` or `"bracket"`.
        rank: how many vectors are split off first; 128 if not given. More of them narrow the
            bracket.
        probes: how many random vectors estimate the rest; 16 if not given.
        max_products: the number of products at which to give up; 20,000 if not given.
        memory_limit: how many bytes may be used on each device; by default those that are free.
        exact_side: up to which side `"auto"` decomposes; 4,096 if not given, but 2,048 on a TPU,
            where larger decompositions are compiled for many minutes.

    Returns:
        `DatasetInterplay`. Degenerate input: as in `interplay`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or an option is invalid.
        MemoryError: the method needs too much memory; the message says how much, and which method
            would fit.

    Cost per product: `O(num_classes d²)` by moments, `O(n²)` by the matrix of all samples, and by
    rows `O(n d + num_classes d min(num_classes, d))`; 704 products without a tolerance. Memory:
    `O(n d)`, but for the matrix, which is only held where it takes at most 60 % of what is free.
    Not meant to be differentiated; use the losses for that.

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

    Source: Song et al. 2024 (arXiv 2406.03999) for the metrics, which that paper computes on
    batches.
    """
    options = Options(
        method, key, tolerance, target, rank, probes, max_products, memory_limit, exact_side
    )
    options.checked()
    shards = row_shards(features)
    arrays = checked_arguments(features, head, labels, weights)
    # The compiler decides where intermediate results of sharded rows lie.
    features, head, labels, weights = map(relabelled, arrays)
    _one_set(features, "features")
    head, labels = _only_occurring(head, labels)
    (samples, width), classes = features.shape, len(head)
    side, itemsize = min(samples, width * min(classes, width)), features.dtype.itemsize
    exact = is_exact(options, side)
    size = balanced_size(labels, classes) if shards == 1 else None
    plans = plan.of_labelled(samples, width, classes, shards, itemsize, options, size)
    chosen = plan.choose(plans, memory_limit)
    moments = next(p for p in plans if p.operator == "moments")
    decomposed = memory.of_matrix(side, itemsize)
    needs = {
        # `interplay` of a batch decomposes the same n × n matrix, so it serves for small sets.
        "exact": decomposed + (2 * features.nbytes if side == samples else moments.memory),
        "lanczos": chosen.memory,
    }
    sizes = f"n, d, C = {samples}, {width}, {classes}"
    memory.check("exact" if exact else "lanczos", needs, memory_limit, sizes)
    if exact and side == samples:
        result, weight = _interplay(features, head, labels, weights)
        return exact_result(result, weight, options)
    if exact or chosen.operator == "moments":
        # The method is decided already, from n as well; the sums alone would decide anew.
        sums = _sums(features, labels, weights, classes, shards)
        decided = options._replace(method="exact" if exact else "lanczos")
        return interplay_of_sums(sums, head, decided, samples=samples)
    arrays = features, head, labels, weights
    if chosen.operator == "dense":
        return estimated_joint(of_samples(*arrays), options)
    return estimated_joint(of_rows(*arrays, shards, size), options)


def _only_occurring(head: Array, labels: Array) -> tuple[Array, Array]:
    """The rows of the head whose class occurs, where that leaves out many of many."""
    # A tracer has no values, and other hosts have labels that are not known here.
    if isinstance(labels, jax.core.Tracer) or not labels.is_fully_addressable:
        return head, labels
    if len(head) < _MANY or bool(jnp.any(jnp.isnan(head))):
        return head, labels
    known = np.asarray(labels)
    occurs = np.unique(known[(known >= 0) & (known < len(head))])
    if len(occurs) > 0.75 * len(head) or not len(occurs):
        return head, labels
    # What is no class stays none.
    place = np.full(len(head) + 1, -1, known.dtype)
    place[occurs] = np.arange(len(occurs))
    known = np.where((known >= 0) & (known < len(head)), known, len(head))
    return head[occurs], jax.device_put(place[known], labels.sharding)


@automatic
def dataset_feature_interplay(
    features1: Float[ArrayLike, "n d1"],
    features2: Float[ArrayLike, "n d2"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: DatasetMethod = "auto",
    key: Array | None = None,
    tolerance: float | None = None,
    target: Target = "standard_error",
    rank: int | None = None,
    probes: int | None = None,
    max_products: int | None = None,
    memory_limit: int | None = None,
    exact_side: int | None = None,
) -> DatasetInterplay:
    r"""`feature_interplay` of a whole data set: two representations of the same samples.

    Args:
        features1: `[n, d1]`, in memory or sharded by rows.
        features2: `[n, d2]`, the same samples in the same order.
        weights: non-negative `[n]`; weight 0 drops a sample exactly.
        method: `"exact"` decomposes the side `min(n, d1 · d2)`.
        key: random key of the probes; this and the other options are as in `dataset_interplay`.
        tolerance: relative to the joint entropy.
        target: what must meet the tolerance.
        rank: how many vectors are split off first.
        probes: how many random vectors estimate the rest.
        max_products: the number of products at which to give up.
        memory_limit: how many bytes may be used on each device.
        exact_side: up to which side `"auto"` decomposes.

    Returns:
        `DatasetInterplay`. Where `n (d1 + d2) > 200 d1 d2` and n × n numbers do not fit, the trace
        of the square of the joint matrix is only bounded, and the bracket is wider.

    Raises:
        TypeError, ValueError, MemoryError: as in `dataset_interplay`.

    Cost: `O(n d1 d2)` per product, or `O(n²)` with the matrix of all samples where that is cheaper
    and takes at most 60 % of the free memory.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> before = jax.random.normal(jax.random.key(0), (500, 16))
        >>> pruned = jnp.where(jnp.abs(before) > 1, before, 0.0)
        >>> result = mirjax.dataset_feature_interplay(before, pruned)
        >>> print(result.method, f"{result.mir:.2f}")
        exact 0.20

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between two representations.
    """
    options = Options(
        method, key, tolerance, target, rank, probes, max_products, memory_limit, exact_side
    )
    options.checked()
    shards = row_shards(features1)
    features1 = as_float(features1, "features1", axes="n d")
    features2 = as_float(features2, "features2", axes="n d")
    _one_set(features1, "features1")
    _one_set(features2, "features2")
    what = "the number of samples n"
    same_size(features1, "features1", features2, "features2", axis=(-2, -2), what=what)
    features1, features2 = map(relabelled, common_float(features1, features2))
    weights = relabelled(sample_weights(weights, features1, "features1"))
    samples, pairs = len(features1), features1.shape[1] * features2.shape[1]
    side, itemsize = min(samples, pairs), features1.dtype.itemsize
    exact = is_exact(options, side)
    widths = features1.shape[1], features2.shape[1]
    chosen = plan.choose(plan.of_pair(samples, *widths, shards, itemsize, options), memory_limit)
    rows = 3 * (features1.nbytes + features2.nbytes) // shards
    needs = {"exact": rows + memory.of_matrix(side, itemsize), "lanczos": chosen.memory}
    sizes = f"n, d1, d2 = {samples}, {widths[0]}, {widths[1]}"
    memory.check("exact" if exact else "lanczos", needs, memory_limit, sizes)
    if exact and side == samples:
        result, weight = _feature_interplay(features1, features2, weights)
        return exact_result(result, weight, options)
    if exact:
        marginals = of_pair(features1, features2, weights, shards)
        return exact_joint(marginals, joint_entropy_of_pair(marginals.operator), options)
    build = of_pair_of_samples if chosen.operator == "dense" else of_pair
    return estimated_joint(build(features1, features2, weights, shards), options)


def _one_set(features: Array, name: str) -> None:
    if features.ndim != 2:
        raise ValueError(f"{name} must be [n, d] without batch axes, got {features.shape}.")


_sums = jax.jit(sums_of, static_argnums=(3, 4))


@jax.jit
def _interplay(
    features: Array, head: Array, labels: Array, weights: Array
) -> tuple[Interplay, Array]:
    counted = weight_of(normalized_inputs(features, head, labels, weights).root, weights)
    return interplay(features, head, labels, weights=weights), counted


@jax.jit
def _feature_interplay(rows1: Array, rows2: Array, weights: Array) -> tuple[Interplay, Array]:
    counted = weight_of(pair_rows(rows1, rows2, weights)[2], weights)
    return feature_interplay(rows1, rows2, weights=weights), counted
