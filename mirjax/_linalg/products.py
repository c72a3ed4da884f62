"""The entropy of a matrix and its derivative, from matrix products alone.

A decomposition is the slowest part of a small training step on an accelerator, where products are
nearly free. Here the logarithm is a sum of exponentials: the trapezoidal rule in `log t`, with
nodes that double, is applied to `-log x = ∫ (exp(-x t) - exp(-t)) / t dt`. Apart from a constant,
its error is at most 1.1e-6 for every x, since the integrand is analytic in a strip of half-width
π/2. The exponential at a node is the square of the exponential at the node before, so each node
costs one product. The code squares `1 - exp` in place of the exponential: it is small where the
matrix is small, so the first squarings round relative to a small number.
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

# A polynomial takes one product per this many powers, besides the products that form the powers
# (Paterson & Stockmeyer 1973).
_BLOCK = 4


class Rule(NamedTuple):
    """Nodes and series of the approximation of `-log x` for x in (0, 1].

    Attributes:
        ladders: number of sequences of doubling nodes; two of them square the error.
        squarings: how often the nodes double. The approximation levels off for x below the
            reciprocal of the last node.
        starts: `[ladders, degree + 1]`, series of `1 - exp(-x t)` at the first node of each ladder.
        below: `[degree + 1]`, series of the sum over all nodes below the first ones, with all
            constants.
    """

    ladders: int
    squarings: int
    starts: np.ndarray
    below: np.ndarray


@functools.cache
def rule_of(dtype_name: str) -> Rule:
    """The rule that is as accurate as rounding allows, in float32 (28 products) or float64 (84)."""
    # A null eigenvalue is off by some eps and must still be small at the last node.
    if dtype_name == "float32":
        return _rule(ladders=1, squarings=23, degree=7)
    return _rule(ladders=2, squarings=36, degree=14)


def _rule(ladders: int, squarings: int, degree: int) -> Rule:
    step = math.log(2) / ladders
    first = 0.5 * 2.0 ** (np.arange(ladders) / ladders)
    powers = np.arange(1, degree + 1)
    factorials = np.array([math.factorial(k) for k in powers], float)
    series = (-first[:, None]) ** powers / factorials
    # The nodes below halve without end: a geometric series for each power of x.
    below = step * np.sum(series, axis=0) / (2.0**powers - 1)
    # The error is periodic in log x; the constant makes its mean 0.
    nodes = (first[:, None] * 2.0 ** np.arange(squarings + 1)).ravel()
    x = 2.0 ** -(np.arange(64) / 64)
    approximation = step * np.exp(-x[:, None] * nodes).sum(1) + (x[:, None] ** powers) @ below
    constant = np.mean(-np.log(x) - approximation)
    starts = np.concatenate([np.zeros((ladders, 1)), -series], axis=1)
    return Rule(ladders, squarings, starts, np.concatenate([[constant], below]))


def entropy_by_products(
    matrix: Float[Array, "k k"],
) -> tuple[Float[Array, ""], Float[Array, "k k"]]:
    r"""`-tr(A log A)` of a positive semi-definite `A` of trace 1 and its derivative, `-log A - 1`.

    In exact arithmetic the error of the entropy is at most `1.1e-6`, plus the loss from levelling
    off, `0.3 k s / last_node` with `s = ‖A²‖_F^½ <= 1`. This loss only matters for
    eigenvalues of the size of `s / last_node`: it is at most `7e-8 k` in float32. The derivative
    costs one more product, and can be differentiated again. Off the range of `A` rounding leaves a
    part of it, of the order `eps · last_node`. In first derivatives this part vanishes where
    `A = F Fᵀ`, since it is multiplied with `F`. It does not vanish in second derivatives, which
    therefore need full rank. Eigenvalues below `-1e-5` of the scale overflow in float32 and give
    NaN.
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
        # Not `2 gone - gone²`: XLA fused several nodes on a GPU and computed `gone` twice, for
        # `2 gone` and for the square. They differed in the last bit; that difference doubled at
        # each node and reached 1e-3 in the value.
        gone = matmul(gone, 2 * identity[None] - gone)
        return gone, logs + step * remaining(gone)

    gone = jnp.stack([_polynomial(start, powers) for start in rule.starts])
    logs = _polynomial(rule.below, powers) - jnp.log(scale) * identity + step * remaining(gone)
    # Each iteration of a loop costs a GPU as much as a small product, so some are unrolled. A loop
    # that is unrolled entirely would keep every `gone` in memory.
    gone, logs = lax.fori_loop(0, rule.squarings, double, (gone, logs), unroll=4)
    value = total(matrix * logs)
    # By the last node `gone` is 1 on the range and 0 off it: the projector, up to rounding.
    gradient = matmul(gone[0], logs - identity)
    gradient = 0.5 * (gradient + gradient.T)
    # Only the value is moved into its range: the ends of the range must not be differentiated.
    bounds = entropy_range(mixedness(matrix), total(jnp.square(matrix)), matrix.shape[0])
    inside = jnp.clip(value, *bounds)
    return value + lax.stop_gradient(inside - value), gradient


def _polynomial(coefficients: np.ndarray, powers: tuple[Array, ...]) -> Array:
    """The polynomial with coefficients `[degree + 1]`, lowest first, from the powers 0 to 4."""
    blocks = np.pad(coefficients, (0, -len(coefficients) % _BLOCK)).reshape(-1, _BLOCK)

    def block(row: np.ndarray) -> Array:
        terms = zip(row, powers, strict=False)
        return functools.reduce(jnp.add, (float(c) * power for c, power in terms))

    # Horner's scheme in the highest power that is given.
    result = block(blocks[-1])
    for row in blocks[-2::-1]:
        result = matmul(result, powers[-1]) + block(row)
    return result
