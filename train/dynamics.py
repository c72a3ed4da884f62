"""Training dynamics of MIR, HDR and neural collapse, with controls: `python -m train.dynamics`.

Presets: `small` (the default: WideResNet-10-1 on 5,000 images of CIFAR-10, about 20 minutes on 2
cores), `smoke` (digits, seconds), `paper` and `paper-cifar100` (WideResNet-28-2 on CIFAR-10 and
WideResNet-28-8 on CIFAR-100, as published; both need an accelerator).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from train.data.subsets import with_random_labels
from train.data.types import about
from train.evaluation.closed_forms import closed_forms
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, cell, curves, final_records, without_direction
from train.reporting.summary import Claim, Summary, Table, table_of
from train.run.command import run_command
from train.run.folder import claim as claim_folder
from train.run.loop import Result
from train.run.settings import PAPER
from train.supervised import Supervised, fit, load_data

TRUE, RANDOM = "true labels", "random labels"


@dataclasses.dataclass(frozen=True)
class Dynamics(Supervised):
    """Follows accuracy, MIR, HDR, entropies and NC1 to NC4 over the training of a classifier."""

    eval_layers: bool = True
    """Whether each evaluation also measures every layer, on the test split."""
    random_labels: bool = True
    """Whether to train a control too: the same images with shuffled labels."""


_PAPER = Dynamics(
    **PAPER,
    eval_every=2**14,
    seeds=3,
    out=Path("runs/dynamics-paper"),
)
PRESETS = {
    "small": Dynamics(
        dataset="cifar10",
        train_size=5000,
        model="wrn-10-1",
        steps=1200,
        eval_every=300,
        seeds=3,
        out=Path("runs/dynamics"),
    ),
    "smoke": Dynamics(steps=20, eval_every=10, out=Path("runs/dynamics-smoke")),
    "paper": _PAPER,
    "paper-cifar100": dataclasses.replace(
        _PAPER, dataset="cifar100", model="wrn-28-8", out=Path("runs/dynamics-paper-cifar100")
    ),
}

COLUMNS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "MIR": "mir",
    "MIR, batches": "mir_batch",
    "debiased MIR": "mir_debiased",
    "MIR - collapse": "mir_distance",
    "class-mean MIR": "class_mir",
    "HDR": "hdr",
    "HDR, batches": "hdr_batch",
    "debiased HDR": "hdr_debiased",
    "NC1": "nc1",
    "NC2 norms": "nc2_equinorm",
    "NC2 angles": "nc2_equiangle",
    "NC3": "nc3",
    "NC4": "nc4",
}
SPECTRA = {
    "RankMe": "rankme",
    "effective rank": "effective_rank",
    "effective rank, centred": "effective_rank_centred",
    "participation ratio": "participation_ratio",
    "participation ratio, debiased": "participation_ratio_debiased",
    "stable rank": "stable_rank",
    "NESum": "nesum",
    "LiDAR": "lidar",
    "α-ReQ": "alpha_req",
}
LAYER_COLUMNS = {
    "MIR": "mir",
    "MIR, batches": "mir_batch",
    "debiased MIR": "mir_debiased",
    "HDR": "hdr",
    "HDR, batches": "hdr_batch",
    "debiased HDR": "hdr_debiased",
    "NC1": "nc1",
} | SPECTRA


def run(settings: Dynamics, *, quiet: bool = False) -> Summary:
    """Trains on the true labels and on shuffled ones, and compares the two."""
    data = load_data(settings)
    trained_on = {TRUE: data}
    if settings.random_labels:
        trained_on[RANDOM] = with_random_labels(data)
    folder = claim_folder(settings, about(data))
    results: dict[str, Result] = {}
    for kind, data_of_kind in trained_on.items():
        # Every kind is a run in a folder below, so that it resumes from its last checkpoint.
        single = dataclasses.replace(settings, out=folder / kind.replace(" ", "-"))
        results[kind] = fit(single, data_of_kind, quiet=quiet)
    records = {kind: result.records for kind, result in results.items()}
    return summarize(settings, results[TRUE].data, data.num_classes, records).write()


def summarize(
    settings: Dynamics, source: str, num_classes: int, records: Mapping[str, Sequence[Record]]
) -> Summary:
    """Draws the pictures, and sums up the records of each kind of labels in tables and claims."""
    folder = settings.out
    last = final_records(records[TRUE])[0]
    shown = [record for of_kind in records.values() for record in of_kind]
    sizes = f"test n = {int(last['test_n']):,}{without_direction(shown)}"
    if "train_n" in last:
        sizes += f", training n = {int(last['train_n']):,}{without_direction(shown, 'train_')}"
    title = (
        f"Dynamics: {source}, {settings.model}, {settings.steps:,} steps, seeds: {settings.seeds}"
    )
    note = f"{sizes}; batches of {settings.metric_batch}; mean ± standard deviation"
    forms = closed_forms(num_classes)
    pictures = {
        "dynamics.png": "accuracy, MIR, HDR, entropies, NC1 to NC4 and spectra over the steps"
    }
    draw(panels(records, forms), folder / "dynamics.png", title=f"{title}\n{note}")
    tables = [table(records, note), spectra_table(records, note)]
    if ranks := correlations(records, note):
        tables.append(ranks)
    names = layers(records[TRUE])
    # Layers are measured only where the settings ask for it.
    if names:
        stages = [record for rows in _stages(records).values() for record in rows]
        size = f"n = {int(last['layer_n']):,}"
        size += without_direction(stages, *(f"layer_{name}_" for name in names))
        draw(
            layer_panels(records, names),
            folder / "layers.png",
            title=f"{title}\nlayers against the head, test {size}",
            columns=3,
        )
        pictures["layers.png"] = "MIR, HDR, NC1 and measures of the spectrum of every layer"
        tables.append(layer_table(records, names, size))
    return Summary(folder, title, tuple(tables), pictures, claims(records[TRUE]))


def table(records: Mapping[str, Sequence[Record]], note: str) -> Table:
    """A row for each split and stage: the untrained network, and the trained ones."""
    by_name = {}
    for split in ("test", "train"):
        for stage, rows in _stages(records).items():
            # The training split is not always measured.
            if f"{split}_accuracy" in rows[0]:
                prefix = f"{split}_"
                by_name[f"{stage}, {split} set"] = [
                    {k.removeprefix(prefix): v for k, v in r.items() if k.startswith(prefix)}
                    for r in rows
                ]
    return table_of(by_name, COLUMNS, title=f"First and last step: {note}", first="network, data")


def spectra_table(records: Mapping[str, Sequence[Record]], note: str) -> Table:
    """The measures of the spectrum of the features, at the first and the last step."""
    by_name = {
        stage: [{k.removeprefix("test_"): v for k, v in r.items()} for r in rows]
        for stage, rows in _stages(records).items()
    }
    title = f"Spectra of the features, first and last step, test set: {note}"
    return table_of(by_name, SPECTRA, title=title, first="network")


def correlations(records: Mapping[str, Sequence[Record]], note: str) -> Table | None:
    """How the order of each measure over training follows that of accuracy, seed by seed.

    With random labels there is no accuracy on the test set to follow, and a measure that follows
    the training set there does not tell generalisation from memorising. None with fewer than five
    evaluations.
    """
    steps = sorted({record["step"] for record in records[TRUE]})
    if len(steps) < 5:
        return None
    trained = [record for record in records[TRUE] if record["step"] > steps[0]]
    columns = {
        "true labels": (records[TRUE], "test_accuracy"),
        "true labels, without the untrained network": (trained, "test_accuracy"),
    }
    if any("train_accuracy" in record for record in records.get(RANDOM, ())):
        columns["random labels, with training accuracy"] = (records[RANDOM], "train_accuracy")
    measures = {"number of steps": "step", "training loss of the step": "step_loss"}
    measures |= {name: f"test_{metric}" for name, metric in (COLUMNS | SPECTRA).items()}
    for left_out in ("accuracy", "MIR - collapse"):
        del measures[left_out]
    rows = [
        (name, *(_correlation(of_kind, metric, accuracy) for of_kind, accuracy in columns.values()))
        for name, metric in measures.items()
    ]
    shown = f"Rank correlation with test accuracy over {len(steps)} evaluations, mean and standard "
    shown += f"deviation over seeds: {note}"
    return Table(shown, ("measure of the test set", *columns), tuple(rows))


def _correlation(records: Sequence[Record], metric: str, accuracy: str) -> str:
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        pair = _number(record.get(metric)), _number(record.get(accuracy))
        by_seed.setdefault(record["seed"], []).append(pair)
    # A seed in which a measure is constant or somewhere missing has no correlation.
    found = [stats.spearmanr(*zip(*pairs, strict=True)).statistic for pairs in by_seed.values()]
    ranks = [{"rank": float(rank) if math.isfinite(rank) else None} for rank in found]
    return cell(ranks, "rank")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def layers(records: Sequence[Record]) -> list[str]:
    """The names of the layers that were measured, from the first to the last."""
    prefix, suffix = "layer_", "_effective_rank"
    return [
        name[len(prefix) : -len(suffix)]
        for name in records[0]
        if name.startswith(prefix) and name.endswith(suffix)
    ]


def _stages(records: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    # The untrained network is the same for both kinds of labels.
    stages = {"untrained": [r for r in records[TRUE] if r["step"] == 0]}
    return stages | {kind: final_records(of_kind) for kind, of_kind in records.items()}


def layer_table(records: Mapping[str, Sequence[Record]], names: list[str], size: str) -> Table:
    """A row for each layer and stage."""
    by_name = {
        f"{name}, {stage}": [
            {k.removeprefix(f"layer_{name}_"): v for k, v in r.items()} for r in rows
        ]
        for name in names
        for stage, rows in _stages(records).items()
    }
    title = f"Layers against the head: test set, {size}; mean ± standard deviation"
    return table_of(by_name, LAYER_COLUMNS, title=title, first="layer, network")


def layer_panels(records: Mapping[str, Sequence[Record]], names: list[str]) -> list[Panel]:
    """Nine panels with the depth of the layer as the horizontal axis."""
    drawn = []
    for title, metric in (
        ("MIR (whole set)", "mir"),
        ("HDR (whole set)", "hdr"),
        ("debiased MIR", "mir_debiased"),
        ("NC1", "nc1"),
        ("effective rank", "effective_rank"),
        ("RankMe", "rankme"),
        ("participation ratio, debiased", "participation_ratio_debiased"),
        ("LiDAR", "lidar"),
        ("α-ReQ", "alpha_req"),
    ):
        lines = []
        for number, (stage, rows) in enumerate(_stages(records).items()):
            # A stage is a single step, so that the curve of a layer is a single point.
            points = [curves(rows, f"layer_{name}_{metric}") for name in names]
            # Runs of an earlier version lack some.
            if not all(steps for steps, *_ in points):
                continue
            mean, spread = ([point[k][0] for point in points] for k in (1, 2))
            lines.append(Line(stage, names, mean, spread, colour=f"C{number}", marker="o"))
        logarithmic = ("nc1", "effective_rank", "rankme", "participation_ratio_debiased", "lidar")
        scale = "log" if metric in logarithmic else "linear"
        if lines:
            drawn.append(Panel(title, "layer", lines, yscale=scale))
    return drawn


def panels(records: Mapping[str, Sequence[Record]], forms: Mapping[str, float]) -> list[Panel]:
    """Panels with the step as the horizontal axis; lines of random labels are dashed."""
    shown: dict[str, dict[str, str]] = {
        "accuracy": {"test": "test_accuracy", "train": "train_accuracy"},
        "MIR": {
            "test": "test_mir",
            "test, batches": "test_mir_batch",
            "test, debiased": "test_mir_debiased",
            "train": "train_mir",
        },
        "HDR": {
            "test": "test_hdr",
            "test, batches": "test_hdr_batch",
            "test, debiased": "test_hdr_debiased",
            "train": "train_hdr",
        },
        "class means against head": {
            "MIR, train": "train_class_mir",
            "HDR, train": "train_class_hdr",
        },
        "entropies, test (nats)": {
            "features": "test_entropy1",
            "head": "test_entropy2",
            "joint": "test_joint_entropy",
            "MI": "test_mutual_information",
        },
        "NC1": {"test": "test_nc1", "train": "train_nc1"},
        "NC2 (train)": {"norms": "train_nc2_equinorm", "angles": "train_nc2_equiangle"},
        "NC3": {"train": "train_nc3"},
        "NC4": {"test": "test_nc4", "train": "train_nc4"},
        "ranks of the spectrum, test": {
            name: f"test_{SPECTRA[name]}"
            for name in ("RankMe", "effective rank", "participation ratio, debiased", "LiDAR")
        },
        "shares of the largest, test": {
            name: f"test_{SPECTRA[name]}" for name in ("stable rank", "NESum")
        },
        "α-ReQ": {"test": "test_alpha_req"},
    }
    drawn = []
    for title, metrics in shown.items():
        lines = []
        for kind, of_kind in records.items():
            for number, (name, metric) in enumerate(metrics.items()):
                steps, means, spreads = curves(of_kind, metric)
                # Without an evaluation of the training split there is nothing to draw.
                if not steps:
                    continue
                label = f"{name}, {kind}" if kind == RANDOM else name
                style = "--" if kind == RANDOM else "-"
                lines.append(Line(label, steps, means, spreads, colour=f"C{number}", style=style))
        if lines:
            scale = "log" if title.startswith(("NC1", "NC2", "NC3", "ranks")) else "linear"
            marks = levels(forms, list(metrics.values()))
            drawn.append(Panel(title, "step", lines, marks, yscale=scale))
    return drawn


def claims(records: Sequence[Record]) -> tuple[Claim, ...]:
    """That MIR rises with accuracy and HDR falls, in batches as published and of the whole set."""
    first, last = [r for r in records if r["step"] == 0], final_records(records)
    readings = []
    for name, metric, direction, published in (
        ("MIR (batches) rises with test accuracy", "test_mir_batch", 1, "CIFAR-10: to about 0.55"),
        ("MIR of the whole test set rises with test accuracy", "test_mir", 1, "not reported"),
        ("debiased MIR rises with test accuracy", "test_mir_debiased", 1, "not reported"),
        (
            "HDR (batches) falls as test accuracy rises",
            "test_hdr_batch",
            -1,
            "CIFAR-100: to near 0",
        ),
        ("HDR of the whole test set falls as test accuracy rises", "test_hdr", -1, "not reported"),
        ("debiased HDR falls as test accuracy rises", "test_hdr_debiased", -1, "not reported"),
    ):
        pairs = [(r["test_accuracy"], r[metric]) for r in records if r.get(metric) is not None]
        # Runs of an earlier version lack some.
        if not pairs:
            continue
        steps = {r["step"] for r in records}
        verdict, rank = "not decided", 0.0
        # Over fewer steps even a perfect rank correlation may be chance.
        if len(steps) >= 5:
            rank = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
            if abs(rank) > 0.8:
                verdict = "agrees" if direction * rank > 0 else "disagrees"
        readings.append(
            Claim(
                name,
                published,
                f"{cell(first, metric)} untrained, {cell(last, metric)} at the end",
                f"{verdict}: rank correlation with accuracy {rank:+.2f} over {len(pairs)} "
                f"evaluations at {len(steps)} steps (decided beyond ±0.8, from five steps on)",
            )
        )
    return tuple(readings)


if __name__ == "__main__":
    run_command(PRESETS, run)
