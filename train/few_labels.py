"""Algorithms beside each other, with and without the information terms, on few labels:
`python -m train.few_labels`.

Presets: `small` (the default: a small convolutional network on CIFAR-10 with 40 and 250 labels, about half
an hour on 2 cores), `fashion` (the same on Fashion-MNIST), `smoke` (digits, seconds), `paper`
(WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.algorithms import ALGORITHMS
from train.evaluate import closed_forms
from train.experiment import run_command
from train.folders import claim as claim_folder
from train.lanes import Lane, lanes_of
from train.paired import gains, paired, pairs_table, reading
from train.plots import Line, Panel, draw, levels
from train.pool import load_pool
from train.presets import PAPER
from train.records import Record, curves, final_records, select
from train.semisupervised import COLUMNS, Semisupervised, fit
from train.semisupervised import PRESETS as SINGLE
from train.summary import Claim, Summary, Table
from train.tables import table_of

Runs = Mapping[str, Sequence[Record]]


@dataclasses.dataclass(frozen=True)
class FewLabels(Semisupervised):
    """Algorithms on the same labels and seeds, the last of them also with each information term."""

    label_counts: tuple[int, ...] = (40, 250)
    """How many samples keep their labels; one set of runs each."""
    algorithms: tuple[str, ...] = ("supervised", "fixmatch", "freematch")
    """What is compared; the terms are added to the last one."""
    weights: tuple[float, ...] = (0.1,)
    """Of the terms, one at a time."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("label_counts", "algorithms", "weights"):
            self.distinct(name)
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown:
            raise ValueError(
                f"algorithms {', '.join(unknown)} are unknown. There are: {', '.join(ALGORITHMS)}."
            )
        if self.mi_weight or self.ed_weight:
            raise ValueError("the weights are what is compared here: give --weights instead.")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, got {self.weights}.")
        # Each fits its settings, or says so before anything is trained.
        for name in self.algorithms:
            self.single(name, self.label_counts[0])

    def single(self, algorithm: str, labels: int) -> Semisupervised:
        """The settings of the runs of one algorithm on so many labels."""
        fields = dataclasses.fields(Semisupervised)
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields}
        own: dict[str, Any] = {
            "algorithm": algorithm,
            "labels": labels,
            "out": self.out / f"{algorithm}-{labels}",
            # What is there of a run that was cut off is gone on with.
            "resume": self.resume,
        }
        if algorithm == "supervised":
            own["information_on"] = ("labelled",)
        # An option of one algorithm is not refused by the others.
        known = {field.name for field in dataclasses.fields(ALGORITHMS[algorithm])}
        for option in ("threshold", "temperature", "fairness_weight"):
            if option not in known:
                own[option] = None
        return Semisupervised(**(values | own))


def _preset(name: str, **changes: Any) -> FewLabels:
    base = SINGLE[name]
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return FewLabels(**(values | {"seeds": 3} | changes))


PRESETS = {
    "small": _preset(
        "small", steps=1200, eval_every=1200, eval_train=False, out=Path("runs/few-labels")
    ),
    "fashion": _preset(
        "small",
        dataset="fashion_mnist",
        steps=800,
        eval_every=800,
        eval_train=False,
        out=Path("runs/few-labels-fashion"),
    ),
    "smoke": _preset("smoke", label_counts=(40,), seeds=2, out=Path("runs/few-labels-smoke")),
    "paper": FewLabels(**PAPER, eval_every=2**14, seeds=3, out=Path("runs/few-labels-paper")),
}


def lanes(settings: Semisupervised, weights: Sequence[float], *, plain: bool = True) -> list[Lane]:
    """A lane for each seed and each term and weight, and without a term if `plain`."""
    kinds: list[tuple[str, float, dict[str, float]]] = [("", 0.0, {})] if plain else []
    for weight in weights:
        kinds += [("MI", weight, {"mi_weight": weight}), ("ED", weight, {"ed_weight": weight})]
    return [
        dataclasses.replace(
            lane, knobs=lane.knobs._replace(**knobs), tags={"terms": name, "weight": weight}
        )
        for lane in lanes_of(settings)
        for name, weight, knobs in kinds
    ]


def run(settings: FewLabels, *, quiet: bool = False) -> Summary:
    """Trains every algorithm on every number of labels, and compares them."""
    pools = {count: load_pool(settings, count) for count in settings.label_counts}
    data = pools[settings.label_counts[0]].data
    claim_folder(settings, {"data": data.name, "source": data.source_note})
    records, source = [], ""
    for count, pool in pools.items():
        for name in settings.algorithms:
            own = settings.single(name, count)
            weights = settings.weights if name == settings.algorithms[-1] else ()
            result = fit(own, pool, lanes(own, weights), quiet=quiet)
            source = result.data
            about = {"labels": count, "algorithm": name}
            records += [{**record, **about} for record in result.records]
    return summarize(settings, source, data.num_classes, records).write()


def groups_of(settings: FewLabels, records: Sequence[Record], labels: int) -> Runs:
    """Records of one number of labels, by what was trained."""
    found: dict[str, list[Record]] = {}
    for name in settings.algorithms:
        own = select(records, labels=labels, algorithm=name)
        kinds = sorted({(r["weight"], r["terms"]) for r in own}, key=lambda k: (k[0], k[1] != "MI"))
        for weight, terms in kinds:
            label = f"{name} + {weight:g} {terms}" if terms else name
            found[label] = select(own, weight=weight, terms=terms)
    return found


def summarize(
    settings: FewLabels, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """The summary of all records, and its picture."""
    last = final_records(records)
    n = int(last[0]["test_n"])
    title = (
        f"Few labels: {source}, {settings.model}, {settings.steps:,} steps of {settings.batch_size} labelled and "
        f"{settings.batch_size * settings.unlabelled_ratio} unlabelled, seeds: {settings.seeds}"
    )
    note = f"test n = {n:,}; moving average of the weights; mean ± standard deviation over seeds"
    tables: list[Table] = []
    claims: list[Claim] = []
    base = settings.algorithms[-1]
    for count in settings.label_counts:
        groups = groups_of(settings, last, count)
        tables.append(
            table_of(groups, COLUMNS, title=f"{count} labels; {note}", first="trained with")
        )
        pairs = paired(groups, base)
        tables.append(pairs_table(pairs, settings.seeds, f"{base}, {count} labels"))
        terms = {name: row for name, row in pairs.items() if name.startswith(f"{base} +")}
        claims.append(
            Claim(
                f"a term improves accuracy with {count} labels",
                "STL-10 with 40 labels, error %: FreeMatch 15.56; the two terms 16.61 and 14.93; no spreads",
                f"points, {settings.seeds} seeds: {gains(terms)}",
                reading(terms),
            )
        )
    picture = settings.out / "few-labels.png"
    draw(panels(settings, last, closed_forms(num_classes)), picture, title=f"{title}\n{note}")
    text = "accuracy, MIR, HDR, collapse, coverage and right pseudo-labels by what was trained"
    return Summary(settings.out, title, tuple(tables), {picture.name: text}, tuple(claims))


def panels(settings: FewLabels, last: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """A panel a metric, the number of labels across, a line for what was trained."""
    shown = {
        "accuracy": "test_accuracy",
        "MIR (test set)": "test_mir",
        "HDR (test set)": "test_hdr",
        "NC1": "test_nc1",
        "coverage of pseudo-labels": "step_coverage",
        "pseudo-labels right": "step_pseudo_accuracy",
    }
    names = list(groups_of(settings, last, settings.label_counts[0]))
    found = []
    for title, metric in shown.items():
        lines = []
        for number, name in enumerate(names):
            own = [r for c in settings.label_counts for r in groups_of(settings, last, c)[name]]
            known = [r for r in own if not math.isnan(r.get(metric) or math.nan)]
            line = curves(known, metric, by="labels")
            if line[0]:
                lines.append(Line(name, *line, colour=f"C{number}", marker="o"))
        if lines:
            found.append(Panel(title, "labels", lines, levels(forms, [metric]), "log"))
    return found


if __name__ == "__main__":
    run_command(PRESETS, run)
