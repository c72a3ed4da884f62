"""Label smoothing: a sweep of ε, all values trained side by side: `python -m train.smoothing`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 15 minutes on 2
cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from train.evaluation.closed_forms import closed_forms
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, curves, final_records, select, without_direction
from train.reporting.summary import Claim, Summary, table_of
from train.run.command import run_command
from train.run.lanes import lanes_of
from train.run.settings import PAPER, SMALL, InformationWeights, LearningRate
from train.supervised import SupervisedTraining, fit, load_data


@dataclasses.dataclass(frozen=True)
class Smoothing(InformationWeights, LearningRate, SupervisedTraining):
    """Compares accuracy, MIR, HDR and neural collapse over the ε of label smoothing."""

    refused: ClassVar[dict[str, str]] = {
        "smoothing": "smoothing is what this experiment sweeps: give --epsilons instead."
    }

    epsilons: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    """Values of ε in the smoothed labels (1 - ε) y + ε / C, all trained with every seed."""

    def __post_init__(self):
        super().__post_init__()
        self.distinct("epsilons")
        if not all(0 <= epsilon < 1 for epsilon in self.epsilons):
            raise ValueError(f"epsilons must be in [0, 1), got {self.epsilons}.")


PRESETS = {
    "small": Smoothing(
        **SMALL,
        steps=1500,
        eval_every=750,
        seeds=3,
        out=Path("runs/smoothing"),
    ),
    "smoke": Smoothing(
        steps=20, eval_every=20, epsilons=(0.0, 0.2), seeds=2, out=Path("runs/smoothing-smoke")
    ),
    "paper": Smoothing(
        **PAPER,
        eval_every=2**16,
        seeds=3,
        out=Path("runs/smoothing-paper"),
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
    "HDR, batches": "test_hdr_batch",
    "debiased HDR": "test_hdr_debiased",
    "class-mean MIR": "test_class_mir",
    "NC1": "test_nc1",
    "NC3": "test_nc3",
}
# Of what it is asked whether it changes.
CLAIMED = {
    "MIR (batches, as published)": "test_mir_batch",
    "HDR (batches, as published)": "test_hdr_batch",
    "MIR of the whole set": "test_mir",
    "HDR of the whole set": "test_hdr",
    "debiased MIR of the whole set": "test_mir_debiased",
    "debiased HDR of the whole set": "test_hdr_debiased",
}


def run(settings: Smoothing, *, quiet: bool = False) -> Summary:
    """Trains a lane for each ε and seed, and compares them over ε."""
    data = load_data(settings)
    lanes = lanes_of(settings, smoothing=settings.epsilons)
    result = fit(settings, data, lanes, quiet=quiet)
    return summarize(settings, result.data, data.num_classes, result.records).write()


def summarize(
    settings: Smoothing, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """Draws the picture, and sums up the metric records in a table and claims."""
    last = final_records(records)
    n = int(last[0]["test_n"])
    title = (
        f"Label smoothing: {source}, {settings.model}, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    by_epsilon = {f"{e:g}": select(last, smoothing=e) for e in settings.epsilons}
    note = (
        f"Test set, n = {n:,}{without_direction(last)}; batches of {settings.metric_batch}; "
        "mean ± standard deviation"
    )
    table = table_of(by_epsilon, COLUMNS, title=note, first="ε")
    forms = closed_forms(num_classes)
    draw(panels(last, forms), settings.out / "smoothing.png", title=f"{title}\n{note}")
    return Summary(
        settings.out,
        title,
        (table,),
        {"smoothing.png": "accuracy, MIR, HDR and neural collapse over ε"},
        tuple(
            claim(records, name, metric)
            for name, metric in CLAIMED.items()
            if any(r.get(metric) is not None for r in last)
        ),
    )


def panels(last: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """Six panels with ε as the horizontal axis."""

    # The keywords name the lines, with underscores in place of spaces.
    def panel(title: str, **metrics: str) -> Panel:
        lines = []
        for number, (name, metric) in enumerate(metrics.items()):
            curve = curves(last, metric, by="smoothing")
            lines.append(Line(name.replace("_", " "), *curve, colour=f"C{number}", marker="o"))
        # Measures of collapse span orders of magnitude.
        scale = "log" if "collapse" in title else "linear"
        return Panel(title, "ε", lines, levels(forms, list(metrics.values())), yscale=scale)

    return [
        panel("accuracy", test="test_accuracy"),
        panel("cross-entropy (hard labels)", test="test_loss"),
        panel(
            "MIR",
            whole_set="test_mir",
            batches="test_mir_batch",
            debiased="test_mir_debiased",
            class_means="test_class_mir",
        ),
        panel(
            "HDR",
            whole_set="test_hdr",
            batches="test_hdr_batch",
            debiased="test_hdr_debiased",
            class_means="test_class_hdr",
        ),
        panel("entropy (nats)", features="test_entropy1", head="test_entropy2"),
        panel("neural collapse", NC1="test_nc1", NC2_angles="test_nc2_equiangle", NC3="test_nc3"),
    ]


def claim(records: Sequence[Record], name: str, metric: str) -> Claim:
    """Whether the metric changes little over ε, compared with its change in training."""
    first, last = select(records, step=0), final_records(records)
    says = (f"{name} changes little over ε", "little change (a picture, no numbers)")
    if any(r.get(metric) is None for r in (*first, *last)):
        return Claim(*says, "-", "not decided: some networks lack a value")
    epsilons, means, spreads = curves(last, metric, by="smoothing")
    moved = max(means) - min(means)
    _, untrained, _ = curves(first, metric)
    # The first mean is that of ε = 0, or of the smallest ε: `curves` sorts them.
    training = abs(means[0] - untrained[0])
    listed = ", ".join(f"{m:.3f} (ε {e:g})" for e, m in zip(epsilons, means, strict=True))
    seeds = {r["seed"] for r in records}
    if len(epsilons) < 2 or len(seeds) < 2:
        verdict = "not decided (it takes two ε and two seeds)"
    elif moved < 0.1 * training:
        verdict = "agrees"
    else:
        # A change within the spread over seeds may be chance.
        verdict = "not decided" if moved < 2 * max(spreads) else "disagrees"
    return Claim(
        *says,
        f"{listed}; largest spread over seeds {max(spreads):.3f}",
        f"{verdict}: the means span {moved:.3f}; a tenth of what training moves is "
        f"{0.1 * training:.3f}, twice the spread {2 * max(spreads):.3f}",
    )


if __name__ == "__main__":
    run_command(PRESETS, run)
