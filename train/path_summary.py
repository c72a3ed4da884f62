"""Tables and pictures of the paths between copies."""

from collections.abc import Sequence
from typing import Any

from train.evaluate import closed_forms
from train.paths import barrier
from train.plots import Line, Panel, draw
from train.records import Record, cell, curves, select
from train.summary import Claim, Summary, Table

INTERPOLATED, RECOMPUTED, NO_STATISTICS = "interpolated", "recomputed", "no batch norm"
METRICS = {"accuracy": "accuracy", "cross-entropy": "loss", "MIR": "mir", "HDR": "hdr"}


def summarize(settings: Any, source: str, num_classes: int, records: Sequence[Record]) -> Summary:
    """The summary of path records, and its picture."""
    n = int(records[0]["n"])
    title = (
        f"Mode connectivity: {source}, {settings.model}, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    note = f"test set, n = {n:,}; mean ± standard deviation over seeds"
    draw(
        panels(settings, num_classes, records),
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


def panels(settings: Any, num_classes: int, records: Sequence[Record]) -> list[Panel]:
    """A row a learning rate, a column a metric; colours for branching, styles for statistics."""
    forms = closed_forms(num_classes)
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
            value = forms.get(metric)
            levels = [(f"at collapse: {value:.3f}", value, "black")] if value else []
            found.append(Panel(f"{title}, learning rate {rate:g}", "ω", lines, levels))
    return found


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
                "end_mir": sum(r["mir"] for r in ends) / 2,
                "middle_mir": middle["mir"],
                "end_hdr": sum(r["hdr"] for r in ends) / 2,
                "middle_hdr": middle["hdr"],
                "least_hdr": min(r["hdr"] for r in path),
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
        "HDR, ends": "end_hdr",
        "HDR, middle": "middle_hdr",
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
        f"Paths between copies: {note}; middle: ω = {middle:g}; barrier in nats above the line between the ends",
        ("learning rate", "apart from step", "batch statistics", *columns),
        tuple(rows),
    )


def claims(settings: Any, num_classes: int, records: Sequence[Record]) -> list[Claim]:
    """The paper's statements for CIFAR-10, each against the copies that part at the start."""
    kind = _statistics(records)[-1]
    step = min(settings.branch_steps)
    each = select(paths(records), statistics=kind, branch_step=step)
    published = {
        3e-2: "CIFAR-10: chance for ω in 0.4 to 0.6",
        3e-3: "CIFAR-10: between the other two",
        3e-4: "CIFAR-10: connected",
    }
    found = []
    for rate in settings.learning_rates:
        own = select(each, learning_rate=rate)
        middle = sum(r["middle_accuracy"] for r in own) / len(own)
        end = sum(r["lower_end_accuracy"] for r in own) / len(own)
        chance = 1 / num_classes
        if middle < 1.5 * chance:
            state = "chance in the middle (below 1.5 / C)"
        elif middle > end - 0.02:
            state = "connected (the middle is at most 2 points below the lower end)"
        else:
            state = "in between: neither chance nor connected"
        agrees = {3e-2: "chance", 3e-3: "in between", 3e-4: "connected"}.get(rate)
        verdict = "not published"
        if agrees is not None:
            verdict = "agrees" if state.startswith(agrees) else "disagrees"
        measured = (
            f"middle {cell(own, 'middle_accuracy')}, lower end {cell(own, 'lower_end_accuracy')}, barrier "
            f"{cell(own, 'barrier')} ({kind} statistics, apart from step {step})"
        )
        found.append(
            Claim(
                f"accuracy on the path, learning rate {rate:g}",
                published.get(rate, "-"),
                measured,
                f"{verdict}: {state}",
            )
        )
    own = select(each, learning_rate=max(settings.learning_rates))
    humps = [r["middle_mir"] - r["end_mir"] for r in own]
    higher = sum(hump > 0 for hump in humps)
    found.append(
        Claim(
            f"MIR has a hump in the middle, learning rate {max(settings.learning_rates):g}",
            "CIFAR-10: a hump where accuracy is at chance",
            f"middle {cell(own, 'middle_mir')}, ends {cell(own, 'end_mir')}, whole set",
            f"{'agrees' if higher == len(own) else 'disagrees' if higher == 0 else 'not decided'}: higher in the "
            f"middle in {higher} of {len(own)} seeds",
        )
    )
    return found
