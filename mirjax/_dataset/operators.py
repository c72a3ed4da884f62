"""`A = √p (K1 ⊙ K2) √p` of a whole data set as an operator: products with vectors, and `tr(A²)`.

Three ways to hold it, each a pytree; none forms a matrix of side n. Vectors come as the columns of
`[size, k]`. Each also tells `count`, how many eigenvalues can be non-zero.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mirjax._dataset.blocks import place_rows
from mirjax._linalg.precision import matmul, total

# Temporaries of a product are kept below this many numbers, by taking fewer columns at a time.
_WORK = 2**26

Sampler = Callable[[tuple[int, int], Any], Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["moments", "coordinates", "count"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class MomentOperator:
    """`X ↦ Σ_c M_c X w_c w_cᵀ` on `X` `[r, d]`: its cost does not depend on the number of samples.

    Attributes:
        moments: `M_c = Σ p_i ẑ_i ẑ_iᵀ` over the samples of class c; the traces sum to 1.
        coordinates: rows with the Gram matrix of the normalised head, r = min(num_classes, d).
        count: how many eigenvalues can be non-zero.
    """

    moments: Float[Array, "c d d"]
    coordinates: Float[Array, "c r"]
    count: Float[Array, ""]

    @property
    def size(self) -> int:
        """Length of the vectors."""
        return self.moments.shape[-1] * self.coordinates.shape[-1]

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors `[size, columns]`."""
        return sample((self.size, columns), self.moments.dtype)

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""
        (classes, width), rank = self.moments.shape[:2], self.coordinates.shape[-1]

        def columns(x: Array) -> Array:
            x = x.reshape(rank, width * x.shape[-1])
            by_class = matmul(self.coordinates, x).reshape(classes, width, -1)
            by_class = matmul(self.moments, by_class).reshape(classes, -1)
            return matmul(self.coordinates.T, by_class).reshape(rank * width, -1)

        return in_chunks(columns, vectors, 2 * classes * width)

    @property
    def purity_is_exact(self) -> bool:
        """Whether `purity` is `tr(A²)` itself."""
        return True

    def purity(self) -> Array:
        """`tr(A²) = Σ_{c,c'} (w_c · w_c')² ⟨M_c, M_c'⟩`."""
        flat = self.moments.reshape(len(self.moments), -1)
        return _weighted(self.coordinates, matmul(flat, flat.T))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "classes", "index", "heads"],
    meta_fields=["samples"],
)
@dataclasses.dataclass(frozen=True)
class RowOperator:
    """`(A v)_i = z̃_i · S[y_i]` with `S = G(W) U`, `U[c] = Σ_{j in c} v_j z̃_j` and `z̃ = √p ẑ`.

    Attributes:
        rows: `z̃` in blocks of one class each (`blocks`), sharded along the first axis if at all.
        classes: the class of each block.
        index: which row of its shard stands at each place, `samples / s` if none.
        heads: normalised rows of the head.
        samples: n, over all shards.
    """

    rows: Float[Array, "s m b d"]
    classes: Int[Array, "s m"]
    index: Int[Array, "s m b"]
    heads: Float[Array, "c d"]
    samples: int

    @property
    def size(self) -> int:
        """Length of the vectors, with a place for every place in a block."""
        return math.prod(self.rows.shape[:3])

    @property
    def count(self) -> Array:
        """How many eigenvalues can be non-zero: the samples that count."""
        return jnp.sum(self.support())

    def support(self) -> Array:
        """1 at the places where a sample stands that counts."""
        return jnp.any(self.rows != 0, axis=-1).reshape(-1).astype(self.rows.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors that belong to the samples, wherever these lie."""
        drawn = place_rows(sample((self.samples, columns), self.rows.dtype), self.index)
        return drawn.reshape(self.size, columns) * self.support()[:, None]

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""
        shards, blocks, size, width = self.rows.shape
        similarity = matmul(self.heads, self.heads.T)

        def columns(x: Array) -> Array:
            x = x.reshape(shards, blocks, size, -1)
            summed = matmul(jnp.swapaxes(self.rows, -1, -2), x)
            by_class = jnp.zeros((len(self.heads), *summed.shape[2:]), x.dtype)
            by_class = by_class.at[self.classes].add(summed)
            mixed = matmul(similarity, by_class.reshape(len(by_class), -1))
            mixed = mixed.reshape(by_class.shape)[self.classes]
            return matmul(self.rows, mixed).reshape(self.size, -1)

        per_column = 2 * width * (shards * blocks + len(self.heads))
        return in_chunks(columns, vectors, per_column)

    @property
    def purity_is_exact(self) -> bool:
        """Whether `purity` is `tr(A²)` itself."""
        return True

    def purity(self) -> Array:
        """As `MomentOperator.purity`, with some columns of all `M_c` at a time."""
        width, classes = self.rows.shape[-1], len(self.heads)
        held = width * (classes + math.prod(self.rows.shape[:2]))
        step = max(1, min(width, _WORK // held))

        def some(start: Array) -> Array:
            # The last step may reach over the end, and then looks at columns that were seen before.
            place = jnp.minimum(start, width - step)
            fresh = place + jnp.arange(step) >= start
            columns = jax.lax.dynamic_slice_in_dim(self.rows, place, step, axis=-1)
            columns = jnp.where(fresh[None, None, None, :], columns, 0.0)
            part = matmul(jnp.swapaxes(self.rows, -1, -2), columns)
            sums = jnp.zeros((classes, width, step), part.dtype).at[self.classes].add(part)
            flat = sums.reshape(classes, -1)
            return matmul(flat, flat.T)

        starts = jnp.arange(0, width, step)
        overlaps = jax.lax.scan(
            lambda s, i: (s + some(i), None), jnp.zeros((classes, classes), self.rows.dtype), starts
        )[0]
        return _weighted(self.heads, overlaps)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows1", "rows2"], meta_fields=["shards"]
)
@dataclasses.dataclass(frozen=True)
class PairOperator:
    """Two representations: `A` on samples, or the operator with its spectrum on `X` `[d1, d2]`.

    Attributes:
        rows1: `√p ẑ1`, sharded along the first axis if at all.
        rows2: `ẑ2`, 0 where the sample does not count.
        shards: in how many equal parts the rows lie on devices.
    """

    rows1: Float[Array, "n d1"]
    rows2: Float[Array, "n d2"]
    shards: int = 1

    @property
    def dual(self) -> bool:
        """Whether the vectors are `[d1, d2]` rather than samples."""
        return self.rows1.shape[1] * self.rows2.shape[1] < self.rows1.shape[0]

    @property
    def size(self) -> int:
        """Length of the vectors."""
        samples, pairs = self.rows1.shape[0], self.rows1.shape[1] * self.rows2.shape[1]
        return min(samples, pairs)

    @property
    def count(self) -> Array:
        """How many eigenvalues can be non-zero."""
        return jnp.sum(self.support())

    def support(self) -> Array:
        """1 where vectors of the range can differ from 0."""
        if self.dual:
            return jnp.ones(self.size, self.rows1.dtype)
        return jnp.any(self.rows1 != 0, axis=-1).astype(self.rows1.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors `[size, columns]`, zero where no sample counts."""
        return sample((self.size, columns), self.rows1.dtype) * self.support()[:, None]

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""

        def to_samples(x: Array) -> Array:
            return jnp.sum(matmul(self.rows1, x) * self.rows2, axis=1)

        def to_pairs(u: Array) -> Array:
            return matmul(self.rows1.T, u[:, None] * self.rows2)

        def column(x: Array) -> Array:
            if self.dual:
                shape = self.rows1.shape[1], self.rows2.shape[1]
                return to_pairs(to_samples(x.reshape(shape))).reshape(-1)
            return to_samples(to_pairs(x))

        return jax.lax.map(column, vectors.T).T

    @property
    def purity_is_exact(self) -> bool:
        """Whether `purity` is `tr(A²)`: where n² entries cost no more than some hundred of `apply`."""
        samples, width1 = self.rows1.shape
        width2 = self.rows2.shape[1]
        return samples * (width1 + width2) <= 200 * width1 * width2

    def purity(self) -> Array:
        """`tr(A²)`, or the smaller purity of the two Gram matrices: no entry of either exceeds 1."""
        samples = self.rows1.shape[0]
        if self.purity_is_exact:
            own = samples // self.shards
            step = max(1, min(own, _WORK // samples))

            def some(chunk: tuple[Array, Array]) -> Array:
                first, second = chunk
                kernel = matmul(first, self.rows1.T) * matmul(second, self.rows2.T)
                return total(jnp.square(kernel))

            def of_shard(shard: Array) -> Array:
                # The rows of one device go to all as a sum over devices; the others stay where they are.
                chosen = jax.nn.one_hot(shard, self.shards, dtype=self.rows1.dtype)[None, :]

                def cut(rows: Array) -> Array:
                    rows = matmul(chosen, rows.reshape(self.shards, -1)).reshape(own, -1)
                    rows = jnp.pad(rows, ((0, -own % step), (0, 0)))
                    return rows.reshape(-1, step, rows.shape[-1])

                return jnp.sum(jax.lax.map(some, (cut(self.rows1), cut(self.rows2))))

            return jnp.sum(jax.lax.map(of_shard, jnp.arange(self.shards)))
        root = jnp.sqrt(jnp.sum(jnp.square(self.rows1), axis=-1, keepdims=True))
        bounds = [total(jnp.square(matmul(r.T, r))) for r in (self.rows1, root * self.rows2)]
        return jnp.minimum(*bounds)


Operator = MomentOperator | RowOperator | PairOperator


def in_chunks(function, vectors: Array, per_column: int) -> Array:
    """`function(vectors)`, which maps `[n, k]` to `[m, k]`, on as many columns at once as memory allows."""
    columns = vectors.shape[-1]
    step = max(1, _WORK // per_column)
    if step >= columns:
        return function(vectors)
    pieces = math.ceil(columns / step)
    step = math.ceil(columns / pieces)
    padded = jnp.pad(vectors, ((0, 0), (0, pieces * step - columns)))
    stacked = jnp.moveaxis(padded.reshape(len(vectors), pieces, step), 1, 0)
    result = jnp.moveaxis(jax.lax.map(function, stacked), 0, 1)
    return result.reshape(len(result), -1)[:, :columns]


def _weighted(vectors: Array, overlaps: Array) -> Array:
    return total(jnp.square(matmul(vectors, vectors.T)) * overlaps)
