"""Semi-supervised algorithms compared on few labels, with and without the information terms:
`python -m train.few_labels`.

Presets: `small` (the default: a small convolutional network on CIFAR-10 with 40 and 250 labels,
about half an hour on 2 cores), `fashion` (the same on Fashion-MNIST), `smoke` (digits, seconds),
`paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from train.evaluation.closed_forms import closed_forms
from train.reporting.paired import gains, paired, pairs_table, reading
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import (
    Record,
    final_records,
    mean_and_spread,
    select,
    without_direction,
)
from train.reporting.summary import Claim, Summary, Table, table_of
from train.run.command import run_command
from train.run.folder import claim as claim_folder
from train.semisupervised import COLUMNS, fit, open_pool
from train.semisupervised import PRESETS as SINGLE
from train.ssl.algorithms import ALGORITHMS, OPTIONS
from train.ssl.pool import pool_of
from train.ssl.settings import Comparison, Semisupervised, comparison_of, lanes_with_terms

Runs = Mapping[str, Sequence[Record]]
"""Records by the name of what was trained."""


@dataclasses.dataclass(frozen=True)
class FewLabels(Comparison):
    """Compares semi-supervised algorithms, the last one also with the MI and with the ED term."""

    refused: ClassVar[dict[str, str]] = {
        **Comparison.refused,
        **dict.fromkeys(
            ("labels", "algorithm"),
            "give --label-counts and --algorithms instead of labels and algorithm.",
        ),
    }

    label_counts: tuple[int, ...] = (40, 250)
    """Numbers of samples that keep their labels. All algorithms are trained with every number."""
    algorithms: tuple[str, ...] = ("supervised", "fixmatch", "freematch")
    """Algorithms to compare. The last one is also trained with the information terms."""

    def __post_init__(self):
        super().__post_init__()
        self.distinct("label_counts")
        self.known("algorithms", ALGORITHMS)
        # An option has to mean something to one of the algorithms, not to all of them.
        for option in OPTIONS:
            if getattr(self, option) is not None and not any(
                _has(name, option) for name in self.algorithms
            ):
                raise ValueError(f"none of {', '.join(self.algorithms)} has a {option}.")
        # Made only to raise their errors before anything is trained.
        for name in self.algorithms:
            self.of(name, self.label_counts[0])
        self.of(self.algorithms[-1], self.label_counts[0]).fits_terms()

    def of(self, algorithm: str, labels: int) -> Semisupervised:
        """The settings of the runs of one algorithm with this number of labels."""
        # An algorithm refuses options that it does not have: it is given only those that it has.
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
    """Trains every algorithm with every number of labels, and compares them."""
    runs = [(c, name) for c in settings.label_counts for name in settings.algorithms]
    # The images are loaded once; the pools differ only in which samples keep their labels.
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


def records_by_name(settings: FewLabels, records: Sequence[Record], labels: int) -> Runs:
    """The records of one number of labels, by algorithm and term."""
    by_name: dict[str, list[Record]] = {}
    for name in settings.algorithms:
        trained = select(records, labels=labels, algorithm=name)
        # Without a term first (its weight is 0), then by weight, MI before ED.
        kinds = {(r["weight"], r["terms"]) for r in trained}
        for weight, terms in sorted(kinds, key=lambda kind: (kind[0], kind[1] != "MI")):
            label = f"{name} + {weight:g} {terms}" if terms else name
            by_name[label] = select(trained, weight=weight, terms=terms)
    return by_name


def summarize(
    settings: FewLabels, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """Draws the picture, and sums up the records of all runs in tables and claims."""
    last = final_records(records)
    n = int(last[0]["test_n"])
    title = (
        f"Few labels: {source}, {settings.model}, {settings.steps:,} steps of "
        f"{settings.batch_size} labelled and {settings.batch_size * settings.unlabelled_ratio} "
        f"unlabelled, seeds: {settings.seeds}"
    )
    note = (
        f"test n = {n:,}{without_direction(last)}; moving average of the weights; "
        "mean ± standard deviation over seeds"
    )
    tables: list[Table] = []
    claims: list[Claim] = []
    base = settings.algorithms[-1]
    for count in settings.label_counts:
        by_name = records_by_name(settings, last, count)
        tables.append(
            table_of(by_name, COLUMNS, title=f"{count} labels; {note}", first="trained with")
        )
        over = f"{base}, {count} labels"
        tables.append(pairs_table(paired(by_name, base), settings.seeds, over))
        # The p values of the terms are adjusted among themselves: how far behind another algorithm
        # is says nothing about the terms.
        of_base = {name: rows for name, rows in by_name.items() if name.startswith(base)}
        terms = paired(of_base, base)
        claims.append(
            Claim(
                f"a term improves accuracy with {count} labels",
                "STL-10 with 40 labels, error %: FreeMatch 15.56; the two terms 16.61 and 14.93; "
                "no spreads",
                f"points, {settings.seeds} seeds: {gains(terms)}",
                reading(terms),
            )
        )
    picture = settings.out / "few-labels.png"
    draw(panels(settings, last, closed_forms(num_classes)), picture, title=f"{title}\n{note}")
    text = "accuracy, MIR, HDR, collapse, coverage and right pseudo-labels by what was trained"
    return Summary(settings.out, title, tuple(tables), {picture.name: text}, tuple(claims))


def panels(settings: FewLabels, last: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """A panel for each metric, over what was trained, with a line for each number of labels."""
    shown = {
        "accuracy": "test_accuracy",
        "MIR (test set)": "test_mir",
        "HDR (test set)": "test_hdr",
        "NC1": "test_nc1",
        "coverage of pseudo-labels": "step_coverage",
        "pseudo-labels right": "step_pseudo_accuracy",
    }
    drawn = []
    for title, metric in shown.items():
        lines = []
        for number, count in enumerate(settings.label_counts):
            # Supervised training, for example, is left out of the panels of pseudo-labels.
            by_name = {
                k: [r for r in rows if r.get(metric) is not None]
                for k, rows in records_by_name(settings, last, count).items()
            }
            pairs = {
                k: mean_and_spread([r[metric] for r in rows]) for k, rows in by_name.items() if rows
            }
            if pairs:
                means, spreads = zip(*pairs.values(), strict=True)
                look = {"colour": f"C{number}", "style": ":", "marker": "o"}
                lines.append(Line(f"{count} labels", list(pairs), means, spreads, **look))
        if lines:
            drawn.append(Panel(title, "", lines, levels(forms, [metric])))
    return drawn


if __name__ == "__main__":
    run_command(PRESETS, run)
