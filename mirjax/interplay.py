"""Mutual information, MIR and HDR: of two kernels, of features and head, of two representations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax.checks import (
    ArrayLike,
    as_float,
    as_labels,
    common_float,
    head_of,
    same_size,
    sample_weights,
    square,
)
from mirjax.entropy import entropy_of, unit_rows, unit_trace
from mirjax.gram import normalize_rows, safe_sqrt, small_side
from mirjax.spectrum import entropy_rounding, matmul


class Interplay(NamedTuple):
    """What two views of the same samples share. Entropies in nats, ratios without unit.

    Attributes:
        entropy1: `H(K1)`, of the features (or the first representation).
        entropy2: `H(K2)`, of the head rows of the labels (or the second representation).
        joint_entropy: `H(K1 ⊙ K2)`.
        mutual_information: `MI = H(K1) + H(K2) - H(K1 ⊙ K2)`.
        entropy_difference: `|H(K1) - H(K2)|`; derivative 0 where they are equal.
        mir: `MI / min(H(K1), H(K2))`; 0 where the smaller entropy is 0 (0/0).
        hdr: `|H(K1) - H(K2)| / max(H(K1), H(K2))`, in [0, 1]; 0 where both entropies are 0 (0/0).
    """

    entropy1: Float[Array, "*batch"]
    entropy2: Float[Array, "*batch"]
    joint_entropy: Float[Array, "*batch"]
    mutual_information: Float[Array, "*batch"]
    entropy_difference: Float[Array, "*batch"]
    mir: Float[Array, "*batch"]
    hdr: Float[Array, "*batch"]


def mutual_information(
    kernel1: Float[ArrayLike, "*batch n n"], kernel2: Float[ArrayLike, "*batch n n"], /
) -> Float[Array, "*batch"]:
    r"""`MI = H(kernel1) + H(kernel2) - H(kernel1 ⊙ kernel2)`, in nats, as printed in the paper.

    On Gram matrices; `interplay` gives the same number from features and head at a lower cost.

    Args:
        kernel1: positive semi-definite `[..., n, n]`, for instance `gram(features)`.
        kernel2: positive semi-definite `[..., n, n]`, for instance `gram(head[labels])`.

    Returns:
        `[...]`; for Gram matrices from 0 to `min(H(kernel1), H(kernel2))`.

    Raises:
        TypeError, ValueError: a kernel is not square, the two differ in n, a dtype is no float.

    Cost: three decompositions, `O(n³)`. Differentiable as `matrix_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.mutual_information(jnp.eye(4), jnp.eye(4)):.4f}")
        1.3863

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix mutual information.
    """
    return kernel_interplay(kernel1, kernel2).mutual_information


def mir(
    kernel1: Float[ArrayLike, "*batch n n"], kernel2: Float[ArrayLike, "*batch n n"], /
) -> Float[Array, "*batch"]:
    r"""Matrix mutual information ratio, `MI(kernel1, kernel2) / min(H(kernel1), H(kernel2))`.

    In [0, 1] for Gram matrices, and strongly biased upwards by a small n: name the n with the value.
    0 where the smaller entropy is 0 to rounding (0/0), with derivative 0.
    Arguments, errors, cost and differentiability: as `mutual_information`; where the two entropies
    are equal the derivative of the minimum is the mean of the two.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.mir(jnp.eye(4), jnp.eye(4)):.4f}")
        1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of MIR.
    """
    return kernel_interplay(kernel1, kernel2).mir


def hdr(
    kernel1: Float[ArrayLike, "*batch n n"], kernel2: Float[ArrayLike, "*batch n n"], /
) -> Float[Array, "*batch"]:
    r"""Matrix entropy difference ratio, `|H(kernel1) - H(kernel2)| / max(H(kernel1), H(kernel2))`.

    In [0, 1]. 0 where both entropies are 0 to rounding (0/0), with derivative 0.
    Arguments, errors, cost and differentiability: as `mutual_information`; where the two entropies
    are equal the derivative is 0.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.hdr(jnp.eye(4), jnp.ones((4, 4))):.4f}")
        1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of HDR.
    """
    return kernel_interplay(kernel1, kernel2).hdr


def kernel_interplay(
    kernel1: Float[ArrayLike, "*batch n n"], kernel2: Float[ArrayLike, "*batch n n"], /
) -> Interplay:
    """All fields of `Interplay` for two kernels: `mutual_information`, `mir` and `hdr` at once.

    Arguments, errors, cost and differentiability: as `mutual_information`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> result = mirjax.kernel_interplay(jnp.eye(4), jnp.ones((4, 4)))
        >>> print(f"{result.joint_entropy:.4f}")
        1.3863
    """
    kernel1 = as_float(kernel1, "kernel1", axes="n n")
    kernel2 = as_float(kernel2, "kernel2", axes="n n")
    square(kernel1, "kernel1")
    square(kernel2, "kernel2")
    same_size(kernel1, "kernel1", kernel2, "kernel2", axis=(-1, -1), what="the number of samples n")
    kernel1, kernel2 = (0.5 * (k + jnp.swapaxes(k, -1, -2)) for k in common_float(kernel1, kernel2))

    def single(k1: Array, k2: Array) -> Interplay:
        k1, k2 = unit_trace(k1), unit_trace(k2)
        return _combine(entropy_of(k1), entropy_of(k2), entropy_of(unit_trace(k1 * k2)), len(k1))

    return _vectorize(single, "(n,n),(n,n)")(kernel1, kernel2)


def interplay(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Interplay:
    r"""MI, MIR and HDR between a representation and its classification head.

    `K1 = G(features)` and `K2 = G(head[labels])`, both n × n by definition; what is decomposed is
    never larger than it must be: `min(n, d)`, `min(n, num_classes, d)` and
    `min(n, d · min(num_classes, d))` for the joint matrix.

    Args:
        features: `[..., n, d]`, what the head is applied to, one sample a row, of any scale.
        head: `[..., num_classes, d]`, one class a row; of a Flax `Dense` the transposed kernel. The
            bias does not enter.
        labels: integers `[..., n]`. For soft labels `q` `[n, num_classes]` use
            `feature_interplay(features, q @ head)`.
        weights: non-negative `[..., n]`: `K / n` becomes `√w K √w / Σw`, and weight 0 drops a sample
            exactly, whatever it holds (NaN, label -1). The derivative at weight 0 is taken as 0.

    Returns:
        `Interplay` of `[...]` arrays; entropies in nats. A sample whose feature row or head row is
        zero counts as weight 0. NaN where a counted sample has a NaN, a label outside
        `[0, num_classes)` or a negative weight; all 0 where no weight is left. `mirjax.check` finds
        these.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit; the message names argument and shapes.

    Cost: `O(n² d + n³)` while `n <= d · min(num_classes, d)`, else
    `O(n d² num_classes + (d · min(num_classes, d))³)`.

    Differentiable in features and head (forward and reverse, twice) at any rank, at neural collapse
    too; ratios and differences as `Interplay` says.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head = mirjax.theory.simplex_etf(10, 16)
        >>> labels = jnp.arange(50) % 10
        >>> result = mirjax.interplay(3.0 * head[labels], head, labels)
        >>> print(f"{result.mir:.4f} {result.hdr:.4f}")
        0.9524 0.0000

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between features and head.
    """
    features, head, labels, weights = _arguments(features, head, labels, weights)
    return _vectorize(_interplay, "(n,d),(c,d),(n),(n)")(features, head, labels, weights)


def feature_interplay(
    features1: Float[ArrayLike, "*batch n d1"],
    features2: Float[ArrayLike, "*batch n d2"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Interplay:
    r"""MI, MIR and HDR between two representations of the same samples.

    `K1 = G(features1)`, `K2 = G(features2)`: a network before and after pruning, two layers, features
    and soft-label head rows `q @ head`. The widths may differ. Decomposed are sides `min(n, d1)`,
    `min(n, d2)` and `min(n, d1 · d2)`.

    Args:
        features1: `[..., n, d1]`, one sample a row.
        features2: `[..., n, d2]`, the same samples in the same order.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `Interplay` of `[...]` arrays. A sample with a zero row in either counts as weight 0; NaN rows
        and negative weights give NaN; all 0 where no weight is left.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit; the message names argument and shapes.

    Cost: `O(n² (d1 + d2) + n³)` while `n <= d1 · d2`. Differentiable as `interplay`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> result = mirjax.feature_interplay(jnp.eye(6, 8), jnp.eye(6))
        >>> print(f"{result.mutual_information:.4f} {result.mir:.4f}")
        1.7918 1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between two representations.
    """
    features1 = as_float(features1, "features1", axes="n d")
    features2 = as_float(features2, "features2", axes="n d")
    same_size(
        features1,
        "features1",
        features2,
        "features2",
        axis=(-2, -2),
        what="the number of samples n",
    )
    features1, features2 = common_float(features1, features2)
    weights = sample_weights(weights, features1, "features1")
    return _vectorize(_feature_interplay, "(n,d),(n,e),(n)")(features1, features2, weights)


def class_interplay(
    class_means: Float[ArrayLike, "*batch c d"],
    head: Float[ArrayLike, "*batch c d"],
    /,
    *,
    global_mean: Float[ArrayLike, "*batch d"] | None = None,
) -> Interplay:
    r"""MI, MIR and HDR between the centred class means and the head: the theorem's own object.

    `K1 = G(class_means - global_mean)`, `K2 = G(head)`, both `num_classes × num_classes`. At neural
    collapse `mir` is `theory.collapsed_mir(num_classes)` and `hdr` is 0.

    Args:
        class_means: `[..., num_classes, d]`, not centred: that is done here.
        head: `[..., num_classes, d]`, not centred.
        global_mean: `[..., d]`, what to centre with. The mean of the class means if not given, which
            is the mean of all samples for balanced classes.

    Returns:
        `Interplay` of `[...]` arrays. A class whose mean is the global mean to rounding has no
        direction and drops out, as has one with a zero head row.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit.

    Cost: `O(num_classes² d + num_classes³)`. Differentiable as `interplay`.

    Example:
        >>> import mirjax
        >>> means = 5.0 + mirjax.theory.simplex_etf(4, 8)
        >>> result = mirjax.class_interplay(means, mirjax.theory.simplex_etf(4, 8))
        >>> print(f"{result.mir:.4f} {mirjax.theory.collapsed_mir(4):.4f}")
        0.7540 0.7540

    Source: Song et al. 2024 (arXiv 2406.03999), theorem on neural collapse; Papyan et al. 2020.
    """
    class_means = as_float(class_means, "class_means", axes="num_classes d")
    head = as_float(head, "head", axes="num_classes d")
    same_size(class_means, "class_means", head, "head", axis=(-2, -2), what="num_classes")
    same_size(class_means, "class_means", head, "head", axis=(-1, -1), what="d")
    class_means, head = common_float(class_means, head)
    if global_mean is None:
        centre = jnp.mean(class_means, axis=-2)
    else:
        centre = as_float(global_mean, "global_mean", axes="d").astype(head.dtype)
        same_size(class_means, "class_means", centre, "global_mean", axis=(-1, -1), what="d")
    return feature_interplay(centred(class_means, centre), head)


def centred(class_means: Float[Array, "*batch c d"], centre: Float[Array, "*batch d"]) -> Array:
    """`class_means - centre`, with rows that are zero to rounding set to zero."""
    rows = class_means - centre[..., None, :]
    largest = jnp.max(jnp.abs(class_means), axis=(-2, -1), keepdims=True)
    noise = 4 * jnp.finfo(rows.dtype).eps * largest
    return jnp.where(jnp.max(jnp.abs(rows), axis=-1, keepdims=True) <= noise, 0.0, rows)


def _arguments(
    features: ArrayLike, head: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    features = as_float(features, "features", axes="n d")
    head = as_float(head, "head", axes="num_classes d")
    labels = as_labels(labels)
    head_of(features, head)
    same_size(features, "features", labels, "labels", axis=(-2, -1), what="the number of samples n")
    features, head = common_float(features, head)
    return features, head, labels, sample_weights(weights, features, "features")


def _vectorize(single, signature: str):
    """`single`, which returns an `Interplay`, over any batch axes."""
    outputs = ",".join("()" for _ in Interplay._fields)
    vectorized = jnp.vectorize(
        lambda *args: tuple(single(*args)), signature=f"{signature}->{outputs}"
    )
    return lambda *args: Interplay(*vectorized(*args))


def _combine(entropy1: Array, entropy2: Array, joint: Array, side: int) -> Interplay:
    shared = entropy1 + entropy2 - joint
    difference = jnp.abs(entropy1 - entropy2)
    rounding = entropy_rounding(side, joint.dtype)

    def ratio(part: Array, whole: Array) -> Array:
        defined = ~(whole <= rounding)  # NaN stays NaN
        return jnp.where(defined, part / jnp.where(defined, whole, 1.0), 0.0)

    return Interplay(
        entropy1=entropy1,
        entropy2=entropy2,
        joint_entropy=joint,
        mutual_information=shared,
        entropy_difference=difference,
        mir=ratio(shared, jnp.minimum(entropy1, entropy2)),
        hdr=ratio(difference, jnp.maximum(entropy1, entropy2)),
    )


def _feature_interplay(rows1: Array, rows2: Array, weights: Array) -> Interplay:
    rows1, _ = unit_rows(rows1, weights)
    # A sample without a direction in the first representation is masked in the second, and back.
    rows2, share = unit_rows(rows2, jnp.where(jnp.all(rows1 == 0, axis=-1), 0.0, weights))
    root = safe_sqrt(share)[:, None]
    samples, width = rows1.shape[0], rows1.shape[1] * rows2.shape[1]
    if samples <= width:
        joint = matmul(root * rows1, (root * rows1).T) * matmul(rows2, rows2.T)
    else:
        pairs = (root * rows1)[:, :, None] * rows2[:, None, :]
        joint = small_side(pairs.reshape(samples, width))
    entropies = (entropy_of(k) for k in (small_side(root * rows1), small_side(root * rows2), joint))
    return _combine(*entropies, samples)


class _Sides(NamedTuple):
    """Normalised features and head, and how the weight is spread over samples and classes."""

    rows: Array
    heads: Array
    labels: Array
    root: Array
    members: Array


def _sides(features: Array, head: Array, labels: Array, weights: Array) -> _Sides:
    classes = head.shape[0]
    valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(valid, labels, 0)
    weights = jnp.where(valid | (weights == 0), weights, jnp.nan)
    heads = normalize_rows(head)
    weights = jnp.where(jnp.all(heads == 0, axis=-1)[labels], 0.0, weights)
    rows, share = unit_rows(features, weights)
    return _Sides(rows, heads, labels, safe_sqrt(share)[:, None], jax.nn.one_hot(labels, classes))


def _marginal_entropies(sides: _Sides) -> tuple[Array, Array]:
    samples, classes = sides.members.shape
    if samples < classes:
        second = sides.root * sides.heads[sides.labels]
    else:
        share = jnp.square(sides.root)
        frequency = jnp.sum(sides.members.astype(share.dtype) * share, axis=0)
        second = safe_sqrt(frequency)[:, None] * sides.heads
    return entropy_of(small_side(sides.root * sides.rows)), entropy_of(small_side(second))


def _interplay(features: Array, head: Array, labels: Array, weights: Array) -> Interplay:
    sides = _sides(features, head, labels, weights)
    entropy1, entropy2 = _marginal_entropies(sides)
    samples, width = sides.rows.shape
    if samples <= width * min(width, head.shape[0]):
        joint = _joint_of_samples(sides)
    else:
        joint = _joint_of_moments(sides)
    return _combine(entropy1, entropy2, entropy_of(joint), samples)


def _joint_of_samples(sides: _Sides) -> Array:
    """`√p (K1 ⊙ K2) √p`, n × n."""
    scaled = sides.root * sides.rows
    similarity = matmul(sides.heads, sides.heads.T)
    # Two gathers of whole rows: much faster than one of n² scattered entries.
    similarity = similarity[sides.labels].T[sides.labels]
    return matmul(scaled, scaled.T) * similarity


def _joint_of_moments(sides: _Sides) -> Array:
    """The Gram matrix of all coordinates of `ẑ ⊗ ŵ_y`, whose side does not depend on n."""
    scaled = sides.root * sides.rows
    samples, width = scaled.shape
    classes = sides.heads.shape[0]
    by_class = sides.members.astype(scaled.dtype)[:, :, None] * scaled[:, None, :]
    moments = matmul(by_class.reshape(samples, classes * width).T, scaled)
    coordinates = _head_coordinates(sides.heads)
    rank = coordinates.shape[1]
    pairs = (coordinates[:, :, None] * coordinates[:, None, :]).reshape(classes, rank * rank)
    joint = matmul(pairs.T, moments.reshape(classes, width * width))
    joint = joint.reshape(rank, rank, width, width).transpose(0, 2, 1, 3)
    return joint.reshape(rank * width, rank * width)


def _head_coordinates(heads: Float[Array, "c d"]) -> Float[Array, "c r"]:
    """Rows with the Gram matrix of `heads` in `r = min(c, d)` coordinates, to second order."""
    if heads.shape[0] >= heads.shape[1]:
        return heads
    # The row space is held fixed, so that nothing divides by differences of singular values.
    left, values, right = jnp.linalg.svd(lax.stop_gradient(heads), full_matrices=False)
    inside = matmul(heads, right.T)
    # What leaves the row space is zero in value and in first derivative, and adds its Gram matrix
    # in the second: find X with X insideᵀ + inside Xᵀ equal to that.
    leaving = heads - matmul(inside, right)
    curvature = matmul(leaving, leaving.T)
    kept = values > heads.shape[1] * jnp.finfo(heads.dtype).eps * values[0]
    inverse = left * jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)
    basis = jnp.where(kept, left, 0.0)
    half = curvature - 0.5 * matmul(basis, matmul(basis.T, curvature))
    return inside + matmul(half, inverse)
