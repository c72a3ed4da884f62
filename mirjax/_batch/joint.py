"""Features against head: the marginal entropies and the joint matrix, at their smallest size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of, unit_rows
from mirjax._batch.gram import normalize_rows, safe_sqrt, small_side
from mirjax._linalg.decompositions import svd
from mirjax._linalg.precision import matmul
from mirjax._linalg.spectrum import Method


class Sides(NamedTuple):
    """Normalised features and head, and how the weight is spread over samples and classes."""

    rows: Array
    heads: Array
    labels: Array
    root: Array
    members: Array


def sides_of(features: Array, head: Array, labels: Array, weights: Array) -> Sides:
    """Normalises, and turns what has no direction into weight 0 and what has no meaning into NaN."""
    classes = head.shape[0]
    valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(valid, labels, 0)
    weights = jnp.where(valid | (weights == 0), weights, jnp.nan)
    heads = normalize_rows(head)
    weights = jnp.where(valid & jnp.all(heads == 0, axis=-1)[labels], 0.0, weights)
    rows, share = unit_rows(features, weights)
    return Sides(
        rows,
        heads,
        labels,
        safe_sqrt(share)[:, None],
        jax.nn.one_hot(labels, classes, dtype=rows.dtype),
    )


def marginal_entropies(sides: Sides, method: Method = "eigh") -> tuple[Array, Array]:
    """`H(K1)` and `H(K2)`."""
    samples, classes = sides.members.shape
    if samples < classes:
        second = entropy_of(small_side(sides.root * sides.heads[sides.labels]), method=method)
    else:
        frequency = jnp.sum(sides.members * jnp.square(sides.root), axis=0)
        second = head_entropy(sides.heads, frequency, method)
    return entropy_of(small_side(sides.root * sides.rows), method=method), second


def head_entropy(
    heads: Float[Array, "c d"], frequency: Float[Array, " c"], method: Method = "eigh"
) -> Array:
    """`H(K2)` from normalised head rows and the share of each class."""
    return entropy_of(small_side(safe_sqrt(frequency)[:, None] * heads), method=method)


def joint_matrix(sides: Sides) -> Array:
    """A unit-trace matrix with the non-zero spectrum of `√p (K1 ⊙ K2) √p`."""
    samples, width = sides.rows.shape
    if samples <= width * min(width, sides.heads.shape[0]):
        return _joint_of_samples(sides)
    return _joint_of_moments(sides)


def _joint_of_samples(sides: Sides) -> Array:
    """`√p (K1 ⊙ K2) √p`, n × n."""
    scaled = sides.root * sides.rows
    similarity = matmul(sides.heads, sides.heads.T)
    # Two gathers of whole rows: much faster than one of n² scattered entries.
    similarity = similarity[sides.labels].T[sides.labels]
    return matmul(scaled, scaled.T) * similarity


def _joint_of_moments(sides: Sides) -> Array:
    """The Gram matrix of all coordinates of `ẑ ⊗ ŵ_y`, whose side does not depend on n."""
    scaled = sides.root * sides.rows
    samples, width = scaled.shape
    classes = sides.heads.shape[0]
    by_class = sides.members[:, :, None] * scaled[:, None, :]
    moments = matmul(by_class.reshape(samples, classes * width).T, scaled)
    return joint_of_moments(moments.reshape(classes, width, width), sides.heads)


def joint_of_moments(moments: Float[Array, "c d d"], heads: Float[Array, "c d"]) -> Array:
    """`Σ_c w_c w_cᵀ ⊗ M_c` in coordinates of the head, of side `d · min(c, d)`."""
    classes, width = heads.shape
    coordinates = head_coordinates(heads)
    rank = coordinates.shape[1]
    pairs = (coordinates[:, :, None] * coordinates[:, None, :]).reshape(classes, rank * rank)
    joint = matmul(pairs.T, moments.reshape(classes, width * width))
    joint = joint.reshape(rank, rank, width, width).transpose(0, 2, 1, 3)
    return joint.reshape(rank * width, rank * width)


def head_coordinates(heads: Float[Array, "c d"]) -> Float[Array, "c r"]:
    """Rows with the Gram matrix of `heads` in `r = min(c, d)` coordinates, to second order."""
    if heads.shape[0] >= heads.shape[1]:
        return heads
    # The row space is held fixed, so that nothing divides by differences of singular values.
    left, values, right = svd(lax.stop_gradient(heads))
    inside = matmul(heads, right.T)
    # What leaves the row space is zero in value and in first derivative, and adds its Gram matrix
    # in the second: find X with X insideᵀ + inside Xᵀ equal to that.
    leaving = heads - matmul(inside, right)
    curvature = matmul(leaving, leaving.T)
    kept = values > heads.shape[1] * jnp.finfo(heads.dtype).eps * values[0]
    inverse = left * jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)[None, :]
    basis = jnp.where(kept[None, :], left, 0.0)
    half = curvature - 0.5 * matmul(basis, matmul(basis.T, curvature))
    return inside + matmul(half, inverse)
