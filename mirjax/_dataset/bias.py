"""How far MIR and HDR of a batch are from their values for the whole set."""

import functools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.chance import chance_interplay
from mirjax._batch.debiased import DebiasedInterplay
from mirjax._batch.interplay import checked_arguments
from mirjax._batch.kernels import Interplay
from mirjax._checks import ArrayLike
from mirjax._dataset.dataset import dataset_interplay
from mirjax._dataset.debiased import dataset_debiased_interplay
from mirjax._dataset.pair_moments import PairMoments, merged
from mirjax._dataset.result import DatasetInterplay
from mirjax._mesh import automatic

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)


class BatchBias(NamedTuple):
    """The metrics of random batches, and those of the set that the batches come from.

    Attributes:
        batch_sizes: `[k]`, ascending.
        batches: `[k]`, the number of disjoint batches measured at each size.
        mean: an `Interplay` of `[k]` arrays: the mean over these batches.
        spread: an `Interplay` of `[k]` arrays: the standard deviation, 0 for a single batch.
        whole: the interplay of the whole set, with its error.
        adjusted_mir: `[k]`, the mean over these batches of MIR adjusted for chance.
        adjusted_spread: `[k]`, its standard deviation.
        debiased: an `Interplay` of `[k]` arrays, of order 2, from the pairs within all of these
            batches, as `PairMoments` gives it.
        debiased_spread: an `Interplay` of `[k]` arrays: the standard deviation of
            `debiased_interplay` of single batches. Batches of one sample have no pair: NaN.
        whole_debiased: `dataset_debiased_interplay` of the whole set.
    """

    batch_sizes: Int[Array, " k"]
    batches: Int[Array, " k"]
    mean: Interplay
    spread: Interplay
    whole: DatasetInterplay
    adjusted_mir: Float[Array, " k"]
    adjusted_spread: Float[Array, " k"]
    debiased: Interplay
    debiased_spread: Interplay
    whole_debiased: DebiasedInterplay


def batch_bias(
    features: Float[ArrayLike, "n d"],
    head: Float[ArrayLike, "c d"],
    labels: Int[ArrayLike, " n"],
    /,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    batch_sizes: Iterable[int] | Int[ArrayLike, " k"] | None = None,
    max_batches: int = 64,
    permutations: int = 1,
    key: Array | None = None,
) -> BatchBias:
    """MIR, HDR and the entropies over batch size, with their values for the whole set.

    MIR of a small batch is far above MIR of the set. HDR differs too, less and in either direction.
    The debiased values do not depend on the batch size, and MIR adjusted for chance depends on it
    less. For each size the samples are shuffled again and cut into disjoint batches.

    Args:
        features: `[n, d]`.
        head: `[num_classes, d]`.
        labels: integers `[n]`.
        weights: non-negative `[n]`. Samples of weight 0 are drawn too and drop out of their batch.
        batch_sizes: integers in any order: a tuple, a range, a generator or an integer array `[k]`.
            If not given, the powers of two from 16 to 2,048 that are at most n.
        max_batches: the greatest number of batches of each size.
        permutations: of the labels of each batch, for the level that chance reaches.
        key: random key of the shuffles and of `dataset_interplay`; `jax.random.key(0)` if not
            given.

    Returns:
        `BatchBias`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, a batch size is not an integer in
            `[1, n]`, or `max_batches` or `permutations` is not a positive integer.

    Cost: for each size up to `max_batches` times `permutations + 1` calls of `interplay`, one after
    the other, and one of `dataset_interplay` and of `dataset_debiased_interplay`.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> z, w = (jax.random.normal(jax.random.key(i), (n, 8)) for i, n in ((0, 600), (1, 3)))
        >>> bias = mirjax.batch_bias(z, w, jnp.arange(600) % 3, batch_sizes=(8, 256))
        >>> print(" ".join(f"{m:.2f}" for m in (*bias.mean.mir, bias.whole.mir)))
        0.66 0.02 0.01
        >>> print(" ".join(f"{m:.2f}" for m in (*bias.debiased.mir, bias.whole_debiased.mir)))
        -0.05 -0.00 -0.00
    """
    key = jax.random.key(0) if key is None else key
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    if features.ndim != 2:
        raise ValueError(f"features must be [n, d] without batch axes, got {features.shape}.")
    samples = len(features)
    sizes = _sizes(batch_sizes, samples)
    max_batches = _integer(max_batches, "max_batches must be an integer such as 64")
    if max_batches < 1:
        raise ValueError(f"max_batches must be at least 1, got {max_batches}.")
    permutations = _integer(permutations, "permutations must be an integer such as 4")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}.")
    counts = [min(max_batches, samples // size) for size in sizes]
    return _bias(features, head, labels, weights, key, sizes, counts, permutations)


@automatic
def _bias(
    features: Array,
    head: Array,
    labels: Array,
    weights: Array,
    key: Array,
    sizes: list[int],
    counts: list[int],
    permutations: int,
) -> BatchBias:
    arrays = features, head, labels, weights
    options = {"permutations": permutations}
    rows = [
        _statistics(*arrays, jax.random.fold_in(key, i), size=size, count=count, **options)
        for i, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    mean, spread = jax.tree.map(lambda *parts: jnp.stack(parts), *(row[:2] for row in rows))
    # A logarithm of a mean over all pairs, not a mean of logarithms.
    debiased = [moments.interplay().interplay for *_, moments in rows]
    debiased = jax.tree.map(lambda *parts: jnp.stack(parts), *debiased)
    whole = dataset_interplay(
        features, head, labels, weights=weights, key=jax.random.fold_in(key, len(sizes))
    )
    return BatchBias(
        jnp.asarray(sizes),
        jnp.asarray(counts),
        mean.plain,
        spread.plain,
        whole,
        mean.adjusted_mir,
        spread.adjusted_mir,
        debiased,
        spread.debiased,
        dataset_debiased_interplay(features, head, labels, weights=weights),
    )


class _OfBatch(NamedTuple):
    plain: Interplay
    adjusted_mir: Array
    debiased: Interplay


def _sizes(given: Iterable[int] | ArrayLike | None, samples: int) -> list[int]:
    """The batch sizes as Python numbers, ascending."""
    if given is None:
        return [size for size in BATCH_SIZES if size <= samples] or [samples]
    needed = "batch_sizes must be integers: a tuple such as (16, 64), a range or an array [k]"
    if not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        raise TypeError(f"{needed}; got {_described(given)}.")
    sizes = [_integer(size, needed) for size in given]
    if not sizes or not all(1 <= size <= samples for size in sizes):
        raise ValueError(f"batch_sizes must lie in [1, n = {samples}], got {tuple(sizes)}.")
    return sorted(sizes)


def _integer(value: Any, needed: str) -> int:
    """A Python number, which the shapes of compiled functions are made of."""
    # Unlike `int`, `operator.index` refuses 2.5 and "2", but it takes True for 1.
    try:
        if not isinstance(value, bool | np.bool_):  # NumPy 1 takes its own True for 1 too
            return operator.index(value)
    except TypeError:
        pass  # as for True
    raise TypeError(f"{needed}; got {_described(value)}.")


def _described(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return "a traced value, which a compiled function does not know"
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape:
        return f"an array of {value.dtype} of shape {value.shape}"
    return repr(value)


@functools.partial(jax.jit, static_argnames=("size", "count", "permutations"))
def _statistics(
    features: Array,
    head: Array,
    labels: Array,
    weights: Array,
    key: Array,
    *,
    size: int,
    count: int,
    permutations: int,
) -> tuple[_OfBatch, _OfBatch, PairMoments]:
    chosen = jax.random.permutation(key, len(features))[: count * size].reshape(count, size)

    def one(batch: tuple[Array, Array]) -> tuple[_OfBatch, PairMoments]:
        place, key = batch
        rows = features[place], head, labels[place]
        beside = chance_interplay(*rows, weights=weights[place], key=key, permutations=permutations)
        moments = PairMoments.zeros(dtype=features.dtype).update(*rows, weights=weights[place])
        of_pairs = moments.interplay().interplay
        return _OfBatch(beside.plain, beside.adjusted_mir, of_pairs), moments

    # A loop: all batches at once would take `count` times the memory.
    per_batch, moments = lax.map(one, (chosen, jax.random.split(jax.random.fold_in(key, 1), count)))
    ddof = min(1, count - 1)
    spread = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=ddof), per_batch)
    # A batch in which fewer than two samples have weight tells nothing of pairs.
    of_pairs = jax.tree.map(
        lambda x: jnp.std(x, axis=0, ddof=ddof, where=moments.weight != 0), per_batch.debiased
    )
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), per_batch)
    return mean, spread._replace(debiased=of_pairs), merged(moments)
