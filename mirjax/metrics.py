"""Metric objects for training loops: MIR, HDR, collapse and spectra of all samples seen so far.

They hold `ClassMoments`, whose size does not depend on the number of samples, and follow the habits
of two libraries: `InterplayMetric` is a Flax `nnx.Metric`; `StreamedInterplay` has the methods
`empty`, `from_model_output`, `merge`, `reduce` and `compute` of a clu or metrax metric. This module
needs Flax (`pip install "mirjax[flax]"`), and is the only one that imports it.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mirjax._batch.classes import SQUARE
from mirjax._batch.debiased import DebiasedInterplay
from mirjax._batch.kernels import Interplay
from mirjax._checks import ArrayLike
from mirjax._dataset.moments import ClassMoments
from mirjax._dataset.result import DatasetInterplay

Values = dict[str, Any]
"""Names and floats; arrays inside a transformed function, which cannot make floats."""


def summary(
    moments: ClassMoments,
    head: Float[ArrayLike, "c d"],
    /,
    *,
    first: int = 6,
    last: int = 100,
    delta: float = 1e-4,
    **options: Any,
) -> Values:
    """All that moments and a head give, as a flat dict.

    Args:
        moments: of all samples.
        head: `[num_classes, d]`.
        first: the first eigenvalue that `alpha_req` is fitted to.
        last: the last one.
        delta: what `lidar` adds to the eigenvalues within the classes.
        **options: of `ClassMoments.interplay`, such as `method`, `key` and `max_products`. Where `d
            · min(num_classes, d)` is above 4,096 the joint entropy is estimated, which can take
            minutes on a CPU: not for every step.

    Returns:
        The fields of `Interplay` (`mir`, `hdr`, ...) with `mir_standard_error`; `mir_debiased` and
        `hdr_debiased`; `class_mir` and `class_hdr` of the class means, up to 4,096 classes; the
        fields of `NeuralCollapse` but `nc4`; those of `Spectra` but `eigenvalues`; `weight`. Of
        moments with `second=False`, the entropies that come first are `entropy1` and `entropy2`
        alone, and nothing is debiased. Python floats, or arrays inside a transformed function.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, an option is invalid, or belongs to
            the joint entropy and the moments have `second=False`.

    Of no sample, entropies and ratios are 0, ranks 1, and the rest is NaN.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> from mirjax import metrics
        >>> head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(20) % 4
        >>> moments = mirjax.ClassMoments.zeros(4, 8).update(head[labels], labels)
        >>> values = metrics.summary(moments, head)
        >>> print(f"{values['mir']:.3f} {values['nc1']:.3f} {values['rankme']:.3f}")
        0.754 0.000 3.000
    """
    values: Values = {}
    if moments.has_second:
        whole: DatasetInterplay = moments.interplay(head, **options)
        pairs: DebiasedInterplay = moments.debiased_interplay(head)
        values |= {name: getattr(whole, name) for name in Interplay._fields}
        values["mir_standard_error"] = whole.standard_error.mir
        values |= {"mir_debiased": pairs.mir, "hdr_debiased": pairs.hdr}
    elif options:
        raise ValueError(
            f"{', '.join(options)}: these are options of the joint entropy, which moments with "
            "second=False do not give."
        )
    else:
        values |= moments.entropies(head)._asdict()
    if len(head) <= SQUARE:
        by_class = moments.class_interplay(head)
        values |= {"class_mir": by_class.mir, "class_hdr": by_class.hdr}
    values |= moments.collapse(head)._asdict()
    spectra = moments.spectra(first=first, last=last, delta=delta)
    values |= spectra._replace(eigenvalues=None)._asdict()
    values["weight"] = jnp.sum(moments.sums.count)
    values = {name: value for name, value in values.items() if value is not None}
    if any(isinstance(value, jax.core.Tracer) for value in values.values()):
        return values
    # One transfer for all values, and not one for each.
    return {name: float(value) for name, value in jax.device_get(values).items()}


class InterplayMetric(nnx.Metric):
    """A Flax metric of all samples since `reset`.

    In `nnx.MultiMetric` it is updated and reset with the others; `compute` needs the head, which
    that cannot pass: ask the members one by one.

    It is updated inside `nnx.jit`, a scan or a loop, is saved and restored as all of Flax's state,
    and works on sharded batches.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> from mirjax.metrics import InterplayMetric
        >>> head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(20) % 4
        >>> metric = InterplayMetric(num_classes=4, dim=8)
        >>> for part in (slice(0, 12), slice(12, 20)):
        ...     metric.update(features=head[labels[part]], labels=labels[part])
        >>> values = metric.compute(head)
        >>> print(f"{values['mir']:.3f} {values['hdr']:.3f} {values['weight']:.0f}")
        0.754 0.000 20
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        second: bool = True,
        dtype: DTypeLike = jnp.float32,
    ):
        """A metric of no sample.

        Args:
            num_classes: C.
            dim: d, the width of the features.
            second: whether to hold second moments by class, as in `ClassMoments.zeros`.
            dtype: float32, or float64 if it is enabled in JAX.
        """
        zeros = ClassMoments.zeros(num_classes, dim, second=second, dtype=dtype)
        leaves, self._structure = jax.tree.flatten(zeros)
        self.state = nnx.List([nnx.metrics.MetricState(leaf) for leaf in leaves])

    @property
    def moments(self) -> ClassMoments:
        """The state, for what else it gives."""
        return jax.tree.unflatten(self._structure, [leaf[...] for leaf in self.state])

    def reset(self) -> None:
        """Forgets all samples."""
        self._put(jax.tree.map(jnp.zeros_like, self.moments))

    def update(  # pyrefly: ignore[bad-override]
        self,
        *,
        features: Float[ArrayLike, "n d"],
        labels: Int[ArrayLike, " n"],
        weights: Float[ArrayLike, " n"] | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> None:
        """Adds samples; what else `nnx.MultiMetric` passes is not looked at.

        Args:
            features: `[n, d]`, the input of the head.
            labels: integers `[n]`.
            weights: non-negative `[n]`; weight 0 drops a sample exactly, as padding.
            mask: `[n]`, Flax's name of what counts; not together with weights.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match, or both weights and mask are
                given.
        """
        self._put(self.moments.update(features, labels, _either(weights, mask)))

    def compute(  # pyrefly: ignore[bad-override]
        self, head: Float[ArrayLike, "c d"], **options: Any
    ) -> Values:
        """The values of all samples and this head, as `summary` gives them.

        Inside `nnx.MultiMetric`, which knows no head, call it on the member.

        Args:
            head: `[num_classes, d]`; for a Flax `Linear` layer the transposed kernel.
            **options: of `ClassMoments.interplay`.
        """
        return summary(self.moments, head, **options)

    def _put(self, moments: ClassMoments) -> None:
        for leaf, value in zip(self.state, jax.tree.leaves(moments), strict=True):
            leaf[...] = value


@struct.dataclass
class StreamedInterplay:
    """The same state with the methods of a clu or metrax metric, which is never changed in place.

    `StreamedInterplay.of(num_classes, dim)` is a class of metrics for networks of these sizes. It
    stands in a `clu.metrics.Collection`, or is used alone. The values are of the last head.

    Attributes:
        moments: of all samples.
        head: `[num_classes, d]`, the last one.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> from mirjax.metrics import StreamedInterplay
        >>> head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(20) % 4
        >>> Metric = StreamedInterplay.of(num_classes=4, dim=8)
        >>> metric = Metric.empty()
        >>> for part in (slice(0, 12), slice(12, 20)):
        ...     new = Metric.from_model_output(head[labels[part]], labels[part], head)
        ...     metric = metric.merge(new)
        >>> print(f"{metric.compute()['mir']:.3f}")
        0.754
    """

    moments: ClassMoments
    head: Float[Array, "c d"]
    sizes: ClassVar[tuple[int, int] | None] = None
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    @functools.cache
    def of(
        cls,
        num_classes: int,
        dim: int,
        *,
        second: bool = True,
        dtype: DTypeLike = jnp.float32,
    ) -> type["StreamedInterplay"]:
        """The class for features of width `dim` and so many classes.

        Args:
            num_classes: C.
            dim: d, the width of the features.
            second: whether to hold second moments by class, as in `ClassMoments.zeros`.
            dtype: float32, or float64 if it is enabled in JAX.

        Returns:
            The same class for the same arguments.
        """
        body = {"sizes": (num_classes, dim), "options": {"second": second, "dtype": dtype}}
        made = type(cls.__name__, (cls,), body | {"__module__": cls.__module__})
        return struct.dataclass(made)

    @classmethod
    def empty(cls) -> "StreamedInterplay":
        """The metric of no sample.

        Raises:
            TypeError: the class does not know its sizes: it was not made by `of`.
        """
        if cls.sizes is None:
            raise TypeError(
                "StreamedInterplay does not know its sizes: use the class that "
                "StreamedInterplay.of(num_classes=C, dim=d) makes."
            )
        moments = ClassMoments.zeros(*cls.sizes, **cls.options)
        return cls(moments=moments, head=jnp.zeros_like(moments.total.sums))

    @classmethod
    def from_model_output(
        cls,
        features: Float[ArrayLike, "n d"],
        labels: Int[ArrayLike, " n"],
        head: Float[ArrayLike, "c d"],
        weights: Float[ArrayLike, " n"] | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> "StreamedInterplay":
        """The metric of one batch.

        Args:
            features: `[n, d]`, the input of the head.
            labels: integers `[n]`.
            head: `[num_classes, d]`.
            weights: non-negative `[n]`; weight 0 drops a sample exactly, as padding.
            mask: `[n]`, clu's name of what counts; not together with weights.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match, or both weights and mask are
                given.
        """
        new = cls.empty()
        if jnp.shape(head) != new.head.shape:
            raise ValueError(
                f"head must be [num_classes, d] = {new.head.shape}, got {jnp.shape(head)}. A Flax "
                "Dense kernel is [d, num_classes]: pass its transpose, kernel.T."
            )
        moments = new.moments.update(features, labels, _either(weights, mask))
        head = jnp.asarray(head).astype(new.head.dtype)
        return dataclasses.replace(new, moments=moments, head=head)

    def merge(self, other: "StreamedInterplay") -> "StreamedInterplay":
        """The metric of the samples of both, with the head of the other if it has samples."""
        moments = self.moments.merge(other.moments)
        is_later = jnp.sum(other.moments.total.count) != 0
        head = jnp.where(is_later, other.head, self.head)
        return dataclasses.replace(self, moments=moments, head=head)

    def reduce(self) -> "StreamedInterplay":
        """One metric of those along the first axis, as clu gathers them from devices."""
        first, rest = (jax.tree.map(f, self) for f in (lambda x: x[0], lambda x: x[1:]))
        merged, _ = jax.lax.scan(lambda whole, part: (whole.merge(part), None), first, rest)
        return merged

    def compute(self, **options: Any) -> Values:
        """The values of all samples and the last head, as `summary` gives them.

        Args:
            **options: of `ClassMoments.interplay`.
        """
        return summary(self.moments, self.head, **options)


def _either(weights: ArrayLike | None, mask: ArrayLike | None) -> ArrayLike | None:
    if weights is not None and mask is not None:
        raise ValueError("weights and mask were both given: they are two names of one thing.")
    return mask if weights is None else weights
