"""Cross-entropy with and without the information losses, over weights and seeds: `python -m train.losses`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 15 minutes on 2 cores),
`smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from train.evaluate import closed_forms
from train.experiment import load_data, run_command
from train.lanes import Knobs, Lane, lanes_of
from train.plots import Line, Panel, draw, levels
from train.presets import PAPER, SMALL
from train.records import Record, curves, final_records, select
from train.summary import Claim, Summary, Table
from train.supervised import Supervised, fit
from train.tables import table_of

PLAIN = "CE"


@dataclasses.dataclass(frozen=True)
class Losses(Supervised):
    """Cross-entropy alone, + MI, + ED and + both for each weight, with a paired test over seeds."""

    weights: tuple[float, ...] = (0.1, 0.5)
    """Of the terms, the same for both where both are on. Every loss sees the same seeds: initial weights,
    order and augmentation."""

    def __post_init__(self):
        super().__post_init__()
        if self.mi_weight or self.ed_weight:
            raise ValueError("the weights are what this experiment sweeps: give --weights instead.")
        self.distinct("weights")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, got {self.weights}.")


PRESETS = {
    "small": Losses(
        **SMALL,
        steps=1200,
        eval_every=1200,
        seeds=5,
        out=Path("runs/losses"),
    ),
    "smoke": Losses(
        steps=20, eval_every=20, weights=(0.3,), seeds=2, out=Path("runs/losses-smoke")
    ),
    "paper": Losses(
        **PAPER,
        eval_every=2**16,
        weights=(0.01, 0.03, 0.1, 0.3),
        seeds=3,
        out=Path("runs/losses-paper"),
    ),
}

COLUMNS = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "MIR": "test_mir",
    "MIR, batches": "test_mir_batch",
    "HDR": "test_hdr",
    "class-mean MIR": "test_class_mir",
    "NC1": "test_nc1",
    "NC3": "test_nc3",
}


def lanes(settings: Losses) -> list[Lane]:
    """A lane for each loss, weight and seed."""
    found = []
    for lane in lanes_of(settings):
        found.append(dataclasses.replace(lane, tags={"loss": PLAIN, "weight": 0.0}))
        for weight in settings.weights:
            for name, mi, ed in (("+MI", 1, 0), ("+ED", 0, 1), ("+MI+ED", 1, 1)):
                knobs: Knobs = lane.knobs._replace(mi_weight=mi * weight, ed_weight=ed * weight)
                tags = {"loss": name, "weight": weight}
                found.append(dataclasses.replace(lane, knobs=knobs, tags=tags))
    return found


def run(settings: Losses, *, quiet: bool = False) -> Summary:
    """Trains all lanes, and compares them in pairs."""
    data, all_lanes = load_data(settings), lanes(settings)
    result = fit(settings, data, all_lanes, quiet=quiet)
    return summarize(settings, result.data, data.num_classes, result.records).write()


def summarize(
    settings: Losses, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """The summary of metric records, and its picture."""
    last = final_records(records)
    n = int(last[0]["test_n"])
    title = f"Losses: {source}, {settings.model}, {settings.steps:,} steps, seeds: {settings.seeds}"
    names = dict.fromkeys((record["loss"], record["weight"]) for record in last)
    groups = {
        name if name == PLAIN else f"{name}, weight {weight:g}": select(
            last, loss=name, weight=weight
        )
        for name, weight in sorted(names, key=lambda pair: (pair[0] != PLAIN, pair[0], pair[1]))
    }
    note = f"Test set, n = {n:,}; batches of {settings.metric_batch}; mean ± standard deviation"
    values = table_of(groups, COLUMNS, title=note, first="trained with")
    pairs = paired(groups)
    draw(
        panels(last, closed_forms(num_classes)),
        settings.out / "losses.png",
        title=f"{title}\n{note}",
    )
    return Summary(
        settings.out,
        title,
        (values, pairs_table(pairs, settings.seeds)),
        {"losses.png": "accuracy, MIR, HDR and neural collapse over the weight of the terms"},
        (claim(pairs, settings.seeds),),
    )


def paired(groups: dict[str, list[Record]]) -> dict[str, tuple[float, float, float, float]]:
    """Difference in test accuracy to plain cross-entropy over the seeds that both have.

    For each other group: mean, half the width of the 95 % interval, p of the paired t-test, and p
    adjusted for the number of groups (Benjamini & Hochberg). NaN where there is no spread to test by.
    """
    plain = {record["seed"]: _correct(record) for record in groups[PLAIN]}
    found = {}
    for name, records in groups.items():
        if name == PLAIN:
            continue
        # Whole samples: as float32 shares, equal gains would differ by rounding and seem spread.
        counts = [_correct(record) - plain[record["seed"]] for record in records]
        gain = np.asarray(counts) / records[0]["test_n"]
        half = p = math.nan
        if len(set(counts)) > 1:
            test = stats.ttest_1samp(gain, 0.0)
            p = float(test.pvalue)
            half = float(test.confidence_interval().high - gain.mean())
        found[name] = float(gain.mean()), half, p
    tested = [name for name, values in found.items() if not math.isnan(values[2])]
    adjusted = dict.fromkeys(found, math.nan)
    if tested:
        adjusted |= zip(
            tested, stats.false_discovery_control([found[k][2] for k in tested]), strict=True
        )
    return {name: (*values, float(adjusted[name])) for name, values in found.items()}


def _correct(record: Record) -> int:
    return round(record["test_accuracy"] * record["test_n"])


def pairs_table(pairs: dict[str, tuple[float, float, float, float]], seeds: int) -> Table:
    """The paired differences in points of accuracy."""

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
        f"Gain in test accuracy over cross-entropy alone, paired over {seeds} seeds: points, ± half the 95 % "
        "interval; two-sided paired t-test, and its p adjusted for the number of rows (Benjamini-Hochberg)"
    )
    return Table(title, ("trained with", "gain", "p", "adjusted p"), rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def claim(pairs: dict[str, tuple[float, float, float, float]], seeds: int) -> Claim:
    """Whether one of the two terms, by itself, improves accuracy at one of the weights."""
    single = {name: row for name, row in pairs.items() if not name.startswith("+MI+ED")}
    parts = []
    for name, (mean, half, _, adjusted) in single.items():
        tested = "" if math.isnan(half) else f" ± {100 * half:.2f}, adjusted p {_p(adjusted)}"
        parts.append(f"{name}: {100 * mean:+.2f}{tested}")
    gains = [name for name, row in single.items() if row[0] > 0 and row[3] < 0.05]
    highest = [mean + half for mean, half, _, _ in single.values()]
    if gains:
        reading = f"agrees in sign ({', '.join(gains)}): a gain with adjusted p below 0.05"
    elif all(upper < 0.002 for upper in highest):
        reading = "disagrees: the upper end of every interval is below 0.2 points"
    else:
        reading = "not decided: no gain with adjusted p below 0.05, and 0.2 points are in reach of an interval"
    return Claim(_GAIN, _PUBLISHED, f"points, {seeds} seeds: " + "; ".join(parts), reading)


_GAIN = "the better of the two terms improves supervised accuracy"
_PUBLISHED = "CIFAR-10 95.35 to 95.57, CIFAR-100 80.77 to 80.96; no spreads"


def panels(last: list[Record], forms: dict[str, float]) -> list[Panel]:
    """Metrics over the weight, a line a loss; weight 0 is cross-entropy alone."""
    plain = select(last, loss=PLAIN)
    shown = {
        "accuracy": "test_accuracy",
        "cross-entropy": "test_loss",
        "MIR (whole set)": "test_mir",
        "HDR (whole set)": "test_hdr",
        "NC1": "test_nc1",
        "NC3": "test_nc3",
    }
    found = []
    for title, metric in shown.items():
        lines = [
            Line(
                name,
                *curves([*plain, *select(last, loss=name)], metric, by="weight"),
                colour=f"C{number}",
                marker="o",
            )
            for number, name in enumerate(("+MI", "+ED", "+MI+ED"))
        ]
        found.append(Panel(title, "weight", lines, levels(forms, [metric])))
    return found


if __name__ == "__main__":
    run_command(PRESETS, run)
