"""The interplay of two kernels: mutual information, MIR and HDR as defined in the paper."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of, for_kernels, symmetric, unit_trace
from mirjax._checks import ArrayLike, as_float, common_float, entropy_order, same_size, square
from mirjax._linalg.rounding import entropy_rounding
from mirjax._linalg.spectrum import EntropyMethod
from mirjax._mesh import automatic


class Interplay(NamedTuple):
    """What two views of the same samples share. Entropies are in nats, ratios have no unit.

    Attributes:
        entropy1: `H(K1)`, of the features (or the first representation).
        entropy2: `H(K2)`, of the rows of the head at the labels (or the second representation).
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
    kernel1: Float[ArrayLike, "*batch n n"],
    kernel2: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""`MI = H(kernel1) + H(kernel2) - H(kernel1 ⊙ kernel2)`, in nats, as defined in the paper.

    `interplay` computes the same number from features and head, at a lower cost.

    Args:
        kernel1: positive semi-definite `[..., n, n]`, for instance `gram(features)`.
        kernel2: positive semi-definite `[..., n, n]`, for instance `gram(head[labels])`.
        order: α of the Rényi entropies, a positive Python number or `jnp.inf`; the paper has 1.
        method: `"eigh"`, `"products"` or `"auto"`, see `matrix_entropy`.

    Returns:
        `[...]`; for Gram matrices and order 1 from 0 to `min(H(kernel1), H(kernel2))`.

    Raises:
        TypeError, ValueError: a kernel is not square, the two differ in n, a dtype is not a float,
            or the method is unknown.

    Cost: three decompositions, `O(n³)`. Differentiable like `matrix_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.mutual_information(jnp.eye(4), jnp.eye(4)):.4f}")
        1.3863

    Source: Song et al. 2024 (arXiv 2406.03999), definition of matrix mutual information.
    """
    return kernel_interplay(kernel1, kernel2, order=order, method=method).mutual_information


def mir(
    kernel1: Float[ArrayLike, "*batch n n"],
    kernel2: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""Matrix mutual information ratio, `MI(kernel1, kernel2) / min(H(kernel1), H(kernel2))`.

    At order 1 it lies in [0, 1] for Gram matrices. A small n biases it strongly upwards: always
    state n with the value. It is 0 with derivative 0 where the smaller entropy is 0 up to rounding
    (0/0). Arguments, errors, cost and differentiability: as in `mutual_information`; where the two
    entropies are equal, the derivative of the minimum is the mean of the two derivatives.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.mir(jnp.eye(4), jnp.eye(4)):.4f}")
        1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of MIR.
    """
    return kernel_interplay(kernel1, kernel2, order=order, method=method).mir


def hdr(
    kernel1: Float[ArrayLike, "*batch n n"],
    kernel2: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Float[Array, "*batch"]:
    r"""Matrix entropy difference ratio, `|H(kernel1) - H(kernel2)| / max(H(kernel1), H(kernel2))`.

    It lies in [0, 1]. It is 0 with derivative 0 where both entropies are 0 up to rounding (0/0).
    Arguments, errors, cost and differentiability: as in `mutual_information`; where the two
    entropies are equal, the derivative is 0.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.hdr(jnp.eye(4), jnp.ones((4, 4))):.4f}")
        1.0000

    Source: Song et al. 2024 (arXiv 2406.03999), definition of HDR.
    """
    return kernel_interplay(kernel1, kernel2, order=order, method=method).hdr


def kernel_interplay(
    kernel1: Float[ArrayLike, "*batch n n"],
    kernel2: Float[ArrayLike, "*batch n n"],
    /,
    *,
    order: float | int = 1,
    method: EntropyMethod = "eigh",
) -> Interplay:
    """All fields of `Interplay` for two kernels: `mutual_information`, `mir` and `hdr` at once.

    Arguments, errors, cost and differentiability: as in `mutual_information`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> result = mirjax.kernel_interplay(jnp.eye(4), jnp.ones((4, 4)))
        >>> print(f"{result.joint_entropy:.4f}")
        1.3863
    """
    entropy_order(order, method)
    method = for_kernels(method)
    kernel1 = as_float(kernel1, "kernel1", axes="n n")
    kernel2 = as_float(kernel2, "kernel2", axes="n n")
    square(kernel1, "kernel1")
    square(kernel2, "kernel2")
    same_size(kernel1, "kernel1", kernel2, "kernel2", axis=(-1, -1), what="the number of samples n")
    kernel1, kernel2 = common_float(kernel1, kernel2)

    def single(k1: Array, k2: Array) -> Interplay:
        # Normalised first, so that entries of the product neither overflow nor underflow.
        k1, k2 = unit_trace(symmetric(k1)), unit_trace(symmetric(k2))
        kernels = k1, k2, unit_trace(k1 * k2)
        return combine(*(entropy_of(k, order, method=method) for k in kernels))

    return over_batches(single, "(n,n),(n,n)")(kernel1, kernel2)


def over_batches(single: Callable[..., Interplay], signature: str) -> Callable[..., Interplay]:
    """Extends `single`, which returns an `Interplay` of scalars, to any number of batch axes."""
    outputs = ",".join("()" for _ in Interplay._fields)
    vectorized = jnp.vectorize(
        lambda *args: tuple(single(*args)), signature=f"{signature}->{outputs}"
    )
    return lambda *args: Interplay(*automatic(vectorized)(*args))


def combine(entropy1: Array, entropy2: Array, joint: Array) -> Interplay:
    """All fields of `Interplay` from the three entropies."""
    mutual = entropy1 + entropy2 - joint
    difference = jnp.abs(entropy1 - entropy2)
    return Interplay(
        entropy1=entropy1,
        entropy2=entropy2,
        joint_entropy=joint,
        mutual_information=mutual,
        entropy_difference=difference,
        mir=_ratio(mutual, jnp.minimum(entropy1, entropy2)),
        hdr=_ratio(difference, jnp.maximum(entropy1, entropy2)),
    )


def adjusted_ratio(mutual: Array, largest: Array, chance: Array) -> Array:
    """Mutual information above chance over what it can be at most; 0 for 0/0."""
    return _ratio(mutual - chance, largest - chance)


def _ratio(part: Array, whole: Array) -> Array:
    defined = ~(whole <= entropy_rounding(whole.dtype))  # not `>`: NaN stays NaN
    # The denominator is replaced inside as well, or the derivative of 0/0 would be NaN.
    return jnp.where(defined, part / jnp.where(defined, whole, 1.0), 0.0)
