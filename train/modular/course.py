"""The course of a network that groks: when it memorises and generalises, and when measures move."""

import math
from collections.abc import Sequence

import numpy as np

from train.reporting.records import Record, select

MEMORISED, GENERALISED = 0.99, 0.9

# What may announce generalisation, and the names for it.
MEASURES = {
    "test_mir": "MIR, test",
    "test_hdr": "HDR, test",
    "train_mir": "MIR, train",
    "train_hdr": "HDR, train",
    "test_effective_rank": "effective rank, test",
    "train_nc1": "NC1, train",
    "weight_norm": "weight norm",
    "restricted_loss": "restricted loss",
    "excluded_loss": "excluded loss",
    "gini_embedding": "Gini, embedding",
    "gini_neurons": "Gini, neurons to logits",
}
LOGARITHMIC = {"train_nc1", "restricted_loss", "excluded_loss", "test_effective_rank"}


def by_seed(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each seed, in the order of steps."""
    seeds = sorted({r["seed"] for r in records})
    return [sorted(select(records, seed=s), key=lambda r: r["step"]) for s in seeds]


def first_step(records: Sequence[Record], metric: str, level: float) -> float:
    """The first event at which a metric of one seed reaches a level; infinity if it never does."""
    return next((r["step"] for r in records if r[metric] >= level), math.inf)


def series(records: Sequence[Record], metric: str) -> np.ndarray:
    """Values of one seed from memorisation on; logarithms where the metric spans decades."""
    start = first_step(records, "train_accuracy", MEMORISED)
    values = [r.get(metric) for r in records if r["step"] >= start]
    if any(v is None for v in values) or not values:
        return np.empty(0)
    found = np.asarray(values, float)
    return np.log(np.maximum(found, 1e-30)) if metric in LOGARITHMIC else found


def halfway(records: Sequence[Record], metric: str) -> float:
    """The event from which on a metric of one seed is, for good, nearer to its final level than half of
    its largest distance from it since memorisation; NaN without a move.

    The final level is the mean of the last three events. An early rise that is taken back later does not
    count: what counts is the move that leads to the end.
    """
    values = series(records, metric)
    if len(values) < 4:
        return math.nan
    away = np.abs(values - np.mean(values[-3:]))
    if np.max(away) == 0:
        return math.nan
    far = np.flatnonzero(away >= np.max(away) / 2)
    steps = [r["step"] for r in records][-len(values) :]
    last = int(far[-1])
    return float(steps[last + 1]) if last + 1 < len(steps) else math.nan


def leads(main: Sequence[Record]) -> dict[str, list[float]]:
    """For each measure and seed that generalises: by how many steps it is half-way before test accuracy."""
    found: dict[str, list[float]] = {}
    for own in by_seed(main):
        if not math.isfinite(first_step(own, "test_accuracy", GENERALISED)):
            continue
        rise = halfway(own, "test_accuracy")
        for metric in MEASURES:
            lead = rise - halfway(own, metric)
            if not math.isnan(lead):
                found.setdefault(metric, []).append(lead)
    return found
