"""Paired comparison of test accuracy over seeds: gains, intervals, tests, and their reading."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from train.reporting.records import Record
from train.reporting.summary import Table

Pairs = Mapping[str, tuple[float, float, float, float]]
"""By name: the mean gain, half the width of its 95 % interval, p and adjusted p.

All but the mean are NaN where there is no spread over seeds.
"""


def paired(runs: Mapping[str, Sequence[Record]], base: str) -> Pairs:
    """Gain in test accuracy of each of the other runs over the run `base`, paired by seed.

    The p of the paired t-test is adjusted for the number of runs (Benjamini & Hochberg).
    """
    plain = {record["seed"]: _correct(record) for record in runs[base]}
    differences = {}
    for name, records in runs.items():
        if name == base:
            continue
        # Counts, because as float32 shares equal gains would differ by rounding and seem spread.
        counts = [_correct(record) - plain[record["seed"]] for record in records]
        gain = np.asarray(counts) / records[0]["test_n"]
        half = p = math.nan
        # Without a spread the t statistic would divide by zero.
        if len(set(counts)) > 1:
            test = stats.ttest_1samp(gain, 0.0)
            p = float(test.pvalue)
            half = float(test.confidence_interval().high - gain.mean())
        differences[name] = float(gain.mean()), half, p
    # Only the tests that were made count in the adjustment.
    tested = [name for name, values in differences.items() if not math.isnan(values[2])]
    adjusted = dict.fromkeys(differences, math.nan)
    if tested:
        adjusted |= zip(
            tested, stats.false_discovery_control([differences[k][2] for k in tested]), strict=True
        )
    return {name: (*values, float(adjusted[name])) for name, values in differences.items()}


def _correct(record: Record) -> int:
    return round(record["test_accuracy"] * record["test_n"])


def pairs_table(pairs: Pairs, seeds: int, base: str) -> Table:
    """The gains in points of accuracy, with intervals and tests."""

    def number(value: float, text: str) -> str:
        return "-" if math.isnan(value) else text

    rows = tuple(
        (
            name,
            f"{100 * mean:+.2f}" + number(half, f" ± {100 * half:.2f}"),
            number(p, _p(p)),
            number(adjusted, _p(adjusted)),
        )
        for name, (mean, half, p, adjusted) in pairs.items()
    )
    title = (
        f"Gain in test accuracy over {base}, paired over {seeds} seeds: points, ± half the 95 % "
        "interval; two-sided paired t-test, and its p adjusted for the number of rows "
        "(Benjamini-Hochberg)"
    )
    return Table(title, ("trained with", "gain", "p", "adjusted p"), rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def gains(pairs: Pairs) -> str:
    """The gains as text."""
    parts = []
    for name, (mean, half, _, adjusted) in pairs.items():
        tested = "" if math.isnan(half) else f" ± {100 * half:.2f}, adjusted p {_p(adjusted)}"
        parts.append(f"{name}: {100 * mean:+.2f}{tested}")
    return "; ".join(parts)


def reading(pairs: Pairs) -> str:
    """Whether one of them is a gain (`agrees`, `disagrees` or `not decided`), and by which rule."""
    better = [name for name, row in pairs.items() if row[0] > 0 and row[3] < 0.05]
    highest = [mean + half for mean, half, _, _ in pairs.values()]
    if better:
        return f"agrees in sign ({', '.join(better)}): a gain with adjusted p below 0.05"
    # No proof of "no gain" is possible, only that a relevant one is out of reach.
    if all(upper < 0.002 for upper in highest):
        return "disagrees: the upper end of every interval is below 0.2 points"
    return (
        "not decided: no gain with adjusted p below 0.05, and 0.2 points are in reach of an "
        "interval"
    )
