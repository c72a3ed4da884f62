"""Metric records (one dictionary for each step and lane), and their mean ± spread over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# The end of the names of metrics that count samples whose features (or head rows) are zeros.
WITHOUT_DIRECTION = "without_direction"


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
    """The values of `by`, and mean and spread of one metric over all records with each value.

    Values of `by` at which a record lacks the metric are left out, as `cell` has no mean there.
    """
    by_place: dict[Any, list[Any]] = {}
    for record in records:
        # Metrics that were not finite are read as None.
        by_place.setdefault(record[by], []).append(record.get(name))
    places = sorted(place for place, values in by_place.items() if None not in values)
    pairs = [mean_and_spread(by_place[place]) for place in places]
    return places, [mean for mean, _ in pairs], [spread for _, spread in pairs]


def only_counts_above_zero(values: Record) -> dict[str, Any]:
    """The metrics but for those counts of samples without a direction that are 0, as most are."""
    return {k: v for k, v in values.items() if not k.endswith(WITHOUT_DIRECTION) or v > 0}


def without_direction(records: Iterable[Record], *prefixes: str) -> str:
    """What to say beside n, as ` (3 without a direction)`; nothing if all samples have one.

    A sample with features of zeros has none, and does not count in MIR and HDR.

    Args:
        records: those that are shown beside this n.
        prefixes: of the metrics of the sets that are meant; the test set if not given.
    """
    return beside(
        int(record.get(f"{prefix}{WITHOUT_DIRECTION}", 0))
        for record in records
        for prefix in prefixes or ("test_",)
        if f"{prefix}mir" in record
    )


def beside(counts: Iterable[int]) -> str:
    """The same from the counts of samples without a direction, one for each network."""
    known = sorted(set(counts))
    if not any(known):
        return ""
    numbers = " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1])))
    return f" ({numbers} without a direction)"


def cell_of_steps(steps: Sequence[float]) -> str:
    """`mean ± sample standard deviation` of steps, a single one alone, or `-` for none."""
    if not steps:
        return "-"
    mean, spread = mean_and_spread(steps)
    return f"{mean:,.0f} ± {spread:,.0f}" if len(steps) > 1 else f"{mean:,.0f}"


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
