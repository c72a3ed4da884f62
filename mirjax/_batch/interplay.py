"""MI, MIR and HDR of features and head, of two representations, and of class means and head."""

import functools

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mirjax import _memory as memory
from mirjax._batch.entropy import entropy_of, unit_rows
from mirjax._batch.gram import safe_sqrt, small_side
from mirjax._batch.joint import joint_entropy, marginal_entropies, normalized_inputs
from mirjax._batch.kernels import Interplay, combine, over_batches
from mirjax._checks import (
    ArrayLike,
    as_float,
    as_labels,
    common_float,
    entropy_order,
    head_of,
    same_size,
    sample_weights,
)
from mirjax._linalg.precision import matmul
from mirjax._linalg.rounding import power_of_two, stated_eps
from mirjax._linalg.spectrum import EntropyMethod


def interplay(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Interplay:
    r"""MI, MIR and HDR between a representation and its classification head.

    `K1 = G(features)` and `K2 = G(head[labels])` are n × n by definition. The matrices that are
    decomposed are never larger than necessary: their sides are `min(n, d)`,
    `min(n, num_classes, d)` and, for the joint matrix, `min(n, d · min(num_classes, d))`.

    Args:
        features: `[..., n, d]`, the input of the head, one sample per row, of any scale.
        head: `[..., num_classes, d]`, one class per row; for a Flax `Dense` layer the transposed
            kernel. The bias is not used.
        labels: integers `[..., n]`. For soft labels `q` `[n, num_classes]` use
            `feature_interplay(features, q @ head)`.
        weights: non-negative `[..., n]`: `K / n` becomes `√w K √w / Σw`. Weight 0 drops a
            sample exactly, whatever it holds (NaN, label -1). The derivative at weight 0 is taken
            as 0.
        order: α of the Rényi entropies, a positive Python number or `jnp.inf`; the paper has 1.
            Order 2 needs no decomposition. At other orders than 1 nothing keeps the mutual
            information from being negative.
        method: `"eigh"` (decompositions), `"products"` (matrix products alone, for accelerators) or
            `"auto"` (products except on a CPU); `matrix_entropy` states their errors.

    Returns:
        `Interplay` of `[...]` arrays; entropies in nats. A sample counts as weight 0 if its feature
        row or its row of the head is zero. The result is NaN where the head or a counted sample has
        a NaN, a label outside `[0, num_classes)` or a negative weight, and 0 where no weight is
        left. `mirjax.check` finds such input.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match; the message names argument and shapes.
        MemoryError: the joint matrix does not fit; `dataset_interplay` serves instead.

    Cost: `O(n² d + n³)` while `n <= d · min(num_classes, d)`, otherwise
    `O(n d² num_classes + (d · min(num_classes, d))³)`.

    Twice differentiable in features and head, in forward and reverse mode, at any rank, also at
    neural collapse; `Interplay` states the derivatives of ratios and differences where these are
    not smooth.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head = mirjax.theory.simplex_etf(10, 16)
        >>> labels = jnp.arange(50) % 10
        >>> result = mirjax.interplay(3.0 * head[labels], head, labels)
        >>> print(f"{result.mir:.4f} {result.hdr:.4f}")
        0.9524 0.0000

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between features and head.
    """
    entropy_order(order, method)
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    width = features.shape[-1]
    _joint_fits(features, width * min(width, head.shape[-2]), "dataset_interplay")
    single = functools.partial(_interplay, order=order, method=method)
    return over_batches(single, "(n,d),(c,d),(n),(n)")(features, head, labels, weights)


def feature_interplay(
    features1: Float[ArrayLike, "*batch n d1"],
    features2: Float[ArrayLike, "*batch n d2"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Interplay:
    r"""MI, MIR and HDR between two representations of the same samples.

    `K1 = G(features1)`, `K2 = G(features2)`: for instance a network before and after pruning, two
    layers, or features and the soft-label head rows `q @ head`. The widths may differ. The matrices
    that are decomposed have the sides `min(n, d1)`, `min(n, d2)` and `min(n, d1 · d2)`.

    Args:
        features1: `[..., n, d1]`, one sample per row.
        features2: `[..., n, d2]`, the same samples in the same order.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        order: as in `interplay`.
        method: as in `interplay`.

    Returns:
        `Interplay` of `[...]` arrays. A sample with a zero row in either array counts as weight 0.
        The result is NaN for rows with NaN and negative weights, and 0 where no weight is left.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match; the message names argument and shapes.
        MemoryError: the joint matrix does not fit; `dataset_feature_interplay` serves instead.

    Cost: `O(n² (d1 + d2) + n³)` while `n <= d1 · d2`. Differentiable like `interplay`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> result = mirjax.feature_interplay(jnp.eye(6, 8), jnp.eye(6))
        >>> print(f"{result.mutual_information:.4f} {result.mir:.4f}")
        1.7918 1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), MIR and HDR between two representations.
    """
    entropy_order(order, method)
    features1, features2, weights = checked_pair(features1, features2, weights)
    pairs = features1.shape[-1] * features2.shape[-1]
    _joint_fits(features1, pairs, "dataset_feature_interplay")
    single = functools.partial(_feature_interplay, order=order, method=method)
    return over_batches(single, "(n,d),(n,e),(n)")(features1, features2, weights)


def class_interplay(
    class_means: Float[ArrayLike, "*batch c d"],
    head: Float[ArrayLike, "*batch c d"],
    /,
    *,
    global_mean: Float[ArrayLike, "*batch d"] | None = None,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
    precision: DTypeLike | None = None,
) -> Interplay:
    r"""MI, MIR and HDR between the centred class means and the head, as in the collapse theorem.

    `K1 = G(class_means - global_mean)` and `K2 = G(head)` are both `num_classes × num_classes`. At
    neural collapse `mir` is `theory.collapsed_mir(num_classes)` and `hdr` is 0.

    Args:
        class_means: `[..., num_classes, d]`, not centred: this function centres them.
            `mirjax.class_means` computes them.
        head: `[..., num_classes, d]`, not centred.
        global_mean: `[..., d]`, the mean that is subtracted. If not given, it is the mean of the
            class means, which for balanced classes is the mean of all samples.
        order: as in `interplay`.
        method: as in `interplay`.
        precision: the dtype in which the class means were made, if they were cast up since. If not
            given, it is their own.

    Returns:
        `Interplay` of `[...]` arrays. A class whose mean equals the global mean up to rounding has
        no direction and is left out, and so is a class whose row of the head is zero.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.
        MemoryError: there are so many classes that a matrix of `num_classes × num_classes` does not
            fit; the message has the numbers. `dataset_feature_interplay` serves instead.

    Cost: `O(num_classes² d + num_classes³)`. Differentiable like `interplay`.

    Example:
        >>> import mirjax
        >>> means = 5.0 + mirjax.theory.simplex_etf(4, 8)
        >>> result = mirjax.class_interplay(means, mirjax.theory.simplex_etf(4, 8))
        >>> print(f"{result.mir:.4f} {mirjax.theory.collapsed_mir(4):.4f}")
        0.7540 0.7540

    Source: Song et al. 2024 (arXiv 2406.03999), theorem on neural collapse; Papyan et al. 2020.
    """
    given = class_means
    class_means = as_float(class_means, "class_means", axes="num_classes d")
    head = as_float(head, "head", axes="num_classes d")
    same_size(class_means, "class_means", head, "head", axis=(-2, -2), what="num_classes")
    same_size(class_means, "class_means", head, "head", axis=(-1, -1), what="d")
    eps = stated_eps(given.dtype, precision)
    class_means, head = common_float(class_means, head)
    _joint_fits(
        class_means,
        class_means.shape[-1] * head.shape[-1],
        "dataset_feature_interplay(class_means - global_mean, head)",
        what="the joint kernel of {} classes",
    )
    # Directions do not depend on the scale, at which sums and differences stay finite.
    scale = power_of_two(jnp.max(jnp.abs(class_means), axis=(-2, -1)))
    class_means = class_means / scale[..., None, None]
    if global_mean is None:
        centre = jnp.mean(class_means, axis=-2)
    else:
        centre = as_float(global_mean, "global_mean", axes="d").astype(head.dtype)
        same_size(class_means, "class_means", centre, "global_mean", axis=(-1, -1), what="d")
        centre = centre / scale[..., None]
    rows = class_means - centre[..., None, :]
    # The direction of a rounding error would count as much as that of any other class.
    rounding = max(4 * float(jnp.finfo(rows.dtype).eps), 0.5 * (eps or 0.0))
    largest = jnp.max(jnp.abs(class_means), axis=(-2, -1), keepdims=True)
    is_noise = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) <= rounding * largest
    return feature_interplay(jnp.where(is_noise, 0.0, rows), head, order=order, method=method)


def _joint_fits(
    rows: Array, pairs: int, instead: str, what: str = "the joint kernel of {} samples"
) -> None:
    """Raises an error, when it is traced, if the joint matrix of the rows is too large."""
    count = rows.shape[-2]
    memory.check_side(min(count, pairs), rows.dtype.itemsize, what.format(count), instead)


def checked_arguments(
    features: ArrayLike, head: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """The four arguments of `interplay`, checked and in one dtype."""
    features = as_float(features, "features", axes="n d")
    head = as_float(head, "head", axes="num_classes d")
    labels = as_labels(labels)
    head_of(features, head)
    same_size(features, "features", labels, "labels", axis=(-2, -1), what="the number of samples n")
    features, head = common_float(features, head)
    return features, head, labels, sample_weights(weights, features, "features")


def checked_pair(
    features1: ArrayLike, features2: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """The arguments of `feature_interplay`, checked and in one dtype."""
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
    return features1, features2, sample_weights(weights, features1, "features1")


def _interplay(
    features: Array,
    head: Array,
    labels: Array,
    weights: Array,
    order: float | int,
    method: EntropyMethod,
) -> Interplay:
    inputs = normalized_inputs(features, head, labels, weights)
    marginals = marginal_entropies(inputs, order, method)
    return combine(*marginals, joint_entropy(inputs, order, method))


def _feature_interplay(
    rows1: Array, rows2: Array, weights: Array, order: float | int, method: EntropyMethod
) -> Interplay:
    rows1, rows2, root = pair_rows(rows1, rows2, weights)
    samples, width = rows1.shape[0], rows1.shape[1] * rows2.shape[1]
    # Both joint matrices have the same non-zero spectrum; the smaller one is formed.
    if samples <= width:
        joint = matmul(root * rows1, (root * rows1).T) * matmul(rows2, rows2.T)
    else:
        pairs = (root * rows1)[:, :, None] * rows2[:, None, :]
        joint = small_side(pairs.reshape(samples, width))
    matrices = small_side(root * rows1), small_side(root * rows2), joint
    return combine(*(entropy_of(m, order, method=method) for m in matrices))


def pair_rows(features1: Array, features2: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Normalised rows of both, and the square root `[n, 1]` of each sample's share."""
    rows1, _ = unit_rows(features1, weights)
    # A sample without a direction in one representation gets weight 0 in both: the share below
    # takes the second into account.
    rows2, share = unit_rows(features2, jnp.where(jnp.all(rows1 == 0, axis=-1), 0.0, weights))
    return rows1, rows2, safe_sqrt(share)[:, None]
