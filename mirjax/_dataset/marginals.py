"""The exact marginal entropies of a data set, and the operator of its joint kernel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of
from mirjax._batch.gram import normalize_rows, small_side
from mirjax._batch.interplay import pair_rows
from mirjax._batch.joint import (
    NormalizedInputs,
    head_coordinates,
    head_entropy,
    joint_of_moments,
    normalized_inputs,
)
from mirjax._dataset.blocks import class_blocks, sum_of_blocks
from mirjax._dataset.dense import dense_operator
from mirjax._dataset.operators import (
    MomentOperator,
    Operator,
    PairOperator,
    RowOperator,
)
from mirjax._dataset.sums import Sums
from mirjax._linalg.precision import matmul, total


class Marginals(NamedTuple):
    """The exact marginal entropies, and the operator whose entropy may have to be estimated.

    Attributes:
        operator: has the spectrum of `√p (K1 ⊙ K2) √p`, and trace 1.
        entropy1: `H(K1)`.
        entropy2: `H(K2)`.
        weight: the total weight of the samples that count.
    """

    operator: Operator
    entropy1: Float[Array, ""]
    entropy2: Float[Array, ""]
    weight: Float[Array, ""]


def weight_of(root: Array, weights: Array) -> Array:
    """The total weight of the samples whose share `root²` is not 0; NaN stays NaN."""
    return jnp.sum(jnp.where(root[:, 0] == 0, 0.0, weights))


@functools.partial(jax.jit, static_argnames="samples")
def of_sums(sums: Sums, head: Array, samples: int | None = None) -> Marginals:
    """The marginals from statistics by class and a head; pass `samples` if n is known."""
    head_rows = normalize_rows(head)
    # A class whose row of the head is zero drops out, unless its statistics have a NaN.
    live = jnp.any(head_rows != 0, axis=-1) | jnp.isnan(sums.unit_count)
    moments = jnp.where(live[:, None, None], sums.second, 0.0)
    # The share of a class is its trace, not its weight: rounding errors of the sums then cancel.
    traces = jnp.trace(moments, axis1=-2, axis2=-1)
    scale = total(traces)
    scale = jnp.where(scale == 0, 1.0, scale)
    moments = moments / scale
    coordinates = head_coordinates(head_rows)
    side = moments.shape[-1] * coordinates.shape[-1]
    count = jnp.asarray(side if samples is None else min(samples, side), head.dtype)
    operator = MomentOperator(moments, coordinates, count)
    weight = jnp.sum(jnp.where(live, sums.unit_count, 0.0))
    entropy1 = entropy_of(jnp.sum(moments, axis=0))
    return Marginals(operator, entropy1, head_entropy(head_rows, traces / scale), weight)


@jax.jit
def entropies_of_sums(sums: Sums, head: Array) -> tuple[Array, Array]:
    """The marginal entropies from one second moment for all classes."""
    head_rows = normalize_rows(head)
    is_zero = jnp.all(head_rows == 0, axis=-1) & (sums.unit_count != 0)
    second = sums.second[0]
    trace = jnp.trace(second)
    entropy1 = entropy_of(second / jnp.where(trace == 0, 1.0, trace))
    # What was added up for a class without a direction cannot be taken out again.
    entropy1 = jnp.where(jnp.any(is_zero), jnp.nan, entropy1)
    shares = jnp.where(is_zero, 0.0, sums.unit_count)
    weight = total(shares)
    return entropy1, head_entropy(head_rows, shares / jnp.where(weight == 0, 1.0, weight))


@jax.jit
def joint_entropy_of_moments(moments: Array, head_rows: Array) -> Array:
    """`H(K1 ⊙ K2)` by one decomposition."""
    return entropy_of(joint_of_moments(moments, head_rows))


@functools.partial(jax.jit, static_argnames=("shards", "size"))
def of_rows(
    features: Array,
    head: Array,
    labels: Array,
    weights: Array,
    shards: int,
    size: int | None = None,
) -> Marginals:
    """The marginals from rows that stay where they are on `shards` devices.

    The size is that of `balanced_size`, of rows on one device.
    """
    inputs, rows = _unit_trace_rows(features, head, labels, weights)
    classes = len(inputs.head_rows)
    blocks = class_blocks(rows, inputs.labels, classes, shards, size)
    # The share of a class is the trace of its moments, as in `of_sums`.
    shares = jnp.sum(jnp.square(blocks.rows), axis=(-2, -1))[:, :, None]
    shares = sum_of_blocks(shares, blocks.classes, classes)[:, 0]
    entropy2 = head_entropy(inputs.head_rows, shares)
    turned = jnp.swapaxes(blocks.rows[0], -1, -2) if size else None
    operator = RowOperator(*blocks, inputs.head_rows, samples=len(features), turned=turned)
    weight = weight_of(inputs.root, weights)
    return Marginals(operator, entropy_of(small_side(rows)), entropy2, weight)


@jax.jit
def of_samples(features: Array, head: Array, labels: Array, weights: Array) -> Marginals:
    """The marginals, and the joint kernel of all samples as a matrix."""
    inputs, rows = _unit_trace_rows(features, head, labels, weights)
    head_rows = inputs.head_rows[inputs.labels]
    share = jnp.sqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))
    entropies = entropy_of(small_side(rows)), entropy_of(small_side(share * head_rows))
    operator = dense_operator(rows, head_rows)
    return Marginals(operator, *entropies, weight_of(inputs.root, weights))


def _unit_trace_rows(
    features: Array, head: Array, labels: Array, weights: Array
) -> tuple[NormalizedInputs, Array]:
    """Normalised arguments, and `√p ẑ` with a sum of squares of 1."""
    inputs = normalized_inputs(features, head, labels, weights)
    rows = inputs.root * inputs.rows
    trace = total(jnp.square(rows))
    return inputs, rows / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))


@functools.partial(jax.jit, static_argnames="shards")
def of_pair(features1: Array, features2: Array, weights: Array, shards: int = 1) -> Marginals:
    """The marginals from two representations of the same samples."""
    rows1, rows2, entropies, weight = _pair(features1, features2, weights)
    return Marginals(PairOperator(rows1, rows2, shards), *entropies, weight)


@functools.partial(jax.jit, static_argnames="shards")
def of_pair_of_samples(
    features1: Array, features2: Array, weights: Array, shards: int = 1
) -> Marginals:
    """The marginals, and the joint kernel of two representations as a matrix."""
    del shards  # of one device only
    rows1, rows2, entropies, weight = _pair(features1, features2, weights)
    return Marginals(dense_operator(rows1, rows2), *entropies, weight)


def _pair(
    features1: Array, features2: Array, weights: Array
) -> tuple[Array, Array, tuple[Array, Array], Array]:
    """`√p ẑ1` and `ẑ2`, whose joint kernel has trace 1, both entropies and the weight."""
    rows1, rows2, root = pair_rows(features1, features2, weights)
    entropies = entropy_of(small_side(root * rows1)), entropy_of(small_side(root * rows2))
    trace = total(jnp.square(root * rows1))
    root = root / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))
    # The root of the share goes to one side only: the joint kernel is the product of both.
    return root * rows1, jnp.where(root == 0, 0.0, rows2), entropies, weight_of(root, weights)


@jax.jit
def joint_entropy_of_pair(operator: PairOperator) -> Array:
    """The entropy of the second moment matrix of `ẑ1 ⊗ ẑ2`, summed over chunks of rows."""
    rows1, rows2 = operator.rows1, operator.rows2
    samples, pairs = len(rows1), operator.size
    # Chunks of rows, whose products `[step, pairs]` have at most 2²⁵ entries.
    step = max(1, min(samples, 2**25 // pairs))
    pad = -samples % step
    rows1, rows2 = (
        jnp.pad(r, ((0, pad), (0, 0))).reshape(-1, step, r.shape[1]) for r in (rows1, rows2)
    )

    def add(carry: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        both = (part[0][:, :, None] * part[1][:, None, :]).reshape(step, pairs)
        return carry + matmul(both.T, both), None

    start = jnp.zeros_like(rows1, shape=(pairs, pairs))
    return entropy_of(lax.scan(add, start, (rows1, rows2))[0])
