"""Features against head: marginal entropies and joint matrix, each on its smallest side."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.classes import weight_by_class
from mirjax._batch.entropy import entropy_of, unit_rows
from mirjax._batch.gram import normalize_rows, safe_sqrt, small_side
from mirjax._linalg.decompositions import svd
from mirjax._linalg.precision import collision_entropy, matmul, total
from mirjax._linalg.spectrum import EntropyMethod

# The entries of an array of samples by classes or pairs of columns, and by features.
_BY_CLASS = 2**26


class NormalizedInputs(NamedTuple):
    """Normalised features and head, and how the weight is distributed over the samples.

    With fewer samples than classes, each sample has a row of the head for itself: then c is n.

    Attributes:
        rows: `[n, d]`, normalised features.
        head_rows: `[c, d]`, normalised rows of the head.
        labels: `[n]`, the row of the head of each sample, 0 in place of an invalid label.
        root: `[n, 1]`, square root of each sample's share of the weight.
    """

    rows: Array
    head_rows: Array
    labels: Array
    root: Array

    @property
    def by_sample(self) -> bool:
        """Whether row i of the head belongs to sample i."""
        return len(self.head_rows) == len(self.rows)


def normalized_inputs(
    features: Array, head: Array, labels: Array, weights: Array
) -> NormalizedInputs:
    """Normalises; zero rows get weight 0, samples with an invalid label or weight become NaN."""
    samples, classes = len(features), len(head)
    # Indexing would clip or wrap an invalid label silently: it becomes 0, and its weight NaN.
    valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(valid, labels, 0)
    weights = jnp.where(valid | (weights == 0), weights, jnp.nan)
    # A row of the head may belong to no sample; a NaN in it shows all the same.
    weights = jnp.where(jnp.any(jnp.isnan(head)) & (weights != 0), jnp.nan, weights)
    if samples <= classes:
        head, labels = head[labels], jnp.arange(samples, dtype=labels.dtype)
    head_rows = normalize_rows(head)
    weights = jnp.where(valid & jnp.all(head_rows == 0, axis=-1)[labels], 0.0, weights)
    rows, share = unit_rows(features, weights)
    return NormalizedInputs(rows, head_rows, labels, safe_sqrt(share)[:, None])


def marginal_entropies(
    inputs: NormalizedInputs, order: float | int = 1, method: EntropyMethod = "eigh"
) -> tuple[Array, Array]:
    """`H(K1)` and `H(K2)`."""
    # K2 has one distinct row per class: with fewer classes than samples it is a matrix of classes.
    if inputs.by_sample:
        second = entropy_of(small_side(inputs.root * inputs.head_rows), order, method=method)
    else:
        share, classes = jnp.square(inputs.root[:, 0]), len(inputs.head_rows)
        frequency = weight_by_class(share, inputs.labels, classes)
        second = head_entropy(inputs.head_rows, frequency, order, method)
    return entropy_of(small_side(inputs.root * inputs.rows), order, method=method), second


def head_entropy(
    head_rows: Float[Array, "c d"],
    frequency: Float[Array, " c"],
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Array:
    """`H(K2)` from normalised head rows and the share of each class."""
    weighted = safe_sqrt(frequency)[:, None] * head_rows
    return entropy_of(small_side(weighted), order, method=method)


def joint_entropy(
    inputs: NormalizedInputs, order: float | int = 1, method: EntropyMethod = "eigh"
) -> Array:
    """`H(K1 ⊙ K2)`."""
    (samples, width), classes = inputs.rows.shape, len(inputs.head_rows)
    # The matrix of moments needs coordinates of few classes, which a decomposition gives.
    if order == 2 and classes < width and samples > width * classes:
        return _collision_of_moments(inputs)
    return entropy_of(joint_matrix(inputs), order, method=method)


def joint_matrix(inputs: NormalizedInputs) -> Array:
    """A unit-trace matrix with the non-zero spectrum of `√p (K1 ⊙ K2) √p`."""
    (samples, width), classes = inputs.rows.shape, len(inputs.head_rows)
    # The matrix of samples has side n, that of moments `d · min(c, d)`.
    if samples <= width * min(width, classes):
        return _joint_of_samples(inputs)
    if not inputs.by_sample and samples * classes * width <= _BY_CLASS:
        return _joint_of_moments(inputs)
    return _joint_of_pairs(inputs)


def _joint_of_samples(inputs: NormalizedInputs) -> Array:
    """`√p (K1 ⊙ K2) √p`, n × n."""
    scaled = inputs.root * inputs.rows
    similarity = matmul(inputs.head_rows, inputs.head_rows.T)
    if not inputs.by_sample:
        # Two gathers of whole rows are much faster than one of n² scattered entries.
        similarity = similarity[inputs.labels].T[inputs.labels]
    return matmul(scaled, scaled.T) * similarity


def _joint_of_moments(inputs: NormalizedInputs) -> Array:
    """The second moment matrix of `ẑ ⊗ ŵ_y`, whose side does not depend on n."""
    moments = _moments(inputs.root * inputs.rows, inputs.labels, len(inputs.head_rows))
    return joint_of_moments(moments, inputs.head_rows)


def _collision_of_moments(inputs: NormalizedInputs) -> Array:
    """`H(K1 ⊙ K2)` of order 2, from the overlaps of the moments of all pairs of classes."""
    scaled, classes = inputs.root * inputs.rows, len(inputs.head_rows)
    samples, width = scaled.shape
    step = max(1, min(samples, _BY_CLASS // (classes * width)))
    if step >= samples:
        moments = _moments(scaled, inputs.labels, classes)
    else:
        of_some = jax.checkpoint(lambda part: _moments(part[0], part[1], classes))
        moments = _sum_over_steps(of_some, scaled, inputs.labels, step)
    trace = lax.stop_gradient(total(jnp.trace(moments, axis1=-2, axis2=-1)))
    moments = moments / jnp.where(trace == 0, 1.0, trace)
    shares = jnp.trace(moments, axis1=-2, axis2=-1)
    flat = moments.reshape(classes, width * width)
    similarity = jnp.square(matmul(inputs.head_rows, inputs.head_rows.T))
    overlaps = similarity * matmul(flat, flat.T)
    mixed = total(shares[:, None] * shares[None, :] - overlaps)
    return jnp.where(trace == 0, 0.0, collision_entropy(mixed, total(overlaps)))


def _moments(
    scaled: Float[Array, "n d"], labels: Int[Array, " n"], classes: int
) -> Float[Array, "c d d"]:
    """`Σ z zᵀ` over the rows of each class."""
    samples, width = scaled.shape
    members = jax.nn.one_hot(labels, classes, dtype=scaled.dtype)
    by_class = members[:, :, None] * scaled[:, None, :]
    moments = matmul(by_class.reshape(samples, classes * width).T, scaled)
    return moments.reshape(classes, width, width)


def _joint_of_pairs(inputs: NormalizedInputs) -> Array:
    """The same matrix as a sum over samples, some at a time.

    For many classes the moments of each would take more memory than the samples.
    """
    coordinates = head_coordinates(inputs.head_rows)
    side = inputs.rows.shape[1] * coordinates.shape[1]
    samples = len(inputs.rows)
    step = max(1, min(samples, _BY_CLASS // side))
    scaled = inputs.root * inputs.rows

    def of_some(part: tuple[Array, Array]) -> Array:
        pairs = coordinates[part[1]][:, :, None] * part[0][:, None, :]
        pairs = pairs.reshape(step, side)
        return matmul(pairs.T, pairs)

    if step >= samples:
        return of_some((scaled, inputs.labels))
    return _sum_over_steps(jax.checkpoint(of_some), scaled, inputs.labels, step)


def _sum_over_steps(
    function: Callable[[tuple[Array, Array]], Array], rows: Array, labels: Array, step: int
) -> Array:
    """The sum of a function of some rows and their labels over all rows, `step` at a time."""
    # Rows that fill up the last step are zero.
    rows = jnp.pad(rows, ((0, -len(rows) % step), (0, 0)))
    labels = jnp.pad(labels, (0, -len(labels) % step))
    parts = rows.reshape(-1, step, rows.shape[1]), labels.reshape(-1, step)
    shape = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts)).shape

    def add(sums: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return sums + function(part), None

    # Made from the rows: inside `jax.shard_map` the sum varies over devices as they do.
    return lax.scan(add, jnp.zeros_like(rows, shape=shape), parts)[0]


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
    kept = values > head_rows.shape[1] * float(jnp.finfo(head_rows.dtype).eps) * values[0]
    inverse = left * jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)[None, :]
    basis = jnp.where(kept[None, :], left, 0.0)
    half = curvature - 0.5 * matmul(basis, matmul(basis.T, curvature))
    return inside + matmul(half, inverse)
