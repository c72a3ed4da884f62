"""Algorithms beside each other, with and without the information terms, on few labels:
`python -m train.few_labels`.

Presets: `small` (the default: a small convolutional network on CIFAR-10 with 40 and 250 labels, about half
an hour on 2 cores), `fashion` (the same on Fashion-MNIST), `smoke` (digits, seconds), `paper`
(WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from train.evaluation.closed_forms import closed_forms
from train.reporting.paired import gains, paired, pairs_table, reading
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, final_records, mean_and_spread, select
from train.reporting.summary import Claim, Summary, Table, table_of
from train.run.command import run_command
from train.run.folder import claim as claim_folder
from train.semisupervised import COLUMNS, fit, open_pool
from train.semisupervised import PRESETS as SINGLE
from train.ssl.algorithms import ALGORITHMS, OPTIONS
from train.ssl.pool import pool_of
from train.ssl.settings import Comparison, Semisupervised, comparison_of, lanes_with_terms

Runs = Mapping[str, Sequence[Record]]


@dataclasses.dataclass(frozen=True)
class FewLabels(Comparison):
    """Algorithms on the same labels and seeds, the last of them also with each information term."""

    refused: ClassVar[dict[str, str]] = {
        **Comparison.refused,
        **dict.fromkeys(
            ("labels", "algorithm"),
            "give --label-counts and --algorithms instead of labels and algorithm.",
        ),
    }

    label_counts: tuple[int, ...] = (40, 250)
    """Numbers of samples that keep their labels; there is a set of runs for each."""
    algorithms: tuple[str, ...] = ("supervised", "fixmatch", "freematch")
    """The algorithms to compare. The terms are added to the last one."""

    def __post_init__(self):
        super().__post_init__()
        self.distinct("label_counts")
        self.known("algorithms", ALGORITHMS)
        for option in OPTIONS:
            if getattr(self, option) is not None and not any(
                _has(name, option) for name in self.algorithms
            ):
                raise ValueError(f"none of {', '.join(self.algorithms)} has a {option}.")
        # The settings of every run are valid, or the error comes before anything is trained.
        for name in self.algorithms:
            self.of(name, self.label_counts[0])
        self.of(self.algorithms[-1], self.label_counts[0]).fits_terms()

    def of(self, algorithm: str, labels: int) -> Semisupervised:
        """The settings of the runs of one algorithm on so many labels."""
        # An option of one algorithm is not refused by the others.
        options = {name: None for name in OPTIONS if not _has(algorithm, name)}
        changes = {"algorithm": algorithm, "labels": labels, **options}
        return self.single(f"{algorithm}-{labels}", **changes)


def _has(algorithm: str, option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(ALGORITHMS[algorithm])}


_SMALL: dict[str, Any] = {"seeds": 3, "eval_train": False}
PRESETS = {
    "small": comparison_of(
        FewLabels,
        SINGLE["small"],
        **_SMALL,
        steps=1200,
        eval_every=1200,
        out=Path("runs/few-labels"),
    ),
    "fashion": comparison_of(
        FewLabels,
        SINGLE["small"],
        **_SMALL,
        dataset="fashion_mnist",
        steps=800,
        eval_every=800,
        out=Path("runs/few-labels-fashion"),
    ),
    "smoke": comparison_of(
        FewLabels, SINGLE["smoke"], label_counts=(40,), seeds=2, out=Path("runs/few-labels-smoke")
    ),
    "paper": comparison_of(
        FewLabels, SINGLE["paper"], eval_every=2**14, seeds=3, out=Path("runs/few-labels-paper")
    ),
}


def run(settings: FewLabels, *, quiet: bool = False) -> Summary:
    """Trains every algorithm on every number of labels, and compares them."""
    runs = [(c, name) for c in settings.label_counts for name in settings.algorithms]
    first = open_pool(settings.of(settings.algorithms[-1], settings.label_counts[0]))
    pools = {c: pool_of(settings, first.data, c) for c in settings.label_counts}
    claim_folder(settings, {"data": first.data.name, "source": first.data.source_note})
    records, source = [], ""
    for count, name in runs:
        single = settings.of(name, count)
        weights = settings.weights if name == settings.algorithms[-1] else ()
        lanes = lanes_with_terms(single, weights)
        result = fit(single, pools[count], lanes, quiet=quiet)
        source = result.data
        records += [{**r, "labels": count, "algorithm": name} for r in result.records]
    return summarize(settings, source, first.data.num_classes, records).write()


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
        over = f"{base}, {count} labels"
        tables.append(pairs_table(paired(groups, base), settings.seeds, over))
        # A family of its own: how bad a baseline is says nothing of the terms.
        own = {name: rows for name, rows in groups.items() if name.startswith(base)}
        terms = paired(own, base)
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
    """A panel a metric, what was trained across, a line for the number of labels."""
    shown = {
        "accuracy": "test_accuracy",
        "MIR (test set)": "test_mir",
        "HDR (test set)": "test_hdr",
        "NC1": "test_nc1",
        "coverage of pseudo-labels": "step_coverage",
        "pseudo-labels right": "step_pseudo_accuracy",
    }
    found = []
    for title, metric in shown.items():
        lines = []
        for number, count in enumerate(settings.label_counts):
            groups = {
                k: [r for r in rows if r.get(metric) is not None]
                for k, rows in groups_of(settings, last, count).items()
            }
            pairs = {
                k: mean_and_spread([r[metric] for r in rows]) for k, rows in groups.items() if rows
            }
            if pairs:
                means, spreads = zip(*pairs.values(), strict=True)
                look = {"colour": f"C{number}", "style": ":", "marker": "o"}
                lines.append(Line(f"{count} labels", list(pairs), means, spreads, **look))
        if lines:
            found.append(Panel(title, "", lines, levels(forms, [metric])))
    return found


if __name__ == "__main__":
    run_command(PRESETS, run)
