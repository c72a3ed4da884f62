"""Cross-entropy with and without the information losses, over weights and seeds:
`python -m train.losses`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 15 minutes on 2
cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from train.evaluation.closed_forms import closed_forms
from train.reporting.paired import Pairs, gains, paired, pairs_table, reading
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, curves, final_records, select, without_direction
from train.reporting.summary import Claim, Summary, table_of
from train.run.command import run_command
from train.run.lanes import Knobs, Lane, lanes_of
from train.run.settings import PAPER, SMALL, LabelSmoothing, LearningRate
from train.supervised import SupervisedTraining, fit, load_data

PLAIN = "CE"


@dataclasses.dataclass(frozen=True)
class Losses(LabelSmoothing, LearningRate, SupervisedTraining):
    """Trains with and without the MI and the ED term, and tests the gain in accuracy over seeds."""

    refused: ClassVar[dict[str, str]] = dict.fromkeys(
        ("mi_weight", "ed_weight"),
        "the weights are what this experiment sweeps: give --weights instead.",
    )

    weights: tuple[float, ...] = (0.1, 0.5)
    """Weights of the information terms; where both are on, they have the same weight. Every loss is
    trained with the same seeds: the same initial weights, order of the data and augmentation."""

    def __post_init__(self):
        super().__post_init__()
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

# Columns of the table, and the metrics that they show.
COLUMNS = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "MIR": "test_mir",
    "MIR, batches": "test_mir_batch",
    "debiased MIR": "test_mir_debiased",
    "HDR": "test_hdr",
    "debiased HDR": "test_hdr_debiased",
    "class-mean MIR": "test_class_mir",
    "NC1": "test_nc1",
    "NC3": "test_nc3",
}


def lanes(settings: Losses) -> list[Lane]:
    """One lane for each loss, weight and seed."""
    all_lanes = []
    for lane in lanes_of(settings):
        all_lanes.append(dataclasses.replace(lane, tags={"loss": PLAIN, "weight": 0.0}))
        for weight in settings.weights:
            for name, mi, ed in (("+MI", 1, 0), ("+ED", 0, 1), ("+MI+ED", 1, 1)):
                knobs: Knobs = lane.knobs._replace(mi_weight=mi * weight, ed_weight=ed * weight)
                tags = {"loss": name, "weight": weight}
                all_lanes.append(dataclasses.replace(lane, knobs=knobs, tags=tags))
    return all_lanes


def run(settings: Losses, *, quiet: bool = False) -> Summary:
    """Trains a lane for each loss, weight and seed, and compares them in pairs of one seed."""
    data, all_lanes = load_data(settings), lanes(settings)
    result = fit(settings, data, all_lanes, quiet=quiet)
    return summarize(settings, result.data, data.num_classes, result.records).write()


def summarize(
    settings: Losses, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """Draws the picture, and sums up the metric records in tables and a claim."""
    last = final_records(records)
    n = int(last[0]["test_n"])
    title = (
        f"Losses{settings.form()}: {source}, {settings.model}, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    names = dict.fromkeys((record["loss"], record["weight"]) for record in last)
    by_name = {
        name if name == PLAIN else f"{name}, weight {weight:g}": select(
            last, loss=name, weight=weight
        )
        # Cross-entropy alone comes first: the other rows are compared with it.
        for name, weight in sorted(names, key=lambda pair: (pair[0] != PLAIN, pair[0], pair[1]))
    }
    note = (
        f"Test set, n = {n:,}{without_direction(last)}; batches of {settings.metric_batch}; "
        "mean ± standard deviation"
    )
    values = table_of(by_name, COLUMNS, title=note, first="trained with")
    pairs = paired(by_name, PLAIN)
    draw(
        panels(last, closed_forms(num_classes)),
        settings.out / "losses.png",
        title=f"{title}\n{note}",
    )
    return Summary(
        settings.out,
        title,
        (values, pairs_table(pairs, settings.seeds, "cross-entropy alone")),
        {"losses.png": "accuracy, MIR, HDR and neural collapse over the weight of the terms"},
        (claim(pairs, settings.seeds),),
    )


def claim(pairs: Pairs, seeds: int) -> Claim:
    """Whether one of the two terms improves accuracy without the other, at one of the weights."""
    # The paper reports the better of the two terms, not both together.
    single = {name: row for name, row in pairs.items() if not name.startswith("+MI+ED")}
    return Claim(_GAIN, _PUBLISHED, f"points, {seeds} seeds: {gains(single)}", reading(single))


_GAIN = "the better of the two terms improves supervised accuracy"
_PUBLISHED = "CIFAR-10 95.35 to 95.57, CIFAR-100 80.77 to 80.96; no spreads"


def panels(last: list[Record], forms: dict[str, float]) -> list[Panel]:
    """Six panels with the weight as the horizontal axis and a line for each loss."""
    # Cross-entropy alone is the point at weight 0 of every line.
    plain = select(last, loss=PLAIN)
    shown = {
        "accuracy": "test_accuracy",
        "cross-entropy": "test_loss",
        "MIR (whole set)": "test_mir",
        "HDR (whole set)": "test_hdr",
        "NC1": "test_nc1",
        "NC3": "test_nc3",
    }
    drawn = []
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
        drawn.append(Panel(title, "weight", lines, levels(forms, [metric])))
    return drawn


if __name__ == "__main__":
    run_command(PRESETS, run)
