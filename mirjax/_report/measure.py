"""All measures of rows that are read in parts: one pass, and a second one where it takes two."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mirjax import theory, tokens
from mirjax._batch.debiased import debiased_feature_interplay
from mirjax._dataset.dataset import dataset_feature_interplay, dataset_interplay
from mirjax._dataset.debiased import (
    ErrorOfPairs,
    dataset_debiased_interplay,
    error_of_pairs,
)
from mirjax._dataset.moments import ClassMoments
from mirjax._memory import gib
from mirjax._report.sources import InputError, Source
from mirjax.spectra import measure as spectra_of_rows

# Bytes of a chunk of rows in float32, and of second moments by class that are held.
_CHUNK = 2**26
_SECOND = 2**30
# What needs all rows at once is taken of so many, drawn at random; for pairs of layers of fewer.
SAMPLE = 8_192
LAYER_SAMPLE = 2_048
# Up to so many rows they are held, and measures that need them are of all.
_HELD = 2**26

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Value:
    """One number of a report.

    Attributes:
        name: as in `DEFINITIONS`.
        value: the number, or NaN.
        n: of how many samples.
        error: its standard error, or None where it is exact or not known.
        lower: a bound from below, or None.
        upper: a bound from above, or None.
        at_collapse: its value at neural collapse, or None.
    """

    name: str
    value: float
    n: int
    error: float | None = None
    lower: float | None = None
    upper: float | None = None
    at_collapse: float | None = None


@dataclasses.dataclass
class Inputs:
    """What is measured, checked to fit together.

    Attributes:
        features: rows `[n, d]`, or tokens `[n, T, d]`.
        labels: `[n]` numbers of classes, or None.
        names: of the classes.
        head: `[C, d]`, or None.
        bias: `[C]`, or None.
        weights: `[n]` 1 or 0, or None.
        token_mask: `[n, T]`, or None.
    """

    features: Source
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    head: np.ndarray | None = None
    bias: np.ndarray | None = None
    weights: np.ndarray | None = None
    token_mask: Source | None = None


@dataclasses.dataclass
class Measured:
    """The values of one representation, its spectrum, and what to know before using them."""

    values: list[Value]
    eigenvalues: list[float]
    warnings: list[str]
    n: int
    counts: list[int]


def chunks(inputs: Inputs, size: int | None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The first row of each chunk, its rows in float32, and 1 or 0 for each; all of one shape."""
    source, n = inputs.features, inputs.features.shape[0]
    step = min(n, size or max(1, _CHUNK // (4 * math.prod(source.shape[1:]))))
    for start in range(0, n, step):
        rows = np.asarray(source.read(start, min(start + step, n))).astype(np.float32)
        if inputs.weights is None:
            weights = np.ones(len(rows), np.float32)
        else:
            weights = inputs.weights[start : start + step].astype(np.float32)
        if missing := step - len(rows):
            rows = np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1)))
            weights = np.pad(weights, (0, missing))
        yield start, rows, weights


def measure(
    inputs: Inputs, *, tolerance: float | None, batch_size: int | None, progress: Progress
) -> Measured:
    """All that the inputs allow."""
    n, width = inputs.features.shape[0], inputs.features.shape[-1]
    classes = len(inputs.names) if inputs.labels is not None else 1
    second = inputs.head is not None and 8 * classes * width**2 <= _SECOND
    first = _Pass(inputs, classes, second)
    for start, rows, weights in chunks(inputs, batch_size):
        first.add(start, rows, weights)
        progress("first pass", min(1.0, (start + len(rows)) / n))
    counted = int(first.counted)
    if not counted:
        raise InputError(f"{inputs.features.name}: no row is left that counts and is finite.")
    values: list[Value] = []
    if inputs.head is not None:
        values += first.of_head(tolerance, batch_size, progress)
    if inputs.labels is not None:
        values += first.of_classes()
    ranks = first.of_spectra() + first.of_tokens()
    values += [v for v in ranks if v.name != "lidar" or inputs.labels is not None]
    eigenvalues = np.asarray(first.spectra.eigenvalues, float)
    return Measured(
        values, [float(x) for x in eigenvalues if x > 0], first.warnings(), counted, first.counts()
    )


class _Pass:
    """The first pass, and what follows from it."""

    def __init__(self, inputs: Inputs, classes: int, second: bool):
        self.inputs, self.classes = inputs, classes
        width = inputs.features.shape[-1]
        self.moments = ClassMoments.zeros(classes, width, second=second)
        self.update: Any = jax.jit(ClassMoments.update, donate_argnums=0)
        self.counted = 0.0
        self.zero_rows: list[int] = []
        self.broken_rows: list[int] = []
        self.hashes: list[np.ndarray] = []
        self.token_sums = np.zeros(4)
        self._spectra: Any = None
        rows = inputs.features.shape[0]
        self.held: list[tuple[np.ndarray, np.ndarray]] | None = None
        if rows * width <= _HELD:
            self.held = []

    def add(self, start: int, rows: np.ndarray, weights: np.ndarray) -> None:
        """Adds a chunk."""
        rows, weights = self.prepared(start, rows, weights, first=True)
        labels = self.labels(start, len(rows))
        # Waited for: chunks that are read ahead would all be in memory.
        self.moments = jax.block_until_ready(self.update(self.moments, rows, labels, weights))
        self.counted += float(weights.sum())
        if self.held is not None:
            self.held.append((rows[weights > 0], labels[weights > 0]))

    def prepared(
        self, start: int, rows: np.ndarray, weights: np.ndarray, *, first: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of which all that count are finite; what is wrong with the others is noted."""
        if rows.ndim == 3:
            rows = self.of_prompts(start, rows, weights, first)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        is_zero = ~rows.any(axis=1) & finite & (weights > 0)
        if first:
            self.broken_rows += (start + np.flatnonzero(~finite & (weights > 0))).tolist()
            self.zero_rows += (start + np.flatnonzero(is_zero)).tolist()
            # Equal rows have equal hashes; 64 bits of a million rows collide once in 10^7 files.
            self.hashes.append(_hashes(rows[finite & ~is_zero & (weights > 0)]))
        if finite.all():
            return rows, weights
        weights = np.where(finite, weights, 0.0).astype(np.float32)
        return np.where(finite[:, None], rows, 0.0).astype(np.float32), weights

    def of_prompts(
        self, start: int, rows: np.ndarray, weights: np.ndarray, first: bool
    ) -> np.ndarray:
        """One row for each prompt, the mean of its tokens."""
        mask = self.inputs.token_mask
        shape = rows.shape[:2]
        if mask is None:
            counts = np.ones(shape, bool)
        else:
            counts = np.zeros(shape, bool)
            part = np.asarray(mask.read(start, start + len(rows))).astype(bool)
            counts[: len(part)] = part
        if first:
            counts &= (weights > 0)[:, None]
            entropies, angles = map(np.asarray, _of_tokens(rows, counts))
            there, bent = counts.any(axis=1), np.isfinite(angles)
            sums = entropies[there].sum(), there.sum(), angles[bent].sum(), bent.sum()
            self.token_sums += np.asarray(sums, float)
        return np.asarray(tokens.pool(rows, counts))

    def labels(self, start: int, size: int) -> np.ndarray:
        """The classes of a chunk; 0 beyond the end, and where there are none."""
        labels = np.zeros(size, np.int32)
        if self.inputs.labels is not None:
            part = self.inputs.labels[start : start + size]
            labels[: len(part)] = part
        return labels

    @property
    def spectra(self) -> Any:
        """The measures of spectra, from rows where they are held and from moments where not."""
        if self._spectra is None:
            found = jax.jit(ClassMoments.spectra)(self.moments)
            if self.held is not None:
                of_rows = jax.jit(spectra_of_rows)(self.held_rows()[0])
                found = of_rows._replace(lidar=found.lidar)
            self._spectra = found
        return self._spectra

    def held_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows that count, and their labels."""
        assert self.held is not None
        rows, labels = (np.concatenate(parts) for parts in zip(*self.held, strict=True))
        return rows, labels

    def value(self, name: str, value: Any, **more: Any) -> Value:
        """A value of all samples that count."""
        known = {key: None if x is None else float(x) for key, x in more.items()}
        return Value(name, float(value), int(self.counted), **known)

    def of_spectra(self) -> list[Value]:
        """Entropy and ranks of the features."""
        entropy = math.log(float(self.spectra.effective_rank))
        fields = self.spectra._replace(eigenvalues=None)._asdict()
        values = [self.value("entropy", entropy)]
        return values + [self.value(k, v) for k, v in fields.items() if v is not None]

    def of_tokens(self) -> list[Value]:
        """Of the tokens within each prompt."""
        entropy, prompts, angle, bent = self.token_sums
        if not prompts:
            return []
        values = [self.value("prompt_entropy", entropy / prompts)]
        return values + ([self.value("curvature", angle / bent)] if bent else [])

    def of_classes(self) -> list[Value]:
        """How far the classes are collapsed, and against the head if there is one."""
        head = self.inputs.head
        if head is None:
            # The class means stand in for the head; what compares with a head is left out.
            sums = self.moments.sums
            means = sums.sums / jnp.where(sums.count == 0, 1.0, sums.count)[:, None]
            found = jax.jit(ClassMoments.collapse)(self.moments, means)
            names = ("nc1", "nc1_quotient", "cdnv", "nc2_equinorm", "nc2_equiangle")
            names += ("nc2_generalised",)
        else:
            found = jax.jit(ClassMoments.collapse)(self.moments, head)
            names = tuple(name for name in found._fields if name != "nc4")
        return [self.value(name, getattr(found, name), at_collapse=0.0) for name in names]

    def of_head(
        self, tolerance: float | None, batch_size: int | None, progress: Progress
    ) -> list[Value]:
        """MIR, HDR and what else compares the features with the head."""
        head, classes = jnp.asarray(self.inputs.head), self.classes
        balanced = theory.collapsed_mir(classes) if classes > 2 else None
        values: list[Value] = []
        whole = None
        progress("joint entropy", 0.0)
        if self.moments.has_second:
            whole = self.moments.interplay(head, tolerance=tolerance)
        elif self.held is not None:
            rows, labels = self.held_rows()
            whole = dataset_interplay(rows, head, labels, tolerance=tolerance)
        if whole is not None:
            forms = {"hdr": 0.0, "mir": balanced}
            if classes > 2:
                entropy = theory.collapsed_entropy(classes)
                information = theory.collapsed_mutual_information(classes)
                forms |= {"entropy1": entropy, "entropy2": entropy}
                forms |= {"mutual_information": information}
                forms |= {"joint_entropy": 2 * entropy - information}
            names = ("mir", "hdr", "mutual_information", "entropy1", "entropy2", "joint_entropy")
            for name in names:
                lower, upper = (getattr(x, name) for x in (whole.lower, whole.upper))
                error = getattr(whole.standard_error, name)
                is_exact = whole.method == "exact"
                values.append(
                    self.value(
                        name,
                        getattr(whole, name),
                        error=None if is_exact else error,
                        lower=None if is_exact else lower,
                        upper=None if is_exact else upper,
                        at_collapse=forms.get(name),
                    )
                )
        if classes <= 4096:
            by_class = jax.jit(ClassMoments.class_interplay)(self.moments, head)
            values.append(self.value("class_mir", by_class.mir, at_collapse=balanced))
            values.append(self.value("class_hdr", by_class.hdr, at_collapse=0.0))
        return values + self.second_pass(head, batch_size, progress)

    def second_pass(self, head: Array, batch_size: int | None, progress: Progress) -> list[Value]:
        """NC4 and accuracy, and the debiased values with their error."""
        inputs, n = self.inputs, self.inputs.features.shape[0]
        bias = jnp.zeros(len(head)) if inputs.bias is None else jnp.asarray(inputs.bias)
        pairs = error_of_pairs(self.moments.sums, head) if self.moments.has_second else None
        agreed, correct, scatter = 0.0, 0.0, jnp.zeros((3, 3))
        for start, raw, given in chunks(inputs, batch_size):
            rows, weights = self.prepared(start, raw, given)
            labels = self.labels(start, len(rows))
            parts = _second(self.moments, head, bias, pairs, rows, labels, weights)
            agreed, correct = agreed + float(parts[0]), correct + float(parts[1])
            scatter = scatter + parts[2]
            progress("second pass", min(1.0, (start + len(rows)) / n))
        values = [
            self.value("nc4", agreed / self.counted, at_collapse=1.0),
            self.value("accuracy", correct / self.counted),
        ]
        if pairs is not None:
            debiased = pairs.interplay(scatter)
        elif self.held is not None:
            rows, labels = self.held_rows()
            debiased = dataset_debiased_interplay(rows, head, labels)
        else:
            return values
        assert debiased.standard_error is not None
        collapsed = theory.collapsed_mir(self.classes, order=2) if self.classes > 2 else None
        for name, form in (("mir", collapsed), ("hdr", 0.0)):
            error = getattr(debiased.standard_error, name)
            values.append(
                self.value(
                    f"{name}_debiased", getattr(debiased, name), error=error, at_collapse=form
                )
            )
        return values

    def counts(self) -> list[int]:
        """Samples of each class."""
        return [round(float(x)) for x in self.moments.sums.count]

    def warnings(self) -> list[str]:
        """What to know before using a number."""
        found = []
        if self.broken_rows:
            found.append(
                "Left out are rows that hold NaN or infinity, "
                f"{len(self.broken_rows):,} of them: {_some(self.broken_rows)}."
            )
        if self.zero_rows:
            found.append(
                f"Rows that are all zero, {len(self.zero_rows):,} of them "
                f"({_some(self.zero_rows)}), have no direction: they count only in what is of rows "
                "as they are."
            )
        hashes = np.concatenate(self.hashes) if self.hashes else np.empty(0, np.uint64)
        repeated = len(hashes) - len(np.unique(hashes))
        if repeated:
            found.append(
                f"Of {len(hashes):,} rows {repeated:,} repeat an earlier one exactly. Copies raise "
                "debiased values and lower their errors."
            )
        width = self.inputs.features.shape[-1]
        if self.counted < 2 * width:
            found.append(
                f"{int(self.counted):,} samples are few for {width} features: ranks, entropies and "
                "MIR are mostly the number of samples. Debiased values are not."
            )
        if self.inputs.head is not None and not self.moments.has_second and self.held is None:
            found.append(
                f"Second moments of {self.classes:,} classes would take "
                f"{gib(8 * self.classes * width**2)}: MIR, HDR and debiased values are left out."
            )
        if self.inputs.labels is not None:
            found += self.warnings_of_classes()
        return found

    def warnings_of_classes(self) -> list[str]:
        """Gaps and imbalance."""
        counts, names = np.asarray(self.counts()), self.inputs.names
        found = []
        if np.any(counts == 0):
            absent = [names[i] for i in np.flatnonzero(counts == 0)]
            found.append(
                f"{len(absent):,} of {len(counts):,} classes have no sample: {_some(absent)}. They "
                "drop out; values at collapse are for all classes."
            )
        present = counts[counts > 0]
        if len(present) and present.max() > 2 * present.min():
            found.append(
                f"The classes are not balanced: from {present.min():,} to {present.max():,} "
                "samples. Values at collapse are for balanced classes."
            )
        return found


@jax.jit
def _of_tokens(rows: Array, counts: Array) -> tuple[Array, Array]:
    return tokens.prompt_entropy(rows, counts), tokens.curvature(rows, counts)


@jax.jit
def _second(
    moments: ClassMoments,
    head: Array,
    bias: Array,
    pairs: ErrorOfPairs | None,
    rows: Array,
    labels: Array,
    weights: Array,
) -> tuple[Array, Array, Array]:
    agreed = moments.agreement(rows, head, bias=bias, weights=weights)
    scores = jnp.matmul(rows, head.T, precision="highest") + bias[None, :]
    right = jnp.argmax(scores, axis=1) == labels
    correct = jnp.sum(weights * right.astype(weights.dtype))
    scatter = jnp.zeros((3, 3)) if pairs is None else pairs.scatter(rows, labels, weights)
    return agreed, correct, scatter


def between(
    first: Inputs, second: Inputs, seed: int, *, name: str = "feature", most: int | None = None
) -> tuple[list[Value], list[str]]:
    """MIR and HDR of two representations of the same samples, and how many were drawn.

    Args:
        first: one of them.
        second: the other.
        seed: draws samples where there are more than `most`.
        name: the beginning of the names of the values.
        most: how many samples to take; `SAMPLE` if not given.
    """
    chosen, most = np.arange(first.features.shape[0]), SAMPLE if most is None else most
    if first.weights is not None:
        chosen = chosen[first.weights]
    n, notes = len(chosen), []
    if n > most:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
        what = "both representations" if name == "feature" else "successive layers"
        notes.append(
            f"MIR and HDR of {what} are of {most:,} of the {n:,} samples, drawn with seed {seed}."
        )
    one, other = (_picked(inputs, chosen) for inputs in (first, second))
    finite = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    one, other = one[finite], other[finite]
    whole = dataset_feature_interplay(one, other)
    pairs = debiased_feature_interplay(one, other)
    assert pairs.standard_error is not None
    counted = int(finite.sum())
    is_exact = whole.method == "exact"
    values = []
    for ratio in ("mir", "hdr"):
        lower, upper, error = (
            None if is_exact else float(getattr(x, ratio))
            for x in (whole.lower, whole.upper, whole.standard_error)
        )
        value = float(getattr(whole, ratio))
        values.append(Value(f"{name}_{ratio}", value, counted, error, lower, upper))
    for ratio in ("mir", "hdr"):
        error = float(getattr(pairs.standard_error, ratio))
        value = float(getattr(pairs, ratio))
        values.append(Value(f"{name}_{ratio}_debiased", value, counted, error))
    return values, notes


def _picked(inputs: Inputs, chosen: np.ndarray) -> np.ndarray:
    """Some samples, in order, read in parts; of tokens the mean of each prompt."""
    source, parts = inputs.features, []
    step = max(1, _CHUNK // (4 * math.prod(source.shape[1:])))
    for start in range(0, source.shape[0], step):
        inside = chosen[(chosen >= start) & (chosen < start + step)] - start
        if not len(inside):
            continue
        rows = np.asarray(source.read(start, start + step)).astype(np.float32)
        if rows.ndim == 3:
            mask = inputs.token_mask
            given = None if mask is None else mask.read(start, start + step).astype(bool)
            rows = np.asarray(tokens.pool(rows, given))
        parts.append(rows[inside])
    return np.concatenate(parts)


def _hashes(rows: np.ndarray) -> np.ndarray:
    """A 64-bit number for each row, equal for equal rows."""
    found = np.empty(len(rows), np.uint64)
    # Odd random factors, in the arithmetic of 64 bits.
    factors = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64) | 1
    # Some rows at a time, since what is between takes four times their memory.
    for start in range(0, len(rows), 1024):
        # Adding 0 makes the two zeros one.
        part = np.ascontiguousarray(rows[start : start + 1024] + np.float32(0))
        mixed = part.view(np.uint32).astype(np.uint64) * factors[None, :]
        turned = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)), axis=1)
        found[start : start + 1024] = turned + mixed.sum(axis=1)
    return found


def _some(items: list[Any]) -> str:
    shown = ", ".join(map(str, items[:5]))
    return f"{shown} and {len(items) - 5:,} more" if len(items) > 5 else shown
