"""The entropy of a spectrum, and its derivative, from matrix products alone.

A decomposition is the slowest thing in a small training step on an accelerator, where products are
nearly free. Here the logarithm is a sum of exponentials: in `-log x = ∫ (exp(-x t) - exp(-t)) / t dt` the
trapezoidal rule in `log t`, at nodes that double, is off by a constant and no more than 1.1e-6 for any x (the
integrand is analytic in a strip of half-width π/2), and the exponential at a node is the square of that at the node
before. So each node is one product. What is squared is `1 - exp`, which is small where the matrix is, so that the
first squarings round relative to that.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from mirjax._linalg.entropy_range import entropy_range
from mirjax._linalg.precision import matmul, mixedness, total

# A polynomial takes one product for each this many powers, beside those that make them (Paterson &
# Stockmeyer 1973).
_BLOCK = 4


class Rule(NamedTuple):
    """Nodes and series of the approximation of `-log x` for x in (0, 1].

    Attributes:
        ladders: rows of nodes that double; two of them square the error.
        squarings: how often the nodes double. Below the reciprocal of the last node, `-log x` levels off.
        starts: `[ladders, degree + 1]`, series of `1 - exp(-x t)` at the first node of each ladder.
        below: `[degree + 1]`, series of what the nodes below the first ones add, and all constants.
    """

    ladders: int
    squarings: int
    starts: np.ndarray
    below: np.ndarray


@functools.cache
def rule_of(dtype_name: str) -> Rule:
    """The rule whose error is that of rounding in float32 (28 products) or float64 (84)."""
    # A null eigenvalue, off by some eps, must still be small at the last node.
    if dtype_name == "float32":
        return _rule(ladders=1, squarings=23, degree=7)
    return _rule(ladders=2, squarings=36, degree=14)


def _rule(ladders: int, squarings: int, degree: int) -> Rule:
    step = math.log(2) / ladders
    first = 0.5 * 2.0 ** (np.arange(ladders) / ladders)
    powers = np.arange(1, degree + 1)
    factorials = np.array([math.factorial(k) for k in powers], float)
    series = (-first[:, None]) ** powers / factorials
    below = step * np.sum(series, axis=0) / (2.0**powers - 1)
    # The error is periodic in log x: the constant is what makes its mean 0.
    nodes = (first[:, None] * 2.0 ** np.arange(squarings + 1)).ravel()
    x = 2.0 ** -(np.arange(64) / 64)
    found = step * np.exp(-x[:, None] * nodes).sum(1) + (x[:, None] ** powers) @ below
    constant = np.mean(-np.log(x) - found)
    starts = np.concatenate([np.zeros((ladders, 1)), -series], axis=1)
    return Rule(ladders, squarings, starts, np.concatenate([[constant], below]))


def entropy_by_products(
    matrix: Float[Array, "k k"],
) -> tuple[Float[Array, ""], Float[Array, "k k"]]:
    r"""`-tr(A log A)` of a positive semi-definite matrix of trace 1, and its derivative `-log A - 1`.

    In exact arithmetic the entropy is off by no more than `1.1e-6`, and by what levelling off loses,
    `0.3 k s / last_node` with `s = ‖A²‖_F^½ <= 1`, which only matters for eigenvalues of that size: at most
    `7e-8 k` in float32. The derivative costs one product more, and can be differentiated again. Off the
    range of `A` rounding leaves something of it, of the order `eps · last_node`, which vanishes where `A = F Fᵀ` and
    it meets `F`, but not in second derivatives: those need full rank. Eigenvalues
    below `-1e-5` of the scale overflow in float32, to NaN.
    """
    rule = rule_of(matrix.dtype.name)
    squared = matmul(matrix, matrix)
    # At least the largest eigenvalue, at most its power 3/4. Any scale gives the same result.
    scale = lax.stop_gradient(jnp.sqrt(jnp.sqrt(total(jnp.square(squared)))))
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    scaled, second = matrix / scale, squared / jnp.square(scale)
    powers = identity, scaled, second, matmul(scaled, second), matmul(second, second)
    step = jnp.asarray(math.log(2) / rule.ladders, matrix.dtype)

    def remaining(gone: Array) -> Array:
        return rule.ladders * identity - jnp.sum(gone, axis=0)

    def double(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        gone, logs = carry
        # Not `2 gone - gone²`: XLA fused several nodes on a GPU and so had two `gone`, one in `2 gone` and one in the
        # square. What they differ by, a last bit, doubled at each node, to 1e-3 in the value.
        gone = matmul(gone, 2 * identity[None] - gone)
        return gone, logs + step * remaining(gone)

    gone = jnp.stack([_polynomial(start, powers) for start in rule.starts])
    logs = _polynomial(rule.below, powers) - jnp.log(scale) * identity + step * remaining(gone)
    # Each turn of a loop costs a GPU as much as a small product. Unrolled altogether it would keep every `gone`.
    gone, logs = lax.fori_loop(0, rule.squarings, double, (gone, logs), unroll=4)
    value = total(matrix * logs)
    # What has gone to 1 is the projector on the range, to rounding.
    gradient = matmul(gone[0], logs - identity)
    gradient = 0.5 * (gradient + gradient.T)
    # Moved into its range as a number: the ends of the range are not to be differentiated.
    inside = jnp.clip(value, *entropy_range(mixedness(matrix), matrix.shape[0]))
    return value + lax.stop_gradient(inside - value), gradient


def _polynomial(coefficients: np.ndarray, powers: tuple[Array, ...]) -> Array:
    """Of coefficients `[degree + 1]`, lowest first, by the powers 0 to 4 of a matrix."""
    blocks = np.pad(coefficients, (0, -len(coefficients) % _BLOCK)).reshape(-1, _BLOCK)

    def block(row: np.ndarray) -> Array:
        terms = zip(row, powers, strict=False)
        return functools.reduce(jnp.add, (float(c) * power for c, power in terms))

    result = block(blocks[-1])
    for row in blocks[-2::-1]:
        result = matmul(result, powers[-1]) + block(row)
    return result
