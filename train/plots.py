"""Pictures of a run: curves with a band over seeds and the closed-form values drawn in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.trackers import curves

PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("accuracy", (("test_accuracy", "test"), ("train_accuracy", "train"))),
    ("cross-entropy", (("test_loss", "test"), ("train_loss", "train"))),
    (
        "MIR",
        (
            ("test_mir", "whole test set"),
            ("test_mir_batch", "test, batches"),
            ("train_mir", "whole training set"),
            ("test_class_mir", "class means"),
        ),
    ),
    (
        "HDR",
        (
            ("test_hdr", "whole test set"),
            ("test_hdr_batch", "test, batches"),
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
        "neural collapse (training set)",
        (
            ("train_nc1", "NC1"),
            ("train_nc2_equinorm", "NC2 norms"),
            ("train_nc2_equiangle", "NC2 angles"),
            ("train_nc3", "NC3"),
        ),
    ),
)


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    closed_forms: Mapping[str, float],
    path: Path,
    *,
    title: str,
) -> None:
    """Draws all panels; several runs are told apart by colour, metrics of one panel by line style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    several = len(runs) > 1
    for axis, (label, metrics) in zip(axes, PANELS, strict=True):
        shown = _available(runs, metrics[:1] if several else metrics)
        for row, (run, records) in enumerate(runs.items()):
            for column, (metric, name) in enumerate(shown):
                steps, mean, spread = curves(records, metric)
                if not steps:
                    continue
                colour = f"C{row if several else column}"
                axis.plot(steps, mean, color=colour, label=run if several else name)
                low = [m - s for m, s in zip(mean, spread, strict=True)]
                high = [m + s for m, s in zip(mean, spread, strict=True)]
                axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        _draw_closed_forms(axis, shown, closed_forms, several)
        axis.set_xlabel("step")
        axis.set_title(f"{label}: {shown[0][1]}" if several else label)
        axis.grid(alpha=0.3)
        if label.startswith("neural collapse"):
            axis.set_yscale("log")
        axis.legend(fontsize="small")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _available(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[tuple[str, str]]
) -> Sequence[tuple[str, str]]:
    """Those that were logged; of the test split, if the training split was not evaluated."""

    def logged(metrics: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [m for m in metrics if any(curves(records, m[0])[0] for records in runs.values())]

    return logged(metrics) or logged([(m.replace("train_", "test_"), name) for m, name in metrics])


def _draw_closed_forms(
    axis: Any, shown: Sequence[tuple[str, str]], closed_forms: Mapping[str, float], several: bool
) -> None:
    drawn: dict[float, str] = {}
    for column, (metric, _) in enumerate(shown):
        split, _, name = metric.partition("_")
        value = closed_forms.get(name)
        if value is None or split == "train" or value in drawn:
            continue
        drawn[value] = metric
        colour = f"C{column}" if name.endswith("information") or "entropy" in name else "black"
        colour = "black" if several else colour
        label = f"at collapse: {value:.3f}"
        axis.axhline(value, color=colour, linestyle=":", linewidth=1, label=label)
