"""Closed forms at neural collapse: the values that the metrics tend to."""

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._checks import entropy_order


def simplex_etf(num_classes: int, dim: int) -> Float[Array, "num_classes dim"]:
    r"""A simplex equiangular tight frame: C unit vectors, each pair with the cosine `-1/(C-1)`.

    Args:
        num_classes: C, at least 2.
        dim: at least `C - 1`.

    Returns:
        `[num_classes, dim]` unit rows that sum to zero, in the default float dtype.

    Raises:
        ValueError: `num_classes < 2` or `dim < num_classes - 1`.

    Example:
        >>> import mirjax
        >>> print(mirjax.gram(mirjax.theory.simplex_etf(3, 2)).round(3))
        [[ 1.  -0.5 -0.5]
         [-0.5  1.  -0.5]
         [-0.5 -0.5  1. ]]

    Source: Papyan et al. 2020, definition of the simplex ETF.
    """
    _at_least_two(num_classes)
    if dim < num_classes - 1:
        raise ValueError(
            f"dim must be at least num_classes - 1 = {num_classes - 1} for a simplex, got {dim}."
        )
    # Helmert vectors: an orthonormal basis of the space orthogonal to (1, ..., 1).
    column = jnp.arange(1, num_classes, dtype=float)[None, :]
    row = jnp.arange(num_classes, dtype=float)[:, None]
    entries = jnp.where(row < column, 1.0, jnp.where(row == column, -column, 0.0))
    basis = entries / jnp.sqrt(column * (column + 1))
    # Each row of the basis has squared norm (C - 1)/C; this makes it a unit vector.
    return jnp.pad(
        basis * math.sqrt(num_classes / (num_classes - 1)), ((0, 0), (0, dim - num_classes + 1))
    )


def collapsed_entropy(num_classes: int) -> float:
    r"""`H(G) = log(C - 1)`: the entropy of the features or the head at neural collapse, in nats.

    All non-zero eigenvalues are equal, so that it is the same for every order.

    Args:
        num_classes: C, at least 2.

    Raises:
        ValueError: `num_classes < 2`.

    Example:
        >>> import mirjax
        >>> round(mirjax.theory.collapsed_entropy(10), 6)
        2.197225

    Source: Song et al. 2024 (arXiv 2406.03999), from the spectrum of the simplex ETF.
    """
    _at_least_two(num_classes)
    return math.log(num_classes - 1)


def collapsed_mutual_information(num_classes: int, *, order: float | int = 1) -> float:
    r"""`MI = 2 log(C-1) - H(G ⊙ G)` at neural collapse with balanced classes, in nats.

    The spectrum of `G ⊙ G` over C is `1/(C-1)` once and `(C-2)/(C-1)²` with multiplicity `C-1`:

    `H(G ⊙ G) = log(C-1)/(C-1) + (C-2)/(C-1) · (2 log(C-1) - log(C-2))` at order 1, and
    `log(C/(1 + (C-1)⁻³))` at order 2. The latter is also what `debiased_interplay` estimates.

    Args:
        num_classes: C, at least 2; the result is 0 for 2 classes.
        order: α of the Rényi entropies, as in `interplay`.

    Raises:
        TypeError, ValueError: `num_classes < 2`, or the order is not a positive number.

    Example:
        >>> import mirjax
        >>> round(mirjax.theory.collapsed_mutual_information(10), 7)
        2.0925285

    Source: Song et al. 2024 (arXiv 2406.03999), theorem on neural collapse, for order 1.
    """
    _at_least_two(num_classes)
    entropy_order(order)
    # (C - 2) log(C - 2) is 0 · log 0 here.
    if num_classes == 2:
        return 0.0
    c = num_classes
    single, others = -math.log(c - 1), math.log(c - 2) - 2 * math.log(c - 1)
    if order == 1:
        joint = -(single + (c - 2) * others) / (c - 1)
    elif order == math.inf:
        joint = -max(single, others)
    else:
        # `log Σ λ^order` in units of the larger term, so that no power underflows.
        terms = order * single, math.log(c - 1) + order * others
        joint = (max(terms) + math.log1p(math.exp(min(terms) - max(terms)))) / (1 - order)
    return 2 * math.log(c - 1) - joint


def collapsed_mir(num_classes: int, *, order: float | int = 1) -> float:
    r"""`MIR = 1/(C-1) + (C-2) log(C-2) / ((C-1) log(C-1))` at neural collapse, balanced classes.

    This is below 1, and a value above it is not closer to collapse. HDR is 0 at collapse. At order
    2 it is `2 - log(C/(1 + (C-1)⁻³)) / log(C-1)`.

    Args:
        num_classes: C, at least 2. For 2 classes both entropies are 0; MIR is then 0/0, which is 0
            throughout this library.
        order: α of the Rényi entropies, as in `interplay`.

    Raises:
        TypeError, ValueError: `num_classes < 2`, or the order is not a positive number.

    Example:
        >>> import mirjax
        >>> round(mirjax.theory.collapsed_mir(10), 7), round(mirjax.theory.collapsed_mir(100), 7)
        (0.9523508, 0.9978129)
        >>> round(mirjax.theory.collapsed_mir(10, order=2), 7)
        0.9526722

    Source: Song et al. 2024 (arXiv 2406.03999), theorem on neural collapse, for order 1.
    """
    mutual = collapsed_mutual_information(num_classes, order=order)
    return 0.0 if num_classes == 2 else mutual / collapsed_entropy(num_classes)


def _at_least_two(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
