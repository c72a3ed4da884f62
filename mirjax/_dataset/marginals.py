"""A data set made ready: the operator of its joint kernel, and the exact marginal entropies."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of
from mirjax._batch.gram import normalize_rows, small_side
from mirjax._batch.interplay import pair_rows
from mirjax._batch.joint import head_coordinates, head_entropy, joint_of_moments, sides_of
from mirjax._dataset.blocks import class_blocks, sum_by_class
from mirjax._dataset.operators import MomentOperator, Operator, PairOperator, RowOperator
from mirjax._dataset.sums import Sums
from mirjax._linalg.precision import matmul, total


class Marginals(NamedTuple):
    """What is exact, and the operator whose entropy is not always.

    Attributes:
        operator: with the spectrum of `√p (K1 ⊙ K2) √p`, of trace 1.
        entropy1: `H(K1)`.
        entropy2: `H(K2)`.
        weight: of the samples that count.
    """

    operator: Operator
    entropy1: Float[Array, ""]
    entropy2: Float[Array, ""]
    weight: Float[Array, ""]


def weight_of(root: Array, weights: Array) -> Array:
    """Weight of the samples whose share `root²` is not 0; NaN stays NaN."""
    return jnp.sum(jnp.where(root[:, 0] == 0, 0.0, weights))


@functools.partial(jax.jit, static_argnames="samples")
def of_sums(sums: Sums, head: Array, samples: int | None = None) -> Marginals:
    """From statistics by class and a head; `samples` if their number is known."""
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
    entropy1 = entropy_of(jnp.sum(moments, axis=0))
    return Marginals(operator, entropy1, head_entropy(heads, traces / scale), weight)


@jax.jit
def joint_entropy_of_moments(moments: Array, heads: Array) -> Array:
    """`H(K1 ⊙ K2)` by one decomposition."""
    return entropy_of(joint_of_moments(moments, heads))


@functools.partial(jax.jit, static_argnames="shards")
def of_rows(features: Array, head: Array, labels: Array, weights: Array, shards: int) -> Marginals:
    """From rows that keep their places on `shards` devices."""
    sides = sides_of(features, head, labels, weights)
    rows = sides.root * sides.rows
    trace = total(jnp.square(rows))
    rows = rows / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))
    blocks = class_blocks(rows, sides.labels, len(head), shards)
    shares = jnp.sum(jnp.square(blocks.rows), axis=(-2, -1))[:, :, None]
    shares = sum_by_class(shares, blocks.classes, len(head))[:, 0]
    entropy2 = head_entropy(sides.heads, shares)
    operator = RowOperator(*blocks, sides.heads, samples=len(features))
    weight = weight_of(sides.root, weights)
    return Marginals(operator, entropy_of(small_side(rows)), entropy2, weight)


@functools.partial(jax.jit, static_argnames="shards")
def of_pair(features1: Array, features2: Array, weights: Array, shards: int = 1) -> Marginals:
    """From two representations of the same samples."""
    rows1, rows2, root = pair_rows(features1, features2, weights)
    entropies = entropy_of(small_side(root * rows1)), entropy_of(small_side(root * rows2))
    trace = total(jnp.square(root * rows1))
    root = root / jnp.sqrt(jnp.where(trace == 0, 1.0, trace))
    operator = PairOperator(root * rows1, jnp.where(root == 0, 0.0, rows2), shards)
    return Marginals(operator, *entropies, weight_of(root, weights))


@jax.jit
def joint_entropy_of_pair(operator: PairOperator) -> Array:
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
