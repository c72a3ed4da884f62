"""Tables and pictures of a semi-supervised run."""

from collections.abc import Sequence
from typing import Any

from train.evaluate import closed_forms
from train.plots import Line, Panel, draw, levels
from train.records import Record, curves, final_records
from train.summary import Summary
from train.tables import table_of

COLUMNS = {
    "accuracy": "test_accuracy",
    "MIR": "test_mir",
    "HDR": "test_hdr",
    "NC1": "test_nc1",
    "labelled MIR": "labelled_mir",
    "coverage": "step_coverage",
    "pseudo-labels right": "step_pseudo_accuracy",
}


def name_of(settings: Any) -> str:
    """The algorithm and its information terms."""
    terms = (
        (f"{settings.mi_weight:g} MI", settings.mi_weight),
        (
            f"{settings.ed_weight:g} ED",
            settings.ed_weight,
        ),
    )
    return " + ".join([settings.algorithm, *(name for name, weight in terms if weight)])


def summarize(settings: Any, source: str, num_classes: int, records: Sequence[Record]) -> Summary:
    """The summary of metric records, and its picture."""
    last = final_records(records)
    labels = int(last[0]["labelled_n"])
    title = (
        f"{name_of(settings)}: {source}, {settings.model}, {labels:,} labels, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    n = int(last[0]["test_n"])
    note = f"test n = {n:,}; moving average of the weights; mean ± standard deviation over seeds"
    table = table_of({name_of(settings): last}, COLUMNS, title=note, first="algorithm")
    picture = settings.out / "curves.png"
    draw(panels(records, closed_forms(num_classes)), picture, title=f"{title}\n{note}")
    text = "accuracy, pseudo-labels, thresholds, MIR, HDR, collapse over the steps"
    return Summary(settings.out, title, (table,), {picture.name: text}, ())


def panels(records: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """Six panels over the steps."""
    shown = {
        "accuracy": ("test_accuracy", "unlabelled_accuracy", "labelled_accuracy"),
        "pseudo-labels": ("step_coverage", "step_pseudo_accuracy"),
        "threshold": ("threshold_mean", "threshold_max"),
        "MIR": ("test_mir", "unlabelled_mir", "labelled_mir"),
        "HDR": ("test_hdr", "unlabelled_hdr", "labelled_hdr"),
        "NC1": ("test_nc1", "unlabelled_nc1", "labelled_nc1"),
    }
    found = []
    for title, metrics in shown.items():
        lines = [
            Line(metric.removeprefix("step_").replace("_", " "), *line, colour=f"C{number}")
            for number, metric in enumerate(metrics)
            if (line := curves(records, metric))[0]
        ]
        if not lines:
            continue
        scale = "log" if title == "NC1" else "linear"
        marks = levels(forms, list(metrics)) if title in ("MIR", "HDR") else {}
        found.append(Panel(title, "step", lines, marks, "linear", scale))
    return found
