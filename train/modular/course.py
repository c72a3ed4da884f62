"""The course of a network that groks: when it memorises and generalises, and when measures move."""

import math
from collections.abc import Sequence

import numpy as np

from train.reporting.records import Record, select

MEMORISED, GENERALISED = 0.99, 0.9

# The metrics that may announce generalisation, and their names in tables.
MEASURES = {
    "test_mir": "MIR, test",
    "test_hdr": "HDR, test",
    "train_mir": "MIR, train",
    "train_hdr": "HDR, train",
    "test_mir_debiased": "debiased MIR, test",
    "test_hdr_debiased": "debiased HDR, test",
    "unmirrored_mir_debiased": "debiased MIR, unmirrored",
    "train_mir_debiased": "debiased MIR, train",
    "train_hdr_debiased": "debiased HDR, train",
    "test_effective_rank": "effective rank, test",
    "train_nc1": "NC1, train",
    "weight_norm": "weight norm",
    "restricted_loss": "restricted loss",
    "excluded_loss": "excluded loss",
    "gini_embedding": "Gini, embedding",
    "gini_neurons": "Gini, neurons to logits",
    "test_loss": "test loss",
    "test_spectral_entropy": "spectral entropy, test",
}
# Metrics that span decades, of which the course is that of their logarithm.
LOGARITHMIC = {"train_nc1", "restricted_loss", "excluded_loss", "test_effective_rank", "test_loss"}


def by_seed(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each seed, in the order of steps."""
    seeds = sorted({r["seed"] for r in records})
    return [sorted(select(records, seed=s), key=lambda r: r["step"]) for s in seeds]


def first_step(records: Sequence[Record], metric: str, level: float) -> float:
    """The first event at which a metric of one seed reaches a level; infinity if it never does."""
    return next((r["step"] for r in records if r[metric] >= level), math.inf)


def series(records: Sequence[Record], metric: str) -> np.ndarray:
    """The values of one seed from memorisation on; logarithms if the metric spans decades."""
    start = first_step(records, "train_accuracy", MEMORISED)
    values = [r.get(metric) for r in records if r["step"] >= start]
    # A metric that is missing at some events has no course.
    if any(v is None for v in values) or not values:
        return np.empty(0)
    course = np.asarray(values, float)
    return np.log(np.maximum(course, 1e-30)) if metric in LOGARITHMIC else course


def halfway(records: Sequence[Record], metric: str) -> float:
    """The event from which a metric of one seed is half-way to its final level and stays there."""
    return reached(records, metric, 0.5)


def reached(records: Sequence[Record], metric: str, share: float) -> float:
    """The event from which a metric of one seed has made a share of its way, for good.

    The way is the largest distance from the final level since memorisation. The final level is the
    mean of the last three events. An early rise that is taken back later does not count, only the
    move that leads to the end. The result is NaN if the metric does not move.
    """
    values = series(records, metric)
    # Three events make the final level; at least one more has to differ from it.
    if len(values) < 4:
        return math.nan
    away = np.abs(values - np.mean(values[-3:]))
    if np.max(away) == 0:
        return math.nan
    far = np.flatnonzero(away >= (1 - share) * np.max(away))
    steps = [r["step"] for r in records][-len(values) :]
    last = int(far[-1])
    return float(steps[last + 1]) if last + 1 < len(steps) else math.nan


def leads(main: Sequence[Record]) -> dict[str, list[float]]:
    """How many steps before test accuracy each measure is half-way, for seeds that generalise."""
    by_metric: dict[str, list[float]] = {}
    for records in by_seed(main):
        if not math.isfinite(first_step(records, "test_accuracy", GENERALISED)):
            continue
        rise = halfway(records, "test_accuracy")
        for metric in MEASURES:
            lead = rise - halfway(records, metric)
            if not math.isnan(lead):
                by_metric.setdefault(metric, []).append(lead)
    return by_metric
