"""Pictures: panels of lines with bands over seeds, and lines at the closed-form values."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mirjax import plot
from train.reporting.records import Record, curves
from train.run import hosts


class Line(NamedTuple):
    """Mean and spread of a metric over x."""

    label: str
    x: Sequence[Any]
    """Numbers, or names on an axis of names."""
    mean: Sequence[float]
    spread: Sequence[float]
    colour: str = "C0"
    style: str = "-"
    marker: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one pair of axes shows."""

    title: str
    xlabel: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    xscale: str = "linear"
    yscale: str = "linear"
    chords: bool = False
    """Whether the lines are paths between two networks, drawn with chords between the ends."""


def draw(panels: Sequence[Panel], path: Path, *, title: str, columns: int = 3) -> None:
    """Draws panels in rows of `columns`."""
    # Without pyplot, which would choose a backend and keep every figure.
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Where all panels have the same legend, it is drawn once: it hides a part of the lines.
    legends = [
        ([(x.label, x.colour, x.style, x.marker) for x in panel.lines], panel.levels)
        for panel in panels
    ]
    shared = all(legend == legends[0] for legend in legends)
    for axis, panel in zip(axes, panels, strict=False):
        for label, x, mean, spread, colour, style, marker in panel.lines:
            look = {"colour": colour, "style": style, "marker": marker}
            draw_line = plot.path if panel.chords else plot.curve
            draw_line(x, mean, spread, label=label, ax=axis, **look)
        plot.levels(panel.levels, ax=axis)
        # Setting a linear scale would remove the names from an axis of names.
        if panel.xscale != "linear":
            axis.set_xscale(panel.xscale)
        axis.set_yscale(panel.yscale)
        axis.set_xlabel(panel.xlabel)
        axis.set_title(panel.title)
        axis.grid(alpha=0.3)
        # A line has no points where no value is known of all seeds.
        names: Sequence[Any] = next((line.x for line in panel.lines if len(line.x)), [])
        if len(names) and isinstance(names[0], str):
            # Names that would run into each other are turned.
            long = sum(map(len, names)) > 35
            axis.tick_params(axis="x", rotation=60 if long else 0)
        if not shared or axis is axes[0]:
            entries = len(panel.lines) + len(panel.levels)
            axis.legend(fontsize="small" if entries < 6 else "x-small")
    # The last row may have axes without a panel.
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    # Matplotlib does not wrap the title of a figure.
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, 52 * columns)]
    # A dollar sign is one of a name, not the beginning of a formula.
    figure.suptitle("\n".join(lines), fontsize="medium", parse_math=False)
    # Of several processes the first writes.
    if hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)


# Panels of a training run: the title, and the metrics with their labels.
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("accuracy", (("test_accuracy", "test"), ("train_accuracy", "train"))),
    ("cross-entropy", (("test_loss", "test"), ("train_loss", "train"))),
    (
        "MIR",
        (
            ("test_mir", "whole test set"),
            ("test_mir_batch", "test, batches"),
            ("test_mir_debiased", "test, debiased"),
            ("train_mir", "whole training set"),
            ("test_class_mir", "class means"),
        ),
    ),
    (
        "HDR",
        (
            ("test_hdr", "whole test set"),
            ("test_hdr_batch", "test, batches"),
            ("test_hdr_debiased", "test, debiased"),
            ("train_hdr", "whole training set"),
            ("test_class_hdr", "class means"),
        ),
    ),
    (
        "entropy (nats)",
        (
            ("test_entropy1", "features"),
            ("test_entropy2", "head"),
            ("test_joint_entropy", "joint"),
            ("test_mutual_information", "MI"),
        ),
    ),
    (
        "neural collapse",
        (
            ("train_nc1", "NC1"),
            ("train_nc2_equinorm", "NC2 norms"),
            ("train_nc2_equiangle", "NC2 angles"),
            ("train_nc3", "NC3"),
        ),
    ),
)


def plot_runs(
    runs: Mapping[str, Sequence[Record]],
    closed_forms: Mapping[str, float],
    path: Path,
    *,
    title: str,
) -> None:
    """Draws training curves: all metrics of one run, or the first of each panel for several."""
    # Colour tells either the runs apart or the metrics of a single one.
    several = len(runs) > 1
    panels = []
    for label, metrics in PANELS:
        shown = _available(runs, metrics[:1] if several else metrics)
        # Its metrics are of the split that was evaluated, which their labels do not name.
        if label == "neural collapse":
            label += " (training set)" if shown[0][0].startswith("train") else " (test set)"
        lines = [
            Line(run if several else name, *curve, colour=f"C{row if several else column}")
            for row, (run, records) in enumerate(runs.items())
            for column, (metric, name) in enumerate(shown)
            if (curve := curves(records, metric))[0]
        ]
        panels.append(
            Panel(
                f"{label}: {shown[0][1]}" if several else label,
                "step",
                lines,
                levels=levels(closed_forms, [metric for metric, _ in shown]),
                yscale="log" if label.startswith("neural collapse") else "linear",
            )
        )
    draw(panels, path, title=title)


def _available(
    runs: Mapping[str, Sequence[Record]], metrics: Sequence[tuple[str, str]]
) -> Sequence[tuple[str, str]]:
    """The metrics that were logged, or those of the test split if only that was evaluated."""

    def logged(metrics: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [m for m in metrics if any(curves(records, m[0])[0] for records in runs.values())]

    return logged(metrics) or logged([(m.replace("train_", "test_"), name) for m, name in metrics])


def levels(closed_forms: Mapping[str, float], metrics: Sequence[str]) -> dict[str, float]:
    """Lines at the values that metrics like `test_mir` have at neural collapse, each value once.

    A metric that tends to 0 gets no line, since the axis shows it. Several metrics with values that
    differ in no digit of their labels share the line of the first.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        # The closed forms are the same for all splits and carry no name of one.
        name = metric.partition("_")[2]
        value = closed_forms.get(name)
        if value and f"{value:.3f}" not in {f"{drawn:.3f}" for drawn in values.values()}:
            shown = name.removeprefix("class_").replace("mir", "MIR").replace("_", " ")
            values[f"{shown} at collapse"] = value
    return values
