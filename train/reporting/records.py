"""Metric records (one dictionary a step and lane), and what is said of them: mean ± spread."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def select(records: Iterable[Record], **where: Any) -> list[Record]:
    """The records that hold these values."""
    return [r for r in records if all(r.get(k) == v for k, v in where.items())]


def final_records(records: Sequence[Record]) -> list[Record]:
    """The records of the last step, one a lane."""
    last = max(record["step"] for record in records)
    return [record for record in records if record["step"] == last]


def curves(records: Iterable[Record], name: str, *, by: str = "step") -> tuple[list, list, list]:
    """Values of `by`, and mean and spread of one metric at each over all else that differs."""
    found: dict[Any, list[float]] = {}
    for record in records:
        if record.get(name) is not None:
            found.setdefault(record[by], []).append(record[name])
    places = sorted(found)
    pairs = [mean_and_spread(found[place]) for place in places]
    return places, [mean for mean, _ in pairs], [spread for _, spread in pairs]


def cell(records: Sequence[Record], metric: str, *, digits: int = 3) -> str:
    """`mean ± sample standard deviation` over the records, or `-` where a value is missing."""
    values = [record[metric] for record in records if record.get(metric) is not None]
    if len(values) < len(records) or not values:
        return "-"
    mean, spread = mean_and_spread(values)
    if len(values) == 1:
        return f"{mean:.{digits + 1}f}"
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
