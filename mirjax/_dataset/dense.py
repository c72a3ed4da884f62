"""The joint kernel of all samples as a matrix where that fits, and the sum of its squares."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._linalg.precision import matmul, total

# Temporaries of a product are kept below this many numbers by taking fewer columns at a time.
WORK = 2**26

Sampler = Callable[[tuple[int, int], Any], Array]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["matrix", "squares"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class DenseOperator:
    """`A` itself, where n is small enough to hold n × n numbers: the cheapest product of all.

    Attributes:
        matrix: `A`.
        squares: `tr(A²)`.
    """

    matrix: Float[Array, "n n"]
    squares: Float[Array, ""]

    @property
    def size(self) -> int:
        """Length of the vectors."""
        return len(self.matrix)

    @property
    def rank_bound(self) -> Array:
        """The number of eigenvalues that can be non-zero: that of the samples that count."""
        return jnp.sum(self.support())

    @property
    def dimension(self) -> Array:
        """As many entries of a vector are drawn."""
        return self.rank_bound

    def support(self) -> Array:
        """1 for samples that count, 0 for others."""
        return (jnp.diagonal(self.matrix) != 0).astype(self.matrix.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors `[size, columns]`; 0 for samples that do not count."""
        return sample((self.size, columns), self.matrix.dtype) * self.support()[:, None]

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""
        return matmul(self.matrix, vectors)

    @property
    def purity_is_exact(self) -> bool:
        """Whether `purity` is `tr(A²)` itself."""
        return True

    def purity(self) -> Array:
        """`tr(A²)`."""
        return self.squares


def dense_operator(rows1: Float[Array, "n d1"], rows2: Float[Array, "n d2"]) -> DenseOperator:
    """`A` from `√p ẑ1` and `ẑ2`."""
    side = len(rows1)

    # Written in place, some rows at a time: a copy would be as large as the matrix.
    def fill(start: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        place, kernel = _some_rows(start, rows1, rows2)
        matrix = jax.lax.dynamic_update_slice_in_dim(carry[0], kernel, place, axis=0)
        return matrix, carry[1] + _fresh_squares(start, place, kernel)

    empty = (jnp.zeros_like(rows1, shape=shape) for shape in ((side, side), ()))
    return DenseOperator(*jax.lax.fori_loop(0, math.ceil(side / _step(side)), fill, tuple(empty)))


def purity_of_rows(rows1: Float[Array, "n d1"], rows2: Float[Array, "n d2"]) -> Array:
    """`tr(A²)` from all pairs of rows of `√p ẑ1` and `ẑ2`, some of them at a time."""

    def add(start: Array, squares: Array) -> Array:
        return squares + _fresh_squares(start, *_some_rows(start, rows1, rows2))

    steps = math.ceil(len(rows1) / _step(len(rows1)))
    return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(rows1, shape=()))


def _step(side: int) -> int:
    """How many rows of a matrix of this side are formed at a time."""
    return max(1, min(side, WORK // 8 // side))


def _some_rows(number: Array, rows1: Array, rows2: Array) -> tuple[Array, Array]:
    """The place of a step and its rows of `A`; the last step is moved back to fit."""
    step = _step(len(rows1))
    place = jnp.minimum(number * step, len(rows1) - step)
    parts = (jax.lax.dynamic_slice_in_dim(r, place, step) for r in (rows1, rows2))
    first, second = (matmul(part, r.T) for part, r in zip(parts, (rows1, rows2), strict=True))
    return place, first * second


def _fresh_squares(number: Array, place: Array, kernel: Array) -> Array:
    """The sum of squares of the rows that no earlier step has counted."""
    is_fresh = place + jnp.arange(len(kernel)) >= number * len(kernel)
    return total(jnp.where(is_fresh[:, None], jnp.square(kernel), 0.0))
