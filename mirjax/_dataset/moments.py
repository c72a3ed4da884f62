"""Additive statistics of a labelled data set that give MIR, HDR and neural collapse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mirjax._batch.classes import best_class, occurring
from mirjax._batch.collapse import (
    CentredMeans,
    NeuralCollapse,
    collapse_of_means,
    noise_of_means,
    without_noise,
)
from mirjax._batch.debiased import DebiasedInterplay
from mirjax._batch.interplay import class_interplay
from mirjax._batch.kernels import Interplay
from mirjax._batch.pairs import interplay_of_purities
from mirjax._batch.spectra import Spectra
from mirjax._checks import (
    ArrayLike,
    as_float,
    as_labels,
    decay_range,
    head_of,
    ridge,
    same_size,
    sample_weights,
)
from mirjax._dataset.debiased import pair_purities
from mirjax._dataset.estimate import DatasetMethod, Options, Target
from mirjax._dataset.marginals import entropies_of_sums, of_sums
from mirjax._dataset.result import DatasetInterplay, interplay_of_sums
from mirjax._dataset.sharding import row_shards
from mirjax._dataset.spectra import spectra_of_classes, spectra_of_sums
from mirjax._dataset.sums import Sums, sums_of, valid_rows
from mirjax._linalg.precision import matmul
from mirjax._linalg.rounding import found_eps, power_of_two, stated_eps
from mirjax._mesh import automatic


class Entropies(NamedTuple):
    """The marginal entropies of features and head, in nats.

    Attributes:
        entropy1: `H(K1)`, of the features.
        entropy2: `H(K2)`, of the rows of the head at the labels.
    """

    entropy1: Float[Array, ""]
    entropy2: Float[Array, ""]


class ClassMoments(NamedTuple):
    """Statistics of labelled samples, whose size does not depend on the number of samples.

    They are a pytree: they can be the carry of `lax.scan`, be donated, or be saved by Orbax. Start
    with `zeros`, add batches with `update`, and combine the statistics of several workers with
    `merge`, or with `reduce` inside `shard_map` and `pmap`; then `interplay`, `class_interplay` and
    `collapse` give the metrics of the whole set. All sums are compensated: `lost` holds the
    rounding errors of `total`.

    The fields do not add up by themselves, since scatters are about the class means of their own
    part of the data: a plain `jax.lax.psum` of them is wrong.

    Memory: `2 · num_classes · d²` numbers, or `2 · num_classes · d + 4 d²` with `second=False`. If
    that is more than the features have, `n · d`, use `dataset_interplay`.

    Attributes:
        total: the sums.
        lost: their rounding errors.
        origin: `[d]`, a point near the data, about which the rows are summed.
        eps: the relative spacing of the coarsest data so far, which decides what counts as rank.

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
    origin: Float[Array, " d"]
    eps: Float[Array, ""]

    @classmethod
    def zeros(
        cls, num_classes: int, dim: int, *, second: bool = True, dtype: Any = jnp.float32
    ) -> "ClassMoments":
        """The statistics of an empty set.

        Args:
            num_classes: C.
            dim: d, the width of the features.
            second: whether to hold second moments by class, `[num_classes, d, d]`, from which
                `interplay` follows. Without them, for any number of classes, there are still the
                class means, `collapse` and `entropies`.
            dtype: float32, or float64 if it is enabled in JAX.

        Raises:
            TypeError: the dtype is another one.
            ValueError: a size is not positive.
        """
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be positive, got {num_classes} and {dim}.")
        if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
            raise TypeError(
                f"dtype must be float32 or float64, got {jnp.dtype(dtype).name}: sums of rounded "
                "numbers need it, whatever the dtype of the features."
            )
        by_class = (num_classes,)
        shapes = by_class, (num_classes, dim), (dim, dim), by_class, by_class, by_class
        shapes = (*shapes, (num_classes if second else 1, dim, dim))
        # Two sets of arrays: buffers that are donated must not be shared.
        total, lost = (Sums(*(jnp.zeros(s, dtype) for s in shapes)) for _ in range(2))
        return cls(total, lost, jnp.zeros(dim, dtype), jnp.zeros((), dtype))

    @property
    def sums(self) -> Sums:
        """The statistics, corrected for rounding, with the sums of the rows as they are."""
        centred = self._centred()
        return centred._replace(sums=centred.sums + centred.count[:, None] * self.origin[None, :])

    @property
    def has_second(self) -> bool:
        """Whether there are second moments by class."""
        return self.total.second.shape[0] == self.total.count.shape[0]

    @automatic
    def update(
        self,
        features: Float[ArrayLike, "n d"],
        labels: Int[ArrayLike, " n"],
        weights: Float[ArrayLike, " n"] | None = None,
        *,
        shards: int | None = None,
        precision: DTypeLike | None = None,
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
            precision: the dtype in which the features were made, as in `neural_collapse`.

        Returns:
            New statistics. They are NaN where a counted sample has a NaN, a label outside
            `[0, num_classes)` or a negative weight.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match.

        Cost: `O(n d²)` for any number of classes; most efficient with many samples per class.
        """
        shards = row_shards(features) if shards is None else shards
        given = features
        features = as_float(features, "features", axes="n d")
        eps = stated_eps(given.dtype, precision)
        labels = as_labels(labels)
        same_size(
            features, "features", labels, "labels", axis=(-2, -1), what="the number of rows n"
        )
        classes, width = self.total.sums.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"features must be [n, {width}], got {features.shape}.")
        features = features.astype(self.total.sums.dtype)
        weights = sample_weights(weights, features, "features")
        features, labels, weights = valid_rows(features, labels, weights, classes)
        eps = found_eps(features) if eps is None else jnp.asarray(eps, features.dtype)
        # Sums about a point near the data keep the digits that a common offset would take. The
        # first samples choose the point.
        weight = jnp.sum(weights)
        mean = matmul(weights, features) / jnp.where(weight == 0, 1.0, weight)
        origin = jnp.where(jnp.any(self.total.count != 0), self.origin, mean)
        # Of a batch with fewer samples than there are classes only some rows of the state change.
        occurs, own, count = None, labels, classes
        if len(labels) < classes and shards == 1:
            occurs, own = occurring(labels, fill=classes)
            count = len(labels)
        second = self.has_second
        new = sums_of(features, own, weights, count, shards, origin=origin, second=second)
        nothing = jax.tree.map(jnp.zeros_like, new)
        return self._plus(new, nothing, origin, eps, occurs)

    @automatic
    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """The statistics of all samples of both; up to rounding the order does not matter.

        Raises:
            ValueError: the two have different sizes.
        """
        mine, theirs = ((m.total.sums.shape, m.has_second) for m in (self, other))
        if mine != theirs:
            raise ValueError(
                f"moments of [num_classes, d] = {mine[0]} and {theirs[0]} cannot be merged."
                if mine[0] != theirs[0]
                else "moments with and without second moments by class cannot be merged: make both "
                "with the same `second`."
            )
        origin = jnp.where(jnp.any(self.total.count != 0), self.origin, other.origin)
        moved = other._about(origin)
        return self._plus(moved.total, moved.lost, origin, other.eps)

    def reduce(self, axis_name: str | tuple[str, ...]) -> "ClassMoments":
        """The statistics of the samples of all devices, inside `shard_map`, `pmap` or `vmap`.

        It is what `merge` of all of them gives, up to rounding, where a `jax.lax.psum` of the state
        would leave out how far the class means of the devices lie apart.

        Args:
            axis_name: the name of the mapped axis, or several of them.

        Returns:
            The same statistics on every device.

        Example:
            >>> import jax, jax.numpy as jnp, mirjax
            >>> rows, labels = jnp.eye(8, 4).reshape(2, 4, 4), jnp.arange(8).reshape(2, 4) % 3
            >>> def part(features, labels):
            ...     moments = mirjax.ClassMoments.zeros(3, 4).update(features, labels)
            ...     return moments.reduce("devices")
            >>> whole = jax.vmap(part, axis_name="devices", out_axes=None)(rows, labels)
            >>> whole.sums.count
            Array([3., 3., 2.], dtype=float32)
        """
        weight = jnp.sum(self.total.count)
        everything = lax.psum(weight, axis_name)
        share = weight / jnp.where(everything == 0, 1.0, everything)
        own = self._about(lax.psum(share * self.origin, axis_name))
        total, lost = lax.psum((own.total, own.lost), axis_name)
        both = ClassMoments(total, lost, own.origin, lax.pmax(self.eps, axis_name))
        # The parallel axis theorem, with the means of all devices in place of those of one.
        ours, count = own._centred(), both._centred()
        apart = ours.sums / jnp.where(ours.count == 0, 1.0, ours.count)[:, None]
        apart = apart - count.sums / jnp.where(count.count == 0, 1.0, count.count)[:, None]
        weighted = ours.count[:, None] * apart
        shifts = matmul(weighted.T, apart), jnp.sum(weighted * apart, axis=1)
        scatter, spread = lax.psum(shifts, axis_name)
        return both._replace(
            total=total._replace(scatter=total.scatter + scatter, spread=total.spread + spread)
        )

    @automatic
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
        exact_side: int | None = None,
    ) -> DatasetInterplay:
        """MIR, HDR and the entropies of the whole set and a head, as a `DatasetInterplay`.

        Args:
            head: `[num_classes, d]`.
            method: `"exact"` decomposes a matrix of side `d · min(num_classes, d)`; `"lanczos"`
                estimates from products with it; `"auto"` is exact up to a side of
                `exact_side`.
            key: random key of the probes; this and the other options are as in `dataset_interplay`.
            tolerance: relative to the joint entropy.
            target: what must meet the tolerance.
            rank: how many vectors are split off first.
            probes: how many random vectors estimate the rest.
            max_products: the number of products at which to give up.
            memory_limit: how many bytes may be used on each device.
            exact_side: up to which side `"auto"` decomposes; 4,096 if not given, 2,048 on a TPU.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match, or an option is invalid.
            MemoryError: the method needs too much memory; the message says how much, and which
                method would fit.
        """
        options = Options(
            method, key, tolerance, target, rank, probes, max_products, memory_limit, exact_side
        ).checked()
        self._needs_second("dataset_interplay")
        return interplay_of_sums(self._centred(), self._head(head), options)

    @automatic
    def debiased_interplay(self, head: Float[ArrayLike, "c d"]) -> DebiasedInterplay:
        """`mirjax.debiased_interplay` from all pairs of the set, in any order of the samples.

        Args:
            head: `[num_classes, d]`.

        Returns:
            `DebiasedInterplay` without `standard_error`, which needs the rows:
            `dataset_debiased_interplay` gives it. NaN with fewer than two samples, and where one
            of them has nearly all of the weight (but for 1e-4 of it in float32).

        Raises:
            TypeError, ValueError: shapes or dtypes do not match, or there are no second moments by
                class.

        Cost: `O(num_classes² d²)`, and no decomposition.
        """
        head = self._head(head)
        self._needs_second("dataset_debiased_interplay")
        purities = pair_purities(self._centred(), head)
        return DebiasedInterplay(*interplay_of_purities(purities), None)

    @automatic
    def entropies(self, head: Float[ArrayLike, "c d"]) -> Entropies:
        """The two marginal entropies of `interplay`, which need no second moments by class.

        Args:
            head: `[num_classes, d]`.

        Returns:
            `Entropies`. With `second=False` the samples of a class whose row of the head is zero
            cannot be left out afterwards, as `interplay` does: `entropy1` is then NaN.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match.
        """
        head = self._head(head)
        if self.has_second:
            return Entropies(*of_sums(self._centred(), head)[1:3])
        return Entropies(*entropies_of_sums(self._centred(), head))

    @automatic
    def spectra(
        self,
        *,
        per_class: bool = False,
        first: int = 6,
        last: int = 100,
        delta: float = 1e-4,
    ) -> Spectra:
        """The measures of `mirjax.spectra` of the whole set, from one pass over its rows.

        What follows from sums of products of two features is there; what needs the rows is None:
        `participation_ratio_debiased` and `effective_rank_centred` (whose rows are divided by
        their distance to a mean that is only known at the end).

        Args:
            per_class: whether to measure the samples of each class on its own. The moments by class
                are of unit rows, so `effective_rank` is all they tell, and the rest is None.
            first: the first eigenvalue that `alpha_req` is fitted to.
            last: the last one.
            delta: what `lidar` adds to the eigenvalues within the classes.

        Returns:
            `Spectra`; `eigenvalues` are d numbers, whatever the number of samples, and `rankme` has
            its 1e-7 for each of d singular values. Sums in float32 do not tell eigenvalues below
            about 1e-6 of the largest from 0, nor singular values below 1e-3: these count as 0. That
            can move `rankme` of a steep spectrum or beside a large common mean, `alpha_req` and,
            where features vary by far more than `delta`, `lidar`; moments in float64 have no such
            limit. Squares of rows must be normal numbers: in float32 rows from 1e-17 to 1e17.

        Raises:
            ValueError: the range of `alpha_req` is empty, `delta` is not positive, or there are no
                second moments by class for `per_class`.

        Cost: a few decompositions of side d; `per_class` one for each class. Not meant to be
        differentiated; `mirjax.spectra.measure` of rows is.
        """
        decay_range(first, last)
        ridge(delta)
        if not per_class:
            return spectra_of_sums(
                self._centred(), self.origin, first=first, last=last, delta=delta
            )
        if not self.has_second:
            raise ValueError(
                "these moments were made with second=False: without second moments by class there "
                "is nothing to tell of each class. Use ClassMoments.zeros(..., second=True)."
            )
        return spectra_of_classes(self._centred())

    @automatic
    def class_interplay(self, head: Float[ArrayLike, "c d"]) -> Interplay:
        """`mirjax.class_interplay` of the class means of the whole set, centred with its mean.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match.
            MemoryError: a matrix of `num_classes × num_classes` does not fit.
        """
        head = self._head(head)
        means, centre, present = self._means()
        # A class whose mean is the centre has no direction and is left out. What is centred here is
        # known to the precision of the data at their own place, not about the origin.
        size = jnp.max(jnp.abs(means + self.origin[None, :]), where=present[:, None], initial=0.0)
        offsets = jnp.where(present[:, None], means - centre[None, :], 0.0)
        rounding = jnp.maximum(4 * float(jnp.finfo(head.dtype).eps), 0.5 * self.eps) * size
        largest = jnp.max(jnp.abs(offsets), axis=-1, keepdims=True)
        offsets = jnp.where(largest <= rounding, 0.0, offsets)
        return class_interplay(offsets, head, global_mean=jnp.zeros_like(centre))

    @automatic
    def collapse(
        self, head: Float[ArrayLike, "c d"], *, nc4: Float[ArrayLike, ""] | None = None
    ) -> NeuralCollapse:
        """All measures of `neural_collapse` but NC4, of the whole set.

        NC4 asks which class mean is nearest to each sample, and the means are only known at the
        end. It takes a second pass, with `agreement` for each batch; the result contains the `nc4`
        that is passed in, or None.
        """
        head = self._head(head)
        means, centre, present = self._means()
        sums = self._centred()
        weight = jnp.sum(sums.count)
        covariance = sums.scatter / jnp.where(weight == 0, 1.0, weight)
        # The measures do not depend on the scale, and a unit scale keeps squares finite.
        offsets = jnp.where(present[:, None], means - centre[None, :], 0.0)
        scale = jnp.sqrt(jnp.max(jnp.diagonal(covariance)) + jnp.max(jnp.square(offsets)))
        scale = power_of_two(scale)
        covariance = covariance / scale / scale
        offsets = offsets / scale
        raw = jnp.where(present[:, None], (means + self.origin[None, :]) / scale, 0.0)
        variances = sums.spread / jnp.where(present, sums.count, 1.0) / scale / scale
        eps = jnp.maximum(self.eps, float(jnp.finfo(head.dtype).eps))
        within = jnp.trace(covariance)
        # The largest feature is not known, but that means and spreads do not exceed it.
        size = jnp.sqrt(jnp.max(jnp.square(raw)) + jnp.max(jnp.diagonal(covariance)))
        sizes = jnp.sum(jnp.square(raw), axis=1) + variances
        parts = CentredMeans(
            without_noise(offsets, eps * size),
            present,
            variances,
            within,
            noise_of_means(eps, sizes),
        )
        broken = (weight == 0) | ~jnp.isfinite(weight) | ~jnp.all(jnp.isfinite(sums.scatter))
        return collapse_of_means(
            parts,
            lambda x: jnp.sum(x * matmul(covariance, x)),
            head,
            nc4=None if nc4 is None else jnp.asarray(nc4, head.dtype),
            broken=broken,
        )

    @automatic
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
        centred = features - self.origin[None, :] - centre[None, :]
        negative = jnp.where(present, -jnp.sum(jnp.square(offsets), axis=-1), -jnp.inf)
        nearest = best_class(centred, 2 * offsets, negative)
        if bias is None:
            bias = jnp.zeros(len(head), head.dtype)
        bias = as_float(bias, "bias", axes="num_classes").astype(head.dtype)
        predicted = best_class(features, head, bias)
        return jnp.sum(weights * (nearest == predicted).astype(weights.dtype))

    def _head(self, head: ArrayLike) -> Array:
        head = as_float(head, "head", axes="num_classes d")
        if head.shape != self.total.sums.shape:
            raise ValueError(
                f"head must be [num_classes, d] = {self.total.sums.shape} like the moments, got "
                f"{head.shape}."
            )
        return head.astype(self.total.sums.dtype)

    def _needs_second(self, instead: str) -> None:
        if not self.has_second:
            raise ValueError(
                "these moments were made with second=False: without second moments by class they "
                "give `entropies`, `class_interplay` and `collapse`, but no joint entropy. Use "
                f"ClassMoments.zeros(..., second=True) or {instead}(features, head, labels)."
            )

    def _centred(self) -> Sums:
        """The statistics about `origin`, corrected for rounding."""
        return jax.tree.map(jnp.add, self.total, self.lost)

    def _means(self) -> tuple[Array, Array, Array]:
        """About `origin`: class means (0 if absent) and mean of all; and which classes occur."""
        sums = self._centred()
        present = sums.count != 0
        means = sums.sums / jnp.where(present, sums.count, 1.0)[:, None]
        weight = jnp.sum(sums.count)
        return means, jnp.sum(sums.sums, axis=0) / jnp.where(weight == 0, 1.0, weight), present

    def _about(self, origin: Array) -> "ClassMoments":
        """The same statistics about another origin."""
        shift = self._centred().count[:, None] * (self.origin - origin)[None, :]
        sums, rounding = _two_sum(self.total.sums, shift)
        lost = self.lost._replace(sums=self.lost.sums + rounding)
        return self._replace(total=self.total._replace(sums=sums), lost=lost, origin=origin)

    def _plus(
        self,
        new: Sums,
        new_lost: Sums,
        origin: Array,
        eps: Array,
        classes: Array | None = None,
    ) -> "ClassMoments":
        """Adds statistics about `origin`, which is that of `self` unless it holds no samples.

        If `classes` are given, what is known by class belongs to them, in this order.
        """

        def rows(sums: Sums) -> Sums:
            return sums if classes is None else _with_classes(sums, lambda x: x[classes])

        # Each scatter is about the means of its own part. About the common means it is larger by
        # `shift` (the parallel axis theorem).
        total, lost = rows(self.total), rows(self.lost)
        ours, theirs = (jax.tree.map(jnp.add, *parts) for parts in ((total, lost), (new, new_lost)))
        both = ours.count + theirs.count
        between = ours.count * theirs.count / jnp.where(both == 0, 1.0, both)
        apart = theirs.sums / jnp.where(theirs.count == 0, 1.0, theirs.count)[:, None]
        apart = apart - ours.sums / jnp.where(ours.count == 0, 1.0, ours.count)[:, None]
        weighted = between[:, None] * apart
        new = new._replace(
            scatter=new.scatter + matmul(weighted.T, apart),
            spread=new.spread + jnp.sum(weighted * apart, axis=1),
        )
        # Compensated summation: each rounding error is added up on its own.
        added, rounding = (Sums(*part) for part in zip(*map(_two_sum, total, new), strict=True))
        lost = jax.tree.map(lambda a, b, c: a + b + c, lost, new_lost, rounding)
        if classes is not None:
            # Places that are left over hold a class beyond the last, which is dropped.
            added, lost = (
                _with_classes(whole, lambda x, y: x.at[classes].set(y, mode="drop"), part)
                for whole, part in ((self.total, added), (self.lost, lost))
            )
        return ClassMoments(added, lost, origin, jnp.maximum(self.eps, eps))


def _with_classes(sums: Sums, function: Callable[..., Array], *others: Sums) -> Sums:
    """`function` of what belongs to a class; the rest of the last argument as it is."""
    names = ["count", "sums", "spread", "unit_count", "unit_squares"]
    if sums.second.shape[0] == sums.count.shape[0]:
        names.append("second")
    last = (sums, *others)[-1]
    new = {n: function(getattr(sums, n), *(getattr(o, n) for o in others)) for n in names}
    return last._replace(**new)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its rounding error (Knuth's TwoSum)."""
    rounded = a + b
    part_of_b = rounded - a
    return rounded, (a - (rounded - part_of_b)) + (b - part_of_b)
