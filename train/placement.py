"""Where the information terms are applied in semi-supervised training, and how much they weigh:
`python -m train.placement`.

Presets: `small` (the default: FreeMatch, an MLP on digits with 40 labels, minutes on 2 cores),
`smoke` (seconds).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from train.reporting.paired import Pairs, paired
from train.reporting.plots import Line, Panel, draw
from train.reporting.records import (
    Record,
    cell,
    curves,
    final_records,
    select,
    without_direction,
)
from train.reporting.summary import Summary, Table
from train.run.command import run_command
from train.run.folder import claim as claim_folder
from train.semisupervised import PRESETS as SINGLE
from train.semisupervised import fit, open_pool
from train.ssl.settings import (
    Comparison,
    OneAlgorithm,
    Semisupervised,
    comparison_of,
    lanes_with_terms,
)

# What each variation changes in the settings of the run: one thing at a time, so that a difference
# has one cause.
VARIATIONS: dict[str, dict[str, Any]] = {
    "as set": {},
    "labelled alone": {"information_on": ("labelled",)},
    "weak alone": {"information_on": ("weak",)},
    "strong alone": {"information_on": ("strong",)},
    "labelled and strong": {"information_on": ("labelled", "strong")},
    "labelled, weak and strong": {"information_on": ("labelled", "weak", "strong")},
    "all samples": {"information_samples": "all"},
    "soft rows": {"information_rows": "soft"},
    "features fixed": {"stop_gradient": "features"},
    "head fixed": {"stop_gradient": "head"},
}
# The runs without the terms, with which all others are compared.
_PLAIN = "without"


@dataclasses.dataclass(frozen=True)
class Placement(OneAlgorithm, Comparison):
    """Compares where the MI and the ED term are applied: on which samples, rows and sides."""

    refused: ClassVar[dict[str, str]] = Comparison.refused

    variations: tuple[str, ...] = tuple(VARIATIONS)
    """Variations to train, in which the terms are applied elsewhere. The first of them is also
    trained without the terms, for comparison."""

    def __post_init__(self):
        super().__post_init__()
        self.known("variations", VARIATIONS)
        # A variation that the algorithm does not allow is an error before anything is trained.
        for name in self.variations:
            self.of(name).fits_terms()

    def of(self, variation: str) -> Semisupervised:
        """The settings of one variation."""
        folder = variation.replace(",", "").replace(" ", "-")
        return self.single(folder, **VARIATIONS[variation])


PRESETS = {
    "small": comparison_of(
        Placement,
        SINGLE["smoke"],
        steps=600,
        eval_every=600,
        average_momentum=0.99,
        statistics_momentum=0.99,
        eval_train=False,
        seeds=5,
        weights=(0.03, 0.1, 0.3),
        out=Path("runs/placement"),
    ),
    "smoke": comparison_of(
        Placement,
        SINGLE["smoke"],
        seeds=2,
        variations=("as set", "soft rows"),
        out=Path("runs/placement-smoke"),
    ),
}


def run(settings: Placement, *, quiet: bool = False) -> Summary:
    """Trains every variation, and compares it with training without the terms."""
    pool = open_pool(settings)
    claim_folder(settings, {"data": pool.data.name, "source": pool.data.source_note})
    records, source = [], ""
    for place, name in enumerate(settings.variations):
        single = settings.of(name)
        # Without the terms all variations are the same run: it is trained once, with the first.
        lanes = lanes_with_terms(single, settings.weights, plain=place == 0)
        result = fit(single, pool, lanes, quiet=quiet)
        source = result.data
        records += [{**record, "variation": name} for record in result.records]
    return summarize(settings, source, records).write()


def summarize(settings: Placement, source: str, records: Sequence[Record]) -> Summary:
    """Draws the picture, and sums up the records of all variations in a table."""
    last = final_records(records)
    n, labels = int(last[0]["test_n"]), int(last[0]["labelled_n"])
    title = (
        f"Placement of the terms{settings.form()}: {settings.algorithm}, {source}, "
        f"{settings.model}, {labels:,} labels{without_direction(last, 'labelled_')}, "
        f"{settings.steps:,} steps, seeds: {settings.seeds}"
    )
    plain = select(last, terms="")
    by_name: dict[str, Sequence[Record]] = {_PLAIN: plain}
    for name in settings.variations:
        for terms in ("MI", "ED"):
            for weight in settings.weights:
                key = _key(name, terms, weight)
                by_name[key] = select(last, variation=name, terms=terms, weight=weight)
    pairs = paired(by_name, _PLAIN)
    note = (
        f"without the terms: {cell(plain, 'test_accuracy')}; test n = {n:,}"
        f"{without_direction(last)}; gain in points, "
        f"± half the 95 % interval, paired over {settings.seeds} seeds; * adjusted p below 0.05 "
        f"(Benjamini-Hochberg, {len(pairs)} comparisons)"
    )
    draw(panels(settings, last), settings.out / "placement.png", title=f"{title}\n{note}")
    tables = (gains_table(settings, pairs, note),)
    return Summary(
        settings.out, title, tables, {"placement.png": "accuracy over the weight of a term"}, ()
    )


def _key(variation: str, terms: str, weight: float) -> str:
    return f"{variation}: {weight:g} {terms}"


def gains_table(settings: Placement, pairs: Pairs, note: str) -> Table:
    """The gains in accuracy: a row for each variation, a column for each term and weight."""

    def text(variation: str, terms: str, weight: float) -> str:
        mean, half, _, adjusted = pairs[_key(variation, terms, weight)]
        # NaN, which differs from itself, where the seeds have no spread to test with.
        tested = f" ± {100 * half:.1f}" if half == half else ""
        return f"{100 * mean:+.1f}{tested}{' *' if adjusted < 0.05 else ''}"

    columns = [(terms, weight) for terms in ("MI", "ED") for weight in settings.weights]
    rows = tuple(
        (name, *(text(name, terms, weight) for terms, weight in columns))
        for name in settings.variations
    )
    return Table(note, ("terms on", *(f"{weight:g} {terms}" for terms, weight in columns)), rows)


def panels(settings: Placement, last: Sequence[Record]) -> list[Panel]:
    """A panel for each term: accuracy over the weight, with a line for each variation."""
    # Training without the terms is the point at weight 0 of every line.
    plain = select(last, terms="")
    drawn = []
    for terms in ("MI", "ED"):
        lines = [
            Line(
                name, *_over_weights([*plain, *select(last, terms=terms, variation=name)]), f"C{i}"
            )
            for i, name in enumerate(settings.variations)
        ]
        drawn.append(Panel(f"accuracy, {terms}", "weight", lines))
    return drawn


def _over_weights(records: Sequence[Record]) -> tuple[list, list, list]:
    return curves(records, "test_accuracy", by="weight")


if __name__ == "__main__":
    run_command(PRESETS, run)
