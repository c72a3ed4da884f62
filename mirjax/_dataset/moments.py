"""Additive statistics of a labelled data set that give MIR, HDR and neural collapse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mirjax._batch.collapse import NeuralCollapse, collapse_of_means
from mirjax._batch.interplay import class_interplay
from mirjax._batch.kernels import Interplay
from mirjax._checks import ArrayLike, as_float, as_labels, head_of, same_size, sample_weights
from mirjax._dataset.estimate import DatasetMethod, Options, Target
from mirjax._dataset.result import DatasetInterplay, interplay_of_sums
from mirjax._dataset.sharding import automatic, row_shards
from mirjax._dataset.sums import Sums, sums_of
from mirjax._linalg.precision import matmul


class ClassMoments(NamedTuple):
    """Statistics of labelled samples, whose size does not depend on the number of samples.

    They are a pytree: they can be the carry of `lax.scan`, be donated, or be saved by Orbax. Start
    with `zeros`, add batches with `update`, and combine the statistics of several workers with
    `merge`; then `interplay`, `class_interplay` and `collapse` give the metrics of the whole set.
    All sums are compensated: `lost` holds the rounding errors of `total`.

    Memory: `2 · num_classes · d²` numbers. If that is more than the features have, `n · d`, use
    `dataset_interplay`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(20) % 4
        >>> moments = mirjax.ClassMoments.zeros(4, 8)
        >>> for part in (slice(0, 12), slice(12, 20)):
        ...     moments = moments.update(head[labels[part]], labels[part])
        >>> result = moments.interplay(head)
        >>> print(f"{result.mir:.4f} {mirjax.theory.collapsed_mir(4):.4f} {result.method}")
        0.7540 0.7540 exact
    """

    total: Sums
    lost: Sums

    @classmethod
    def zeros(cls, num_classes: int, dim: int, *, dtype: Any = jnp.float32) -> "ClassMoments":
        """The statistics of an empty set.

        Args:
            num_classes: C.
            dim: d, the width of the features.
            dtype: float32, or float64 if it is enabled in JAX.

        Raises:
            ValueError: a size is not positive.
        """
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be positive, got {num_classes} and {dim}.")
        shapes = (num_classes,), (num_classes, dim), (dim, dim), (num_classes,)
        shapes = (*shapes, (num_classes, dim, dim))
        return cls(*(Sums(*(jnp.zeros(s, dtype) for s in shapes)) for _ in range(2)))

    @property
    def sums(self) -> Sums:
        """The statistics, corrected for rounding."""
        return jax.tree.map(jnp.add, self.total, self.lost)

    def update(
        self,
        features: Float[ArrayLike, "n d"],
        labels: Int[ArrayLike, " n"],
        weights: Float[ArrayLike, " n"] | None = None,
        *,
        shards: int | None = None,
    ) -> "ClassMoments":
        """Adds samples.

        Args:
            features: `[n, d]`, the input of the head, one sample per row. Unlike in `interplay` the
                squares of the raw rows must be finite numbers in float32.
            labels: integers `[n]`.
            weights: non-negative `[n]`; weight 0 drops a sample exactly, whatever it holds.
            shards: the number of equal parts into which the rows are split over devices. By default
                that of `features`, or 1 inside a transformed function, where it is unknown. No row
                leaves its part; the compiler adds the parts up.

        Returns:
            New statistics. They are NaN where a counted sample has a NaN, a label outside
            `[0, num_classes)` or a negative weight.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match.

        Cost: `O(n d²)` for any number of classes; most efficient with many samples per class.
        """
        shards = row_shards(features) if shards is None else shards
        features = as_float(features, "features", axes="n d")
        labels = as_labels(labels)
        same_size(
            features, "features", labels, "labels", axis=(-2, -1), what="the number of rows n"
        )
        classes, width = self.total.sums.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"features must be [n, {width}], got {features.shape}.")
        features = features.astype(self.total.sums.dtype)
        weights = sample_weights(weights, features, "features")
        features, labels, weights = map(automatic, (features, labels, weights))
        new = sums_of(features, labels, weights, classes, shards)
        return self._plus(new, jax.tree.map(jnp.zeros_like, new))

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """The statistics of all samples of both; up to rounding the order does not matter.

        Raises:
            ValueError: the two have different sizes.
        """
        mine, theirs = self.total.sums.shape, other.total.sums.shape
        if mine != theirs:
            raise ValueError(f"moments of [num_classes, d] = {mine} and {theirs} cannot be merged.")
        return self._plus(other.total, other.lost)

    def interplay(
        self,
        head: Float[ArrayLike, "c d"],
        *,
        method: DatasetMethod = "auto",
        key: Array | None = None,
        tolerance: float | None = None,
        target: Target = "standard_error",
        rank: int | None = None,
        probes: int | None = None,
        max_products: int | None = None,
        memory_limit: int | None = None,
    ) -> DatasetInterplay:
        """MIR, HDR and the entropies of the whole set and a head, as a `DatasetInterplay`.

        Args:
            head: `[num_classes, d]`.
            method: `"exact"` decomposes a matrix of side `d · min(num_classes, d)`; `"lanczos"`
                estimates from products with it; `"auto"` is exact up to a side of 4,096.
            key: random key of the probes; this and the other options are as in `dataset_interplay`.
            tolerance: relative to the joint entropy.
            target: what must meet the tolerance.
            rank: how many vectors are split off first.
            probes: how many random vectors estimate the rest.
            max_products: the number of products at which to give up.
            memory_limit: how many bytes may be used on each device.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match, or an option is invalid.
            MemoryError: the method needs too much memory; the message says how much, and which
                method would fit.
        """
        options = Options(
            method, key, tolerance, target, rank, probes, max_products, memory_limit
        ).checked()
        return interplay_of_sums(self.sums, self._head(head), options)

    def class_interplay(self, head: Float[ArrayLike, "c d"]) -> Interplay:
        """`mirjax.class_interplay` of the class means of the whole set, centred with its mean."""
        head = self._head(head)
        means, centre, present = self._means()
        # A class whose mean is the centre has no direction and is left out.
        return class_interplay(jnp.where(present[:, None], means, centre), head, global_mean=centre)

    def collapse(
        self, head: Float[ArrayLike, "c d"], *, nc4: Float[ArrayLike, ""] | None = None
    ) -> NeuralCollapse:
        """NC1 to NC3 of the whole set, as in `neural_collapse`.

        NC4 asks which class mean is nearest to each sample, and the means are only known at the
        end. It takes a second pass, with `agreement` for each batch; the result contains the `nc4`
        that is passed in, or NaN.
        """
        head = self._head(head)
        means, centre, present = self._means()
        sums = self.sums
        weight = jnp.sum(sums.count)
        nc4 = jnp.asarray(jnp.nan if nc4 is None else nc4, head.dtype)
        covariance = sums.scatter / jnp.where(weight == 0, 1.0, weight)
        # NC1 to NC3 do not depend on the scale, and a unit scale keeps squares finite.
        scale = jnp.sqrt(jnp.max(jnp.diagonal(covariance)) + jnp.max(jnp.square(means)))
        unit = 1 / jnp.where(scale > 0, scale, 1.0)
        covariance = covariance * jnp.square(unit)
        offsets = unit * jnp.where(present[:, None], means - centre[None, :], 0.0)
        # Means that equal the global mean up to rounding have no direction.
        noise = 8 * jnp.finfo(head.dtype).eps
        largest = jnp.max(jnp.abs(offsets), axis=-1, keepdims=True)
        offsets = jnp.where(largest <= noise, 0.0, offsets)
        broken = (weight == 0) | ~jnp.isfinite(weight) | ~jnp.all(jnp.isfinite(sums.scatter))
        return collapse_of_means(
            offsets, present, lambda x: jnp.sum(x * matmul(covariance, x)), head, nc4, broken
        )

    def agreement(
        self,
        features: Float[ArrayLike, "n d"],
        head: Float[ArrayLike, "c d"],
        *,
        bias: Float[ArrayLike, " c"] | None = None,
        weights: Float[ArrayLike, " n"] | None = None,
    ) -> Float[Array, ""]:
        """Weight of the samples that the head assigns to the class with the nearest mean.

        This is for a second pass over the samples: the sum over all batches, divided by their total
        weight, is `nc4`.
        """
        head = self._head(head)
        features = as_float(features, "features", axes="n d").astype(head.dtype)
        head_of(features, head)
        weights = sample_weights(weights, features, "features")
        features = jnp.where((weights == 0)[:, None], 0.0, features)
        means, centre, present = self._means()
        offsets = means - centre[None, :]
        # Squared distances but for the norm of the sample, which is the same for all classes.
        distances = jnp.sum(jnp.square(offsets), axis=-1)[None, :] - 2 * matmul(
            features - centre[None, :], offsets.T
        )
        nearest = jnp.argmin(jnp.where(present[None, :], distances, jnp.inf), axis=-1)
        logits = matmul(features, head.T)
        if bias is not None:
            logits = logits + as_float(bias, "bias", axes="num_classes").astype(head.dtype)[None, :]
        return jnp.sum(weights * (nearest == jnp.argmax(logits, axis=-1)).astype(weights.dtype))

    def _head(self, head: ArrayLike) -> Array:
        head = as_float(head, "head", axes="num_classes d")
        if head.shape != self.total.sums.shape:
            raise ValueError(
                f"head must be [num_classes, d] = {self.total.sums.shape} like the moments, got "
                f"{head.shape}."
            )
        return head.astype(self.total.sums.dtype)

    def _means(self) -> tuple[Array, Array, Array]:
        """Class means (0 for an absent class), mean of all samples, and which classes occur."""
        sums = self.sums
        present = sums.count != 0
        means = sums.sums / jnp.where(present, sums.count, 1.0)[:, None]
        weight = jnp.sum(sums.count)
        return means, jnp.sum(sums.sums, axis=0) / jnp.where(weight == 0, 1.0, weight), present

    def _plus(self, new: Sums, new_lost: Sums) -> "ClassMoments":
        # Each scatter is about the means of its own part. About the common means it is larger by
        # `shift` (the parallel axis theorem).
        ours, theirs = self.sums, jax.tree.map(jnp.add, new, new_lost)
        both = ours.count + theirs.count
        between = ours.count * theirs.count / jnp.where(both == 0, 1.0, both)
        apart = theirs.sums / jnp.where(theirs.count == 0, 1.0, theirs.count)[:, None]
        apart = apart - ours.sums / jnp.where(ours.count == 0, 1.0, ours.count)[:, None]
        shift = matmul((between[:, None] * apart).T, apart)
        new = new._replace(scatter=new.scatter + shift)
        # Compensated summation: each rounding error is added up on its own.
        total, lost = zip(*map(_two_sum, self.total, new), strict=True)
        return ClassMoments(
            Sums(*total), jax.tree.map(lambda a, b, c: a + b + c, self.lost, new_lost, Sums(*lost))
        )


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its rounding error (Knuth's TwoSum)."""
    rounded = a + b
    part_of_b = rounded - a
    return rounded, (a - (rounded - part_of_b)) + (b - part_of_b)
