"""When the network generalises, and which measures move before: tables, pictures, claims."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.evaluate import closed_forms
from train.plots import Line, Panel, draw, levels
from train.records import Record, cell, curves, mean_and_spread, select
from train.summary import Claim, Summary, Table

MAIN = "grokking"
MEMORISED, GENERALISED = 0.99, 0.9
ONSET = 0.25

# What may announce generalisation, and the names for it.
MEASURES = {
    "test_mir": "MIR, test",
    "test_hdr": "HDR, test",
    "train_mir": "MIR, train",
    "train_hdr": "HDR, train",
    "test_effective_rank": "effective rank, test",
    "train_nc1": "NC1, train",
    "weight_norm": "weight norm",
    "restricted_loss": "restricted loss",
    "excluded_loss": "excluded loss",
    "gini_embedding": "Gini, embedding",
    "gini_neurons": "Gini, neurons to logits",
}
LOGARITHMIC = {"train_nc1", "restricted_loss", "excluded_loss", "test_effective_rank"}


def summarize(settings: Any, records: Sequence[Record], progress: Sequence[Record]) -> Summary:
    """The summary of a grokking run, and its pictures."""
    joined = join(records, progress)
    title = (
        f"Grokking: {settings.operation} modulo {settings.modulus}, width {settings.width}, "
        f"{settings.steps:,} steps, seeds: {settings.seeds}"
    )
    main = main_records(settings, joined)
    sizes = f"training n = {int(main[0]['train_n']):,}, test n = {int(main[0]['test_n']):,}"
    note = f"fraction {settings.fractions[0]:g}, weight decay {settings.weight_decays[0]:g}; {sizes}; mean ± "
    note += "standard deviation over seeds"
    forms = closed_forms(settings.modulus)
    draw(main_panels(main, forms), settings.out / "grokking.png", title=f"{title}\n{note}")
    kinds = kinds_of(joined)
    draw(
        kind_panels(kinds, forms),
        settings.out / "controls.png",
        title=f"{title}\ncontrols and interventions; band: standard deviation over seeds",
    )
    tables = (
        kinds_table(kinds),
        leads_table(main),
        ranges_table(kinds),
    )
    pictures = {
        "grokking.png": "the main runs: accuracy, MIR, HDR, collapse, weight norm, Fourier measures",
        "controls.png": "controls and interventions beside the main runs",
    }
    return Summary(settings.out, title, tables, pictures, claims(main))


def join(records: Sequence[Record], progress: Sequence[Record]) -> list[Record]:
    """Metric records with the Fourier measures of the same lane and step."""
    names = ("step", "seed", "kind", "fraction", "weight_decay")
    known = {tuple(r[k] for k in names): r for r in progress}
    return [{**r, **known.get(tuple(r[k] for k in names), {})} for r in records]


def main_records(settings: Any, records: Sequence[Record]) -> list[Record]:
    """Those of the first fraction and weight decay."""
    return select(
        records,
        kind=MAIN,
        fraction=settings.fractions[0],
        weight_decay=settings.weight_decays[0],
    )


def kinds_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by kind, fraction and weight decay, the main ones first."""
    found: dict[str, list[Record]] = {}
    for r in sorted(records, key=lambda r: r["kind"] != MAIN):
        name = f"{r['kind']}, fraction {r['fraction']:g}, decay {r['weight_decay']:g}"
        found.setdefault(name, []).append(r)
    return found


def by_seed(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each seed, in the order of steps."""
    seeds = sorted({r["seed"] for r in records})
    return [sorted(select(records, seed=s), key=lambda r: r["step"]) for s in seeds]


def first_step(records: Sequence[Record], metric: str, level: float) -> float:
    """The first event at which a metric of one seed reaches a level; infinity if it never does."""
    return next((r["step"] for r in records if r[metric] >= level), math.inf)


def series(records: Sequence[Record], metric: str) -> np.ndarray:
    """Values of one seed from memorisation on; logarithms where the metric spans decades."""
    start = first_step(records, "train_accuracy", MEMORISED)
    values = [r.get(metric) for r in records if r["step"] >= start]
    if any(v is None for v in values) or not values:
        return np.empty(0)
    found = np.asarray(values, float)
    return np.log(np.maximum(found, 1e-30)) if metric in LOGARITHMIC else found


def onset(records: Sequence[Record], metric: str) -> float:
    """The first event after memorisation at which a metric of one seed has moved, either way, by a
    quarter of the range that it covers from memorisation to the end; NaN without one.
    """
    values = series(records, metric)
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan
    steps = [r["step"] for r in records][-len(values) :]
    moved = np.abs(values - values[0]) >= ONSET * np.ptp(values)
    return float(steps[int(np.argmax(moved))]) if moved.any() else math.nan


def leads(main: Sequence[Record]) -> dict[str, list[float]]:
    """For each measure and seed that generalises: by how many steps it moves before test accuracy."""
    found: dict[str, list[float]] = {}
    for own in by_seed(main):
        if not math.isfinite(first_step(own, "test_accuracy", GENERALISED)):
            continue
        rise = onset(own, "test_accuracy")
        for metric in MEASURES:
            lead = rise - onset(own, metric)
            if not math.isnan(lead):
                found.setdefault(metric, []).append(lead)
    return found


def leads_table(main: Sequence[Record]) -> Table:
    """Leads over test accuracy."""
    rows = []
    for metric, own in leads(main).items():
        mean, spread = mean_and_spread(own)
        text = f"{mean:,.0f} ± {spread:,.0f}" if len(own) > 1 else f"{mean:,.0f}"
        earlier = sum(lead > 0 for lead in own)
        rows.append((MEASURES[metric], text, f"{earlier} of {len(own)}"))
    title = (
        f"Steps by which a measure moves before test accuracy (each: first event after memorisation at which it "
        f"has moved by {ONSET:g} of its range until the end), over the seeds that generalise"
    )
    return Table(title, ("measure", "lead (steps)", "earlier in"), tuple(rows))


def kinds_table(kinds: Mapping[str, Sequence[Record]]) -> Table:
    """When each kind memorises and generalises, and where it ends."""
    rows = []
    for name, records in kinds.items():
        seeds = by_seed(records)
        last = [own[-1] for own in seeds]
        rows.append(
            (
                name,
                _steps([first_step(own, "train_accuracy", MEMORISED) for own in seeds]),
                _steps([first_step(own, "test_accuracy", GENERALISED) for own in seeds]),
                *(
                    cell(last, m)
                    for m in ("test_accuracy", "test_mir", "test_hdr", "train_mir", "train_hdr")
                ),
                *(cell(last, m) for m in ("train_nc1", "weight_norm")),
            )
        )
    columns = ("network", "memorised", "generalised", "test accuracy", "MIR, test", "HDR, test")
    columns += ("MIR, train", "HDR, train", "NC1, train", "weight norm")
    title = (
        f"First step of train accuracy {MEMORISED:g} (memorised) and of test accuracy {GENERALISED:g} "
        "(generalised), with how many seeds get there; the rest at the last step"
    )
    return Table(title, columns, tuple(rows))


def _steps(steps: Sequence[float]) -> str:
    reached = [step for step in steps if math.isfinite(step)]
    if not reached:
        return f"never (0 of {len(steps)})"
    mean, spread = mean_and_spread(reached)
    return f"{mean:,.0f} ± {spread:,.0f} ({len(reached)} of {len(steps)})"


def ranges_table(kinds: Mapping[str, Sequence[Record]]) -> Table:
    """How far each measure moves after memorisation, in the main runs and in the controls."""
    shown = [m for m in MEASURES if m not in ("restricted_loss", "excluded_loss")]
    rows = []
    for name, records in kinds.items():
        cells = []
        for metric in shown:
            found = [np.ptp(v) for own in by_seed(records) if len(v := series(own, metric))]
            if not found:
                cells.append("-")
                continue
            mean, spread = mean_and_spread(found)
            cells.append(f"{mean:.3f} ± {spread:.3f}" if len(found) > 1 else f"{mean:.3f}")
        rows.append((name, *cells))
    title = (
        "Range that each measure covers from memorisation to the end (NC1 and effective rank: of the logarithm): "
        "what moves as far where nothing generalises does not announce it"
    )
    return Table(title, ("network", *(MEASURES[m] for m in shown)), tuple(rows))


def main_panels(main: Sequence[Record], forms: Mapping[str, float]) -> list[Panel]:
    """Nine panels over the steps."""
    shown: dict[str, dict[str, str]] = {
        "accuracy": {"train": "train_accuracy", "test": "test_accuracy"},
        "cross-entropy": {
            "train": "train_loss",
            "test": "test_loss",
            "restricted, all": "restricted_loss",
            "excluded, train": "excluded_loss",
        },
        "MIR": {"train": "train_mir", "test": "test_mir", "all pairs": "all_mir"},
        "HDR": {"train": "train_hdr", "test": "test_hdr", "all pairs": "all_hdr"},
        "entropies, test (nats)": {
            "features": "test_entropy1",
            "head": "test_entropy2",
            "joint": "test_joint_entropy",
        },
        "layers, MIR (test)": {
            "attention": "layer_attention_mir",
            "hidden": "layer_hidden_mir",
            "stream": "test_mir",
        },
        "neural collapse (train)": {
            "NC1": "train_nc1",
            "NC2 norms": "train_nc2_equinorm",
            "NC2 angles": "train_nc2_equiangle",
            "NC3": "train_nc3",
        },
        "weight norm": {"all weights": "weight_norm"},
        "Gini, and share of the key frequencies": {
            "Gini, embedding": "gini_embedding",
            "Gini, neurons": "gini_neurons",
            "key share of logits": "key_share",
        },
    }
    found = []
    for title, metrics in shown.items():
        lines = [
            Line(name, *line, colour=f"C{number}")
            for number, (name, metric) in enumerate(metrics.items())
            if (line := _from_step_one(main, metric))[0]
        ]
        marks = levels(forms, list(metrics.values())) if title in ("MIR", "HDR") else []
        log = title in ("cross-entropy", "neural collapse (train)")
        scale = "log" if log else "linear"
        found.append(Panel(title, "step", lines, marks, "log", scale))
    return found


def kind_panels(kinds: Mapping[str, Sequence[Record]], forms: Mapping[str, float]) -> list[Panel]:
    """Six panels, a line a kind."""
    found = []
    for title, metric in {
        "test accuracy": "test_accuracy",
        "MIR, test": "test_mir",
        "HDR, test": "test_hdr",
        "weight norm": "weight_norm",
        "MIR, train": "train_mir",
        "HDR, train": "train_hdr",
    }.items():
        lines = [
            Line(name, *_from_step_one(records, metric), colour=f"C{number}")
            for number, (name, records) in enumerate(kinds.items())
        ]
        found.append(Panel(title, "step", lines, levels(forms, [metric]), "log"))
    return found


def _from_step_one(records: Sequence[Record], metric: str) -> tuple[list, list, list]:
    # The axis is logarithmic.
    return curves([r for r in records if r["step"] > 0], metric)


def claims(main: Sequence[Record]) -> tuple[Claim, ...]:
    """The published curve's course, in the seeds that generalise."""
    rows = []
    for own in by_seed(main):
        memorised = first_step(own, "train_accuracy", MEMORISED)
        generalised = first_step(own, "test_accuracy", GENERALISED)
        if math.isfinite(generalised):
            at = {r["step"]: r for r in own}
            rows.append((at[memorised], at[generalised], own[-1]))
    found = []
    seeds = len(by_seed(main))
    published = {
        "train_mir": "0.47 when memorised, 0.62 at step 1e3, 0.36 at the transition (split not stated)",
        "train_hdr": "0.08 before, a spike to 0.49 at the transition, then 0.12 (split not stated)",
    }
    for metric, text in published.items():
        for split in ("train", "test"):
            name = metric.replace("train", split)
            if not rows:
                found.append(
                    Claim(
                        f"{MEASURES[name]}, course",
                        text,
                        "-",
                        f"not decided: 0 of {seeds} seeds generalise",
                    )
                )
                continue
            parts = [cell([row[i] for row in rows], name) for i in range(3)]
            changes = [row[1][name] - row[0][name] for row in rows]
            falls = sum(change < 0 for change in changes)
            wanted = falls if metric == "train_mir" else len(changes) - falls
            word = "falls" if metric == "train_mir" else "rises"
            verdict = (
                "agrees" if wanted == len(rows) else "disagrees" if wanted == 0 else "not decided"
            )
            found.append(
                Claim(
                    f"{MEASURES[name]}: {word} from memorisation to generalisation",
                    text,
                    f"{parts[0]} memorised, {parts[1]} generalised, {parts[2]} at the end",
                    f"{verdict}: it {word} in {wanted} of {len(rows)} seeds that generalise",
                )
            )
    return tuple(found)
