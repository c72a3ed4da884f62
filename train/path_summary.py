"""Tables and pictures of the paths between copies."""

from collections.abc import Sequence
from typing import Any

from train.paths import barrier
from train.plots import Line, Panel, draw
from train.records import Record, cell, curves, select
from train.summary import Claim, Summary, Table

INTERPOLATED, RECOMPUTED, NO_STATISTICS = "interpolated", "recomputed", "no batch norm"
METRICS = {
    "accuracy": "accuracy",
    "cross-entropy": "loss",
    "MIR": "mir",
    "MIR, batches": "mir_batch",
    "HDR": "hdr",
    "HDR, batches": "hdr_batch",
}


def summarize(settings: Any, source: str, num_classes: int, records: Sequence[Record]) -> Summary:
    """The summary of path records, and its picture."""
    n = int(records[0]["n"])
    title = (
        f"Mode connectivity: {source}, {settings.model}, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    note = f"test set, n = {n:,}; mean ± standard deviation over seeds"
    draw(
        panels(settings, records),
        settings.out / "paths.png",
        title=f"{title}\n{note}",
        columns=len(METRICS),
    )
    return Summary(
        settings.out,
        title,
        (table(settings, records, note),),
        {"paths.png": "accuracy, loss, MIR and HDR on the way from one copy to the other"},
        tuple(claims(settings, num_classes, records)),
    )


def _statistics(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["statistics"] for record in records))


def panels(settings: Any, records: Sequence[Record]) -> list[Panel]:
    """A row a learning rate, a column a metric; colours for branching, styles for statistics."""
    found = []
    for rate in settings.learning_rates:
        for title, metric in METRICS.items():
            lines = [
                Line(
                    f"apart from step {step}" + (f", {kind}" if kind == INTERPOLATED else ""),
                    *curves(
                        select(records, learning_rate=rate, branch_step=step, statistics=kind),
                        metric,
                        by="point",
                    ),
                    colour=f"C{number}",
                    style="--" if kind == INTERPOLATED else "-",
                )
                for number, step in enumerate(settings.branch_steps)
                for kind in _statistics(records)
            ]
            # No line for collapse: it would squeeze a path that is far from it. Barriers are of accuracy
            # and loss: there the chords show them.
            chords = metric in ("accuracy", "loss")
            found.append(Panel(f"{title}, learning rate {rate:g}", "ω", lines, chords=chords))
    return found


_INFORMATION = ("mir", "mir_batch", "hdr", "hdr_batch")


def paths(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One record a path: the barrier, and what lies at the ends and in the middle."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        key = tuple(record[k] for k in ("learning_rate", "branch_step", "statistics", "seed"))
        groups.setdefault(key, []).append(record)
    found = []
    for (rate, step, kind, seed), path in groups.items():
        middle = path[len(path) // 2]
        ends = [path[0], path[-1]]
        found.append(
            {
                "learning_rate": rate,
                "branch_step": step,
                "statistics": kind,
                "seed": seed,
                "barrier": barrier([r["point"] for r in path], [r["loss"] for r in path]),
                "end_accuracy": sum(r["accuracy"] for r in ends) / 2,
                "lower_end_accuracy": min(r["accuracy"] for r in ends),
                "middle_accuracy": middle["accuracy"],
                "middle": middle["point"],
                "best_between": max(
                    r["accuracy"] for r in path if abs(r["point"] - 0.5) < 0.1 + 1e-9
                ),
                "least_accuracy": min(r["accuracy"] for r in path),
                **{f"end_{m}": sum(r[m] for r in ends) / 2 for m in _INFORMATION},
                **{f"middle_{m}": middle[m] for m in _INFORMATION},
                "least_hdr_at": min(path, key=lambda r: r["hdr_batch"])["point"],
                "least_hdr": min(r["hdr_batch"] for r in path),
                "lower_end_hdr": min(r["hdr_batch"] for r in ends),
            }
        )
    return found


def table(settings: Any, records: Sequence[Record], note: str) -> Table:
    """Barriers and middles."""
    columns = {
        "loss barrier": "barrier",
        "accuracy, ends": "end_accuracy",
        "accuracy, middle": "middle_accuracy",
        "MIR, ends": "end_mir",
        "MIR, middle": "middle_mir",
        "MIR b, ends": "end_mir_batch",
        "MIR b, middle": "middle_mir_batch",
        "HDR, ends": "end_hdr",
        "HDR, middle": "middle_hdr",
        "HDR b, ends": "end_hdr_batch",
        "HDR b, middle": "middle_hdr_batch",
    }
    rows, each = [], paths(records)
    for rate in settings.learning_rates:
        for step in settings.branch_steps:
            for kind in _statistics(records):
                own = select(each, learning_rate=rate, branch_step=step, statistics=kind)
                cells = [cell(own, metric) for metric in columns.values()]
                rows.append((f"{rate:g}", f"{step:,}", kind, *cells))
    middle = each[0]["middle"]
    return Table(
        f"Paths between copies: {note}; middle: ω = {middle:g}; barrier in nats above the line between "
        f"the ends; b: mean over batches of {settings.metric_batch}",
        ("learning rate", "apart from step", "batch statistics", *columns),
        tuple(rows),
    )


CHANCE, CONNECTED, BETWEEN = "chance for ω in 0.4 to 0.6", "connected", "between"
_PUBLISHED = {
    "cifar10": {3e-2: CHANCE, 3e-3: BETWEEN, 3e-4: CONNECTED},
    "cifar100": {3e-2: CONNECTED, 3e-3: CONNECTED, 3e-4: CONNECTED},
}


def claims(settings: Any, num_classes: int, records: Sequence[Record]) -> list[Claim]:
    """The paper's statements on this data set, of copies that part at the start; batches as published."""
    kind = _statistics(records)[-1]
    each = select(paths(records), statistics=kind, branch_step=0)
    if not each:
        return []
    published = _PUBLISHED.get(settings.dataset, {})
    found, states = [], {}
    for rate in settings.learning_rates:
        own = select(each, learning_rate=rate)
        states[rate] = state = _state(own, num_classes)
        wanted = published.get(rate)
        if state is None:
            verdict = "not decided: an end is below three times chance"
        elif wanted is None:
            verdict = f"not published for this data set; here: {state}"
        else:
            verdict = f"{'agrees' if state == wanted else 'disagrees'}: {state}"
        found.append(
            Claim(
                f"accuracy on the path, learning rate {rate:g}",
                f"{wanted} ({settings.dataset})" if wanted else "-",
                f"middle {cell(own, 'middle_accuracy')}, lower end {cell(own, 'lower_end_accuracy')}, barrier "
                f"{cell(own, 'barrier')} ({kind})",
                f"{verdict} (chance: no point there above 1.5 / C; connected: no point more than 2 points below "
                "the lower end)",
            )
        )
    rate = 3e-2
    if rate in states and CHANCE in published.values():
        own = select(each, learning_rate=rate)
        found.append(_hump(own, states[rate]))
        found.append(_dips(own, states[rate]))
    return found


def _state(own: Sequence[Record], num_classes: int) -> str | None:
    """Of the means over seeds; None where the ends have learned too little to tell."""

    def mean(name: str) -> float:
        return sum(r[name] for r in own) / len(own)

    if mean("lower_end_accuracy") < 3 / num_classes:
        return None
    if mean("best_between") < 1.5 / num_classes:
        return CHANCE
    return CONNECTED if mean("least_accuracy") >= mean("lower_end_accuracy") - 0.02 else BETWEEN


def _reading(state: str | None, holds: Sequence[bool]) -> str:
    if state != CHANCE:
        return "not decided: the published course is that of paths through chance"
    word = "agrees" if all(holds) else "not decided" if any(holds) else "disagrees"
    return f"{word}: in {sum(holds)} of {len(holds)} seeds"


def _hump(own: Sequence[Record], state: str | None) -> Claim:
    return Claim(
        "MIR (batches) has a hump in the middle, learning rate 0.03",
        "a hump where accuracy is at chance (cifar10)",
        f"middle {cell(own, 'middle_mir_batch')}, ends {cell(own, 'end_mir_batch')}; whole set: middle "
        f"{cell(own, 'middle_mir')}, ends {cell(own, 'end_mir')}",
        _reading(state, [r["middle_mir_batch"] > r["end_mir_batch"] for r in own]),
    )


def _dips(own: Sequence[Record], state: str | None) -> Claim:
    def dips(r: Record) -> bool:
        near = 0.02 <= r["least_hdr_at"] <= 0.25 or 0.75 <= r["least_hdr_at"] <= 0.98
        return near and r["least_hdr"] < r["lower_end_hdr"]

    places = ", ".join(f"{r['least_hdr_at']:.2f}" for r in own)
    return Claim(
        "HDR (batches) dips near the ends, learning rate 0.03",
        "dips near ω 0.1 and 0.93 (cifar10)",
        f"least {cell(own, 'least_hdr')} at ω {places}; lower end {cell(own, 'lower_end_hdr')}",
        _reading(state, [dips(r) for r in own]),
    )
