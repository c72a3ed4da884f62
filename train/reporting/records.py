"""Metric records (one dictionary for each step and lane), and their mean ± spread over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    # `fsum` is exact, so that the order of the records does not show in the last digit.
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def select(records: Iterable[Record], **where: Any) -> list[Record]:
    """The records that have these values."""
    return [r for r in records if all(r.get(k) == v for k, v in where.items())]


def final_records(records: Sequence[Record]) -> list[Record]:
    """The records of the last step, one for each lane."""
    last = max(record["step"] for record in records)
    return [record for record in records if record["step"] == last]


def curves(records: Iterable[Record], name: str, *, by: str = "step") -> tuple[list, list, list]:
    """The values of `by`, and mean and spread of one metric over all records with each value."""
    by_place: dict[Any, list[float]] = {}
    for record in records:
        # Metrics that were not finite are read as None.
        if record.get(name) is not None:
            by_place.setdefault(record[by], []).append(record[name])
    places = sorted(by_place)
    pairs = [mean_and_spread(by_place[place]) for place in places]
    return places, [mean for mean, _ in pairs], [spread for _, spread in pairs]


def cell(records: Sequence[Record], metric: str) -> str:
    """`mean ± sample standard deviation` over the records, or `-` where a value is missing."""
    # No mean over the rest: the seeds without a value may be those that went wrong.
    values = [record[metric] for record in records if record.get(metric) is not None]
    if len(values) < len(records) or not values:
        return "-"
    mean, spread = mean_and_spread(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.3f} ± {spread:.3f}"
