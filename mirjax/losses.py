"""The two information terms as losses, to be added to a cross-entropy with a weight."""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.interplay import checked_arguments, interplay
from mirjax._batch.joint import marginal_entropies, normalized_inputs
from mirjax._checks import ArrayLike, entropy_method
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
        method: `"eigh"`, `"products"` or `"auto"`, as in `interplay`. On an accelerator `"auto"`
            keeps decompositions out of the training step.

    Returns:
        `[...]` in nats, not divided by n, from `-min(H(K1), H(K2))` to 0.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or `stop_gradient` or `method` is
            unknown.
        MemoryError: the joint matrix does not fit.

    Cost, degenerate input and differentiability: as in `interplay`.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(3, 8), jnp.array([0, 1, 2])
        >>> loss = mirjax.losses.mutual_information_loss(head, head, labels)
        >>> print(f"{loss:.4f} {-mirjax.theory.collapsed_mutual_information(3):.4f}")
        -0.3466 -0.3466

    Source: Song et al. 2024 (arXiv 2406.03999): `L = CE - λ MI`. The weight λ, the samples and
    any stop-gradient are not published.
    """
    features, head = _stopped(features, head, stop_gradient)
    return -interplay(features, head, labels, weights=weights, method=method).mutual_information


def entropy_difference_loss(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    stop_gradient: Side | None = None,
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
        method: as in `mutual_information_loss`.

    Returns:
        `[...]` in nats, from 0 to `log min(n, d)`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or `stop_gradient` or `method` is
            unknown.

    Cost: `O(n d min(n, d))`. Degenerate input and differentiability: as in `interplay`; the
    derivative is 0 where the two entropies are equal.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> labels = jnp.array([0, 1, 0, 1])
        >>> loss = mirjax.losses.entropy_difference_loss(jnp.eye(4), jnp.eye(2, 4), labels)
        >>> print(f"{loss:.4f}")
        0.6931

    Source: Song et al. 2024 (arXiv 2406.03999): `L = CE + λ |H(K1) - H(K2)|`.
    """
    entropy_method(method)
    features, head = _stopped(features, head, stop_gradient)
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    # Not `interplay`: when it is called eagerly, nothing would remove the joint entropy.

    def single(*arguments: Array) -> Array:
        entropy1, entropy2 = marginal_entropies(normalized_inputs(*arguments), method)
        return jnp.abs(entropy1 - entropy2)

    vectorized = jnp.vectorize(single, signature="(n,d),(c,d),(n),(n)->()")
    return automatic(vectorized)(features, head, labels, weights)


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
