"""Features against head: marginal entropies and joint matrix, each on its smallest side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of, unit_rows
from mirjax._batch.gram import normalize_rows, safe_sqrt, small_side
from mirjax._linalg.decompositions import svd
from mirjax._linalg.precision import matmul
from mirjax._linalg.spectrum import EntropyMethod


class NormalizedInputs(NamedTuple):
    """Normalised features and head, and how the weight is distributed over samples and classes.

    Attributes:
        rows: `[n, d]`, normalised features.
        head_rows: `[c, d]`, normalised rows of the head.
        labels: `[n]`, 0 in place of an invalid one.
        root: `[n, 1]`, square root of each sample's share of the weight.
        members: `[n, c]`, one-hot labels.
    """

    rows: Array
    head_rows: Array
    labels: Array
    root: Array
    members: Array


def normalized_inputs(
    features: Array, head: Array, labels: Array, weights: Array
) -> NormalizedInputs:
    """Normalises; zero rows get weight 0, samples with an invalid label or weight become NaN."""
    classes = head.shape[0]
    # Indexing would clip or wrap an invalid label silently: it becomes 0, and its weight NaN.
    valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(valid, labels, 0)
    weights = jnp.where(valid | (weights == 0), weights, jnp.nan)
    head_rows = normalize_rows(head)
    weights = jnp.where(valid & jnp.all(head_rows == 0, axis=-1)[labels], 0.0, weights)
    rows, share = unit_rows(features, weights)
    return NormalizedInputs(
        rows,
        head_rows,
        labels,
        safe_sqrt(share)[:, None],
        jax.nn.one_hot(labels, classes, dtype=rows.dtype),
    )


def marginal_entropies(
    inputs: NormalizedInputs, method: EntropyMethod = "eigh"
) -> tuple[Array, Array]:
    """`H(K1)` and `H(K2)`."""
    samples, classes = inputs.members.shape
    # K2 has one distinct row per class: with fewer classes than samples it is a matrix of classes.
    if samples < classes:
        head_rows = inputs.head_rows[inputs.labels]
        second = entropy_of(small_side(inputs.root * head_rows), method=method)
    else:
        frequency = jnp.sum(inputs.members * jnp.square(inputs.root), axis=0)
        second = head_entropy(inputs.head_rows, frequency, method)
    return entropy_of(small_side(inputs.root * inputs.rows), method=method), second


def head_entropy(
    head_rows: Float[Array, "c d"], frequency: Float[Array, " c"], method: EntropyMethod = "eigh"
) -> Array:
    """`H(K2)` from normalised head rows and the share of each class."""
    return entropy_of(small_side(safe_sqrt(frequency)[:, None] * head_rows), method=method)


def joint_matrix(inputs: NormalizedInputs) -> Array:
    """A unit-trace matrix with the non-zero spectrum of `√p (K1 ⊙ K2) √p`."""
    samples, width = inputs.rows.shape
    # The matrix of samples has side n, that of moments `d · min(c, d)`.
    if samples <= width * min(width, inputs.head_rows.shape[0]):
        return _joint_of_samples(inputs)
    return _joint_of_moments(inputs)


def _joint_of_samples(inputs: NormalizedInputs) -> Array:
    """`√p (K1 ⊙ K2) √p`, n × n."""
    scaled = inputs.root * inputs.rows
    similarity = matmul(inputs.head_rows, inputs.head_rows.T)
    # Two gathers of whole rows are much faster than one of n² scattered entries.
    similarity = similarity[inputs.labels].T[inputs.labels]
    return matmul(scaled, scaled.T) * similarity


def _joint_of_moments(inputs: NormalizedInputs) -> Array:
    """The second moment matrix of `ẑ ⊗ ŵ_y`, whose side does not depend on n."""
    scaled = inputs.root * inputs.rows
    samples, width = scaled.shape
    classes = inputs.head_rows.shape[0]
    by_class = inputs.members[:, :, None] * scaled[:, None, :]
    moments = matmul(by_class.reshape(samples, classes * width).T, scaled)
    return joint_of_moments(moments.reshape(classes, width, width), inputs.head_rows)


def joint_of_moments(moments: Float[Array, "c d d"], head_rows: Float[Array, "c d"]) -> Array:
    """`Σ_c w_c w_cᵀ ⊗ M_c` in coordinates of the head, a matrix of side `d · min(c, d)`."""
    classes, width = head_rows.shape
    coordinates = head_coordinates(head_rows)
    rank = coordinates.shape[1]
    pairs = (coordinates[:, :, None] * coordinates[:, None, :]).reshape(classes, rank * rank)
    joint = matmul(pairs.T, moments.reshape(classes, width * width))
    joint = joint.reshape(rank, rank, width, width).transpose(0, 2, 1, 3)
    return joint.reshape(rank * width, rank * width)


def head_coordinates(head_rows: Float[Array, "c d"]) -> Float[Array, "c r"]:
    """Rows of `r = min(c, d)` coordinates with, to second order, the Gram matrix of the head."""
    if head_rows.shape[0] >= head_rows.shape[1]:
        return head_rows
    # The row space is held constant, so that no derivative divides by differences of singular
    # values.
    left, values, right = svd(lax.stop_gradient(head_rows))
    inside = matmul(head_rows, right.T)
    # The part outside the row space adds its Gram matrix: 0 in value and first derivative, not in
    # the second. Find X with X insideᵀ + inside Xᵀ equal to that Gram matrix.
    leaving = head_rows - matmul(inside, right)
    curvature = matmul(leaving, leaving.T)
    kept = values > head_rows.shape[1] * jnp.finfo(head_rows.dtype).eps * values[0]
    inverse = left * jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)[None, :]
    basis = jnp.where(kept[None, :], left, 0.0)
    half = curvature - 0.5 * matmul(basis, matmul(basis.T, curvature))
    return inside + matmul(half, inverse)
