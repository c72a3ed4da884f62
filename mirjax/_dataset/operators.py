"""`A = √p (K1 ⊙ K2) √p` of a whole data set as an operator: its products and `tr(A²)`.

There are four representations, each a pytree. Vectors are the columns of a `[size, k]` array.
`rank_bound` is the number of eigenvalues that can be non-zero, `dimension` that of the space in
which random vectors are drawn. `plan` chooses among them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from mirjax._batch.classes import SQUARE
from mirjax._dataset.blocks import place_rows
from mirjax._dataset.dense import WORK, DenseOperator, Sampler, purity_of_rows
from mirjax._linalg.precision import matmul, total

# The trace of the square is worth the cost of this many products.
_WORTH = 200
# The largest tile of second moments, but for wide features.
_TILE = 64


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["moments", "coordinates", "rank_bound"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class MomentOperator:
    """`X ↦ Σ_c M_c X w_c w_cᵀ` on `X` `[r, d]`, at a cost that does not depend on n.

    Attributes:
        moments: `M_c = Σ p_i ẑ_i ẑ_iᵀ` over the samples of class c; the traces sum to 1.
        coordinates: rows with the Gram matrix of the normalised head, r = min(num_classes, d).
        rank_bound: the number of eigenvalues that can be non-zero.
    """

    moments: Float[Array, "c d d"]
    coordinates: Float[Array, "c r"]
    rank_bound: Float[Array, ""]

    @property
    def size(self) -> int:
        """Length of the vectors."""
        return self.moments.shape[-1] * self.coordinates.shape[-1]

    @property
    def dimension(self) -> Array:
        """All entries of a vector are drawn, also where there are fewer samples than that."""
        return jnp.asarray(self.size, self.moments.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors `[size, columns]`."""
        return sample((self.size, columns), self.moments.dtype)

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""
        (classes, width), rank = self.moments.shape[:2], self.coordinates.shape[-1]

        # To the classes, through the moment of each, and back to the coordinates.
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
    data_fields=["rows", "classes", "index", "head_rows", "turned"],
    meta_fields=["samples"],
)
@dataclasses.dataclass(frozen=True)
class RowOperator:
    """`(A v)_i = z̃_i · S[y_i]` with `S = G(W) U`.

    Here `U[c] = Σ_{j in c} v_j z̃_j` and `z̃ = √p ẑ`.

    Attributes:
        rows: `z̃` in blocks of one class each (see `blocks`); may be sharded along the first axis.
        classes: the class of each block.
        index: which row of its shard is at each place, or `samples / s` if it is empty.
        head_rows: normalised rows of the head.
        samples: n, over all shards.
        turned: the same rows as columns, where block c holds all of class c; otherwise None. Sums
            by class are then one product, for which a loop would transpose the rows each time.
    """

    rows: Float[Array, "s m b d"]
    classes: Int[Array, "s m"]
    index: Int[Array, "s m b"]
    head_rows: Float[Array, "c d"]
    samples: int
    turned: Float[Array, "c d b"] | None = None

    @property
    def size(self) -> int:
        """Length of the vectors: one entry for every place in a block."""
        return math.prod(self.rows.shape[:3])

    @property
    def rank_bound(self) -> Array:
        """The number of eigenvalues that can be non-zero: that of the samples that count."""
        return jnp.sum(self.support())

    @property
    def dimension(self) -> Array:
        """As many entries of a vector are drawn."""
        return self.rank_bound

    def support(self) -> Array:
        """1 at the places of samples that count, 0 at the others."""
        return jnp.any(self.rows != 0, axis=-1).reshape(-1).astype(self.rows.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors with an entry for each sample, independent of its place in the blocks."""
        drawn = place_rows(sample((self.samples, columns), self.rows.dtype), self.index)
        return drawn.reshape(self.size, columns) * self.support()[:, None]

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""
        shards, blocks, size, width = self.rows.shape
        classes = len(self.head_rows)
        # The Gram matrix of many rows is applied as two products with the rows.
        is_wide = classes > 2 * width
        similarity = None if is_wide else matmul(self.head_rows, self.head_rows.T)

        # Summed by class, mixed between the classes, and back to the samples.
        def columns(x: Array) -> Array:
            by_class = self._by_class(x.reshape(shards, blocks, size, -1))
            flat = by_class.reshape(classes, -1)
            if similarity is None:
                mixed = matmul(self.head_rows, matmul(self.head_rows.T, flat))
            else:
                mixed = matmul(similarity, flat)
            mixed = mixed.reshape(by_class.shape)
            mixed = mixed[self.classes] if self.turned is None else mixed[None]
            return matmul(self.rows, mixed).reshape(self.size, -1)

        per_column = 2 * width * (shards * blocks + classes)
        return in_chunks(columns, vectors, per_column)

    def _by_class(self, vectors: Float[Array, "s m b k"]) -> Float[Array, "c d k"]:
        """`U`, for each column of the vectors."""
        if self.turned is not None:
            return matmul(self.turned, vectors[0])
        summed = matmul(jnp.swapaxes(self.rows, -1, -2), vectors)
        by_class = jnp.zeros((len(self.head_rows), *summed.shape[2:]), summed.dtype)
        return by_class.at[self.classes].add(summed)

    @property
    def purity_is_exact(self) -> bool:
        """Whether `purity` is `tr(A²)` itself."""
        return self._purity_of()[0] != "bound"

    def _purity_of(self) -> tuple[str, float]:
        """How `purity` is computed, by classes, by rows or as a bound, and what it costs."""
        width, classes, samples = self.rows.shape[-1], len(self.head_rows), self.size
        side, pairs = self._tiles()
        entries = side**2 * len(pairs)
        by_class = 2 * entries * (classes**2 + samples) if classes <= SQUARE else math.inf
        # Pairs of rows would have to be sent between devices.
        by_rows = 4 * samples**2 * width if self.rows.shape[0] == 1 else math.inf
        cost, how = min((by_class, "classes"), (by_rows, "rows"))
        mixing = min(2 * classes**2 * width, 4 * classes * width**2)
        is_worth_it = how == "classes" or cost <= _WORTH * (4 * samples * width + mixing)
        return (how, cost) if is_worth_it else ("bound", 0.0)

    def purity(self) -> Array:
        """As in `MomentOperator.purity`, or over pairs of rows; an upper bound if that is dear."""
        match self._purity_of()[0]:
            case "classes":
                return self._purity_by_classes()
            case "rows":
                rows = self.rows.reshape(self.size, -1)
                places = jnp.broadcast_to(self.classes[:, :, None], self.rows.shape[:3])
                return purity_of_rows(rows, self.head_rows[places.reshape(-1)])
            case _:
                # No entry of a Gram matrix exceeds 1, so the purity of each bounds that of both.
                rows = self.rows.reshape(self.size, -1)
                first = matmul(rows.T, rows)
                shares = jnp.sum(jnp.square(self.rows), axis=(-2, -1))
                shares = jnp.zeros(len(self.head_rows), shares.dtype).at[self.classes].add(shares)
                weighted = jnp.sqrt(shares)[:, None] * self.head_rows
                second = matmul(weighted.T, weighted)
                return jnp.minimum(*(total(jnp.square(m)) for m in (first, second)))

    def _tiles(self) -> tuple[int, np.ndarray]:
        """The side of the tiles of all `M_c`, and which of them are on or above the diagonal."""
        width, classes = self.rows.shape[-1], len(self.head_rows)
        held = classes + math.prod(self.rows.shape[:2])
        # Many small tiles leave out nearly half, but make small products.
        most = min(max(_TILE, math.ceil(width / 8)), math.isqrt(max(1, WORK // held)))
        count = math.ceil(width / max(1, most))
        # Equal tiles hardly overlap: of width 65, two of 33 columns, not of 64.
        return math.ceil(width / count), np.stack(np.triu_indices(count), axis=1)

    def _purity_by_classes(self) -> Array:
        """With one tile of all `M_c` at a time; those below the diagonal are the same as above."""
        width, classes = self.rows.shape[-1], len(self.head_rows)
        side, pairs = self._tiles()

        def cut(rows: Array, number: Array, axis: int) -> Array:
            # The last tile may reach beyond the end: it is moved back, and columns that an earlier
            # tile has counted become 0.
            start = number * side
            place = jnp.minimum(start, width - side)
            fresh = (place + jnp.arange(side) >= start).astype(rows.dtype)
            columns = jax.lax.dynamic_slice_in_dim(rows, place, side, axis=axis)
            return columns * fresh.reshape((1,) * (rows.ndim + axis) + (side,) + (1,) * (-1 - axis))

        def add(overlaps: Array, pair: Array) -> tuple[Array, None]:
            first, second = pair
            turned = None if self.turned is None else cut(self.turned, first, -2)
            some = dataclasses.replace(self, rows=cut(self.rows, first, -1), turned=turned)
            flat = some._by_class(cut(self.rows, second, -1)).reshape(classes, -1)
            return overlaps + jnp.where(first == second, 1.0, 2.0) * matmul(flat, flat.T), None

        start = jnp.zeros((classes, classes), self.rows.dtype)
        return _weighted(self.head_rows, jax.lax.scan(add, start, jnp.asarray(pairs))[0])


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows1", "rows2"], meta_fields=["shards"]
)
@dataclasses.dataclass(frozen=True)
class PairOperator:
    """Two representations: `A` on samples, or an operator with its spectrum on `X` `[d1, d2]`.

    Attributes:
        rows1: `√p ẑ1`; may be sharded along the first axis.
        rows2: `ẑ2`, 0 where the sample does not count.
        shards: the number of equal parts into which the rows are split over devices.
    """

    rows1: Float[Array, "n d1"]
    rows2: Float[Array, "n d2"]
    shards: int = 1

    @property
    def dual(self) -> bool:
        """Whether vectors have an entry for each pair of columns rather than for each sample."""
        return self.rows1.shape[1] * self.rows2.shape[1] < self.rows1.shape[0]

    @property
    def size(self) -> int:
        """Length of the vectors."""
        samples, pairs = self.rows1.shape[0], self.rows1.shape[1] * self.rows2.shape[1]
        return min(samples, pairs)

    @property
    def rank_bound(self) -> Array:
        """The number of eigenvalues that can be non-zero."""
        return jnp.sum(self.support())

    @property
    def dimension(self) -> Array:
        """As many entries of a vector are drawn."""
        return self.rank_bound

    def support(self) -> Array:
        """1 where a vector in the range can be non-zero, 0 elsewhere."""
        if self.dual:
            return jnp.ones(self.size, self.rows1.dtype)
        return jnp.any(self.rows1 != 0, axis=-1).astype(self.rows1.dtype)

    def draw(self, sample: Sampler, columns: int) -> Array:
        """Random vectors `[size, columns]`; 0 for samples that do not count."""
        return sample((self.size, columns), self.rows1.dtype) * self.support()[:, None]

    def apply(self, vectors: Float[Array, "size k"]) -> Float[Array, "size k"]:
        """`A @ vectors`."""

        # `A` is `B Bᵀ` with the rows `√p ẑ1 ⊗ ẑ2` of `B`; `Bᵀ B` has the same non-zero
        # spectrum.
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
        """Whether `purity` is `tr(A²)` itself."""
        return purity_is_worth_it(len(self.rows1), self.rows1.shape[1], self.rows2.shape[1])

    def purity(self) -> Array:
        """`tr(A²)`, or the smaller purity of the two Gram matrices, which is an upper bound."""
        samples = self.rows1.shape[0]
        if self.purity_is_exact:
            rows_per_shard = samples // self.shards
            step = max(1, min(rows_per_shard, WORK // samples))

            def purity_of_rows(chunk: tuple[Array, Array]) -> Array:
                first, second = chunk
                kernel = matmul(first, self.rows1.T) * matmul(second, self.rows2.T)
                return total(jnp.square(kernel))

            def of_shard(shard: Array) -> Array:
                # All devices get the rows of one device, as a sum over devices in which the other
                # rows have weight 0.
                chosen = jax.nn.one_hot(shard, self.shards, dtype=self.rows1.dtype)[None, :]

                def cut(rows: Array) -> Array:
                    rows = matmul(chosen, rows.reshape(self.shards, -1)).reshape(rows_per_shard, -1)
                    rows = jnp.pad(rows, ((0, -rows_per_shard % step), (0, 0)))
                    return rows.reshape(-1, step, rows.shape[-1])

                return jnp.sum(jax.lax.map(purity_of_rows, (cut(self.rows1), cut(self.rows2))))

            return jnp.sum(jax.lax.map(of_shard, jnp.arange(self.shards)))
        # No entry of a Gram matrix exceeds 1, so an entrywise product has the smaller norm.
        root = jnp.sqrt(jnp.sum(jnp.square(self.rows1), axis=-1, keepdims=True))
        bounds = [total(jnp.square(matmul(r.T, r))) for r in (self.rows1, root * self.rows2)]
        return jnp.minimum(*bounds)


def purity_is_worth_it(samples: int, width1: int, width2: int) -> bool:
    """Whether all n² entries cost no more than some hundred products."""
    return samples * (width1 + width2) <= _WORTH * width1 * width2


Operator = MomentOperator | RowOperator | DenseOperator | PairOperator


def in_chunks(function, vectors: Array, per_column: int) -> Array:
    """`function(vectors)` for a function from `[n, k]` to `[m, k]`, with some columns at a time.

    `per_column` is the size of the temporaries of one column.
    """
    columns = vectors.shape[-1]
    step = max(1, WORK // per_column)
    if step >= columns:
        return function(vectors)
    pieces = math.ceil(columns / step)
    # Pieces of equal size need the least padding.
    step = math.ceil(columns / pieces)
    padded = jnp.pad(vectors, ((0, 0), (0, pieces * step - columns)))
    stacked = jnp.moveaxis(padded.reshape(len(vectors), pieces, step), 1, 0)
    result = jnp.moveaxis(jax.lax.map(function, stacked), 0, 1)
    return result.reshape(len(result), -1)[:, :columns]


def _weighted(vectors: Array, overlaps: Array) -> Array:
    """`Σ_{c,c'} (v_c · v_c')² overlaps[c, c']`."""
    return total(jnp.square(matmul(vectors, vectors.T)) * overlaps)
