"""The two information terms as losses, to be added to a cross-entropy with a weight."""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.interplay import checked_arguments, interplay
from mirjax._batch.joint import marginal_entropies, normalized_inputs
from mirjax._batch.pairs import pairs_of_labels
from mirjax._checks import ArrayLike, as_groups, entropy_order
from mirjax._linalg.spectrum import EntropyMethod
from mirjax._mesh import automatic

Side = Literal["features", "head"]


def mutual_information_loss(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    stop_gradient: Side | None = None,
    order: float | int = 1,
    debiased: bool = False,
    groups: Int[ArrayLike, "*batch n"] | None = None,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""`-MI(G(features), G(head[labels]))`: minimising it raises the mutual information.

    Args:
        features: `[..., n, d]`.
        head: `[..., num_classes, d]`; for a Flax `Dense` layer the transposed kernel.
        labels: integers `[..., n]`, true or pseudo-labels.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly, as a confidence mask
            needs it.
        stop_gradient: the argument that receives no gradient: `"features"` trains only the head,
            `"head"` only the features, None (default) both.
        order: α of the Rényi entropies, as in `interplay`; the paper has 1. Order 2 takes no
            decomposition.
        debiased: whether the loss is that of the population in place of the batch, as in
            `debiased_interplay`; needs `order=2`.
        groups: integers `[..., n]`, for a debiased loss: pairs within a group are left out, for
            instance two views of one image.
        method: `"eigh"`, `"products"` or `"auto"`, as in `interplay`. On an accelerator `"auto"`
            keeps decompositions out of the training step.

    Returns:
        `[...]` in nats, not divided by n, at order 1 from `-min(H(K1), H(K2))` to 0. A debiased
        loss scatters around the value of the population, also above 0; 0 with fewer than two
        samples.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, `stop_gradient` or `method` is
            unknown, the order is not a positive number, or not 2 for a debiased loss, or groups are
            given for another.
        MemoryError: the joint matrix does not fit.

    Cost, degenerate input and differentiability: as in `interplay`. Debiased: two Gram matrices and
    no decomposition, and any number of derivatives. There a purity below the least that a
    population can have, `1/d` for the features, `1/min(num_classes, d)` for the head and their
    product for both together, counts as that least value. The derivative of that part is then 0;
    without the floor the logarithm of orthogonal rows would be infinite.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(3, 8), jnp.array([0, 1, 2])
        >>> loss = mirjax.losses.mutual_information_loss(head, head, labels)
        >>> print(f"{loss:.4f} {-mirjax.theory.collapsed_mutual_information(3):.4f}")
        -0.3466 -0.3466

    Source: Song et al. 2024 (arXiv 2406.03999): `L = CE - λ MI`. The weight λ, the samples and
    any stop-gradient are not published.
    """
    _check_form(order, method, debiased, groups)
    features, head = _stopped(features, head, stop_gradient)
    if debiased:
        entropy1, entropy2, joint = _debiased(features, head, labels, weights, groups)
        return joint - entropy1 - entropy2
    found = interplay(features, head, labels, weights=weights, order=order, method=method)
    return -found.mutual_information


def entropy_difference_loss(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    stop_gradient: Side | None = None,
    order: float | int = 1,
    debiased: bool = False,
    groups: Int[ArrayLike, "*batch n"] | None = None,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""`|H(G(features)) - H(G(head[labels]))|`: minimising it brings the two entropies together.

    The joint matrix is not formed, so only the two entropies have to be paid for.

    Args:
        features: `[..., n, d]`.
        head: `[..., num_classes, d]`; for a Flax `Dense` layer the transposed kernel.
        labels: integers `[..., n]`, true or pseudo-labels.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        stop_gradient: the argument that receives no gradient: `"features"`, `"head"` or None
            (default).
        order: as in `mutual_information_loss`.
        debiased: as in `mutual_information_loss`.
        groups: as in `mutual_information_loss`.
        method: as in `mutual_information_loss`.

    Returns:
        `[...]` in nats, from 0 to `log min(n, d)`, or to `log d` if it is debiased.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, `stop_gradient` or `method` is
            unknown, the order is not a positive number, or not 2 for a debiased loss, or groups are
            given for another.

    Cost: `O(n d min(n, d))`, debiased as in `mutual_information_loss`. Degenerate input and
    differentiability: as in `interplay`; the derivative is 0 where the two entropies are equal.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> labels = jnp.array([0, 1, 0, 1])
        >>> loss = mirjax.losses.entropy_difference_loss(jnp.eye(4), jnp.eye(2, 4), labels)
        >>> print(f"{loss:.4f}")
        0.6931

    Source: Song et al. 2024 (arXiv 2406.03999): `L = CE + λ |H(K1) - H(K2)|`.
    """
    _check_form(order, method, debiased, groups)
    features, head = _stopped(features, head, stop_gradient)
    if debiased:
        entropy1, entropy2, _ = _debiased(features, head, labels, weights, groups)
        return jnp.abs(entropy1 - entropy2)
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    # Not `interplay`: when it is called eagerly, nothing would remove the joint entropy.

    def single(*arguments: Array) -> Array:
        entropy1, entropy2 = marginal_entropies(normalized_inputs(*arguments), order, method)
        return jnp.abs(entropy1 - entropy2)

    vectorized = jnp.vectorize(single, signature="(n,d),(c,d),(n),(n)->()")
    return automatic(vectorized)(features, head, labels, weights)


def _debiased(
    features: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    groups: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """The three entropies of order 2 of the population, at most the greatest that it can have."""
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    groups = as_groups(groups, features)
    width, classes = features.shape[-1], head.shape[-2]
    least = 1 / width, 1 / min(classes, width), 1 / width / min(classes, width)

    def single(*arguments: Array) -> tuple[Array, ...]:
        sums = pairs_of_labels(*arguments)
        # Without a pair there is nothing to learn from: all entropies are 0.
        no_pair = sums.weight == 0
        purities = sums.sums / jnp.where(no_pair, 1.0, sums.weight)
        floors = jnp.where(no_pair, 1.0, jnp.asarray(least, purities.dtype))
        return tuple(-jnp.log(jnp.maximum(p, f)) for p, f in zip(purities, floors, strict=True))

    extra = [] if groups is None else [groups]
    signature = "(n,d),(c,d),(n),(n)" + ",(n)" * len(extra) + "->(),(),()"
    vectorized = jnp.vectorize(single, signature=signature)
    return automatic(vectorized)(features, head, labels, weights, *extra)


def _check_form(
    order: float | int, method: EntropyMethod, debiased: bool, groups: ArrayLike | None
) -> None:
    """Raises unless order and method fit each other, and a debiased loss."""
    entropy_order(order, method)
    if debiased and order != 2:
        raise ValueError(
            f"debiased=True needs order=2, got order={order}: only the entropy of order 2 is one "
            "of means over pairs, which do not depend on the batch."
        )
    if groups is not None and not debiased:
        raise ValueError("groups have a meaning in a debiased loss alone: pass debiased=True.")


def _stopped(
    features: ArrayLike, head: ArrayLike, side: Side | None
) -> tuple[ArrayLike, ArrayLike]:
    if side not in (None, "features", "head"):
        raise ValueError(f"stop_gradient must be None, 'features' or 'head', got {side!r}.")
    if side == "features":
        features = lax.stop_gradient(features)
    if side == "head":
        head = lax.stop_gradient(head)
    return features, head
