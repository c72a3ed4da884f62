"""The summary of a grokking run: when networks generalise, and which measures move before that."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from train.evaluation.closed_forms import closed_forms
from train.modular.course import (
    GENERALISED,
    MEASURES,
    MEMORISED,
    by_seed,
    first_step,
    halfway,
    leads,
)
from train.modular.measure import MAIN
from train.modular.rules import rules_table, turns_table
from train.modular.settings import Grokking
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, cell, cell_of_steps, curves, select, without_direction
from train.reporting.summary import Claim, Summary, Table


def summarize(settings: Grokking, records: Sequence[Record], progress: Sequence[Record]) -> Summary:
    """The summary of a grokking run, whose pictures are drawn to its folder."""
    joined = join(records, progress)
    title = (
        f"Grokking: {settings.operation} modulo {settings.modulus}, width {settings.width}, "
        f"{settings.steps:,} steps, seeds: {settings.seeds}"
    )
    main = main_records(settings, joined)
    sizes = ", ".join(
        f"{name} n = {int(main[0][f'{split}_n']):,}{without_direction(main, f'{split}_')}"
        for name, split in (("training", "train"), ("test", "test"))
    )
    fraction, decay = settings.fractions[0], settings.weight_decays[0]
    note = f"fraction {fraction:g}, weight decay {decay:g}; {sizes}"
    forms = closed_forms(settings.modulus)
    draw(
        main_panels(main, forms),
        settings.out / "grokking.png",
        title=f"{title}\n{note}; mean ± standard deviation over seeds",
    )
    draw(
        seed_panels(main),
        settings.out / "seeds.png",
        title=f"{title}\n{note}; a line for each seed",
    )
    kinds = kinds_of(joined)
    draw(
        kind_panels(kinds, forms),
        settings.out / "controls.png",
        title=f"{title}\ncontrols and interventions; band: standard deviation over seeds",
    )
    tables = (
        kinds_table(kinds),
        interventions_table(settings, main, joined),
        leads_table(settings, main),
        halfway_table(kinds),
        rules_table(main, kinds),
        turns_table(main),
    )
    pictures = {
        "grokking.png": "the main runs: accuracy and, as far as measured, MIR, HDR, collapse, "
        "weight norm, Fourier measures",
        "seeds.png": "each seed: test accuracy and, as far as measured, MIR, HDR and debiased MIR",
        "controls.png": "every kind of run there is: main, controls, interventions",
    }
    # Of what was not trained or measured there is nothing to say.
    tables = tuple(table for table in tables if table.rows)
    return Summary(settings.out, title, tables, pictures, claims(main))


def join(records: Sequence[Record], progress: Sequence[Record]) -> list[Record]:
    """The metric records, with the Fourier measures of the same lane and step."""
    names = ("step", "seed", "kind", "fraction", "weight_decay")
    # Joined by what identifies a lane and a step in both files.
    known = {tuple(r[k] for k in names): r for r in progress}
    return [{**r, **known.get(tuple(r[k] for k in names), {})} for r in records]


def main_records(settings: Grokking, records: Sequence[Record]) -> list[Record]:
    """The main records of the first fraction and weight decay."""
    return select(
        records,
        kind=MAIN,
        fraction=settings.fractions[0],
        weight_decay=settings.weight_decays[0],
    )


def kinds_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by kind, fraction and weight decay, the main ones first."""
    kinds: dict[str, list[Record]] = {}
    for r in sorted(records, key=lambda r: r["kind"] != MAIN):
        name = f"{r['kind']}, fraction {r['fraction']:g}, decay {r['weight_decay']:g}"
        kinds.setdefault(name, []).append(r)
    return kinds


def leads_table(settings: Grokking, main: Sequence[Record]) -> Table:
    """By how many steps each measure moves before test accuracy."""
    rows = []
    for metric, of_seeds in leads(main).items():
        text = cell_of_steps(of_seeds)
        counts = (sum(sign * lead > 0 for lead in of_seeds) for sign in (1, 0, -1))
        earlier, _, later = counts
        rows.append(
            (MEASURES[metric], text, f"{earlier}", f"{len(of_seeds) - earlier - later}", f"{later}")
        )
    title = (
        "Lead over test accuracy: steps by which a measure is half-way to its final level, for "
        "good, before test accuracy is; seeds that generalise; "
        f"events are {settings.eval_every} steps apart"
    )
    return Table(title, ("measure", "lead (steps)", "earlier", "same event", "later"), tuple(rows))


def interventions_table(
    settings: Grokking, main: Sequence[Record], records: Sequence[Record]
) -> Table:
    """Whether the losses bring generalisation forward, against the main run of the same seed."""
    control = {
        of_seed[0]["seed"]: first_step(of_seed, "test_accuracy", GENERALISED)
        for of_seed in by_seed(main)
    }
    rows = []
    for kind in ("+MI", "+ED"):
        pairs = [
            (first_step(of_seed, "test_accuracy", GENERALISED), control[of_seed[0]["seed"]])
            for of_seed in by_seed(select(records, kind=kind))
        ]
        if not pairs:
            continue
        # Infinity for a seed that never generalises makes it later than any other.
        earlier, later = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        both = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        median = f"{np.median(both):+,.0f} ({len(both)})" if both else "-"
        p = stats.binomtest(earlier, earlier + later).pvalue if earlier + later else 1.0
        same = f"{len(pairs) - earlier - later}"
        rows.append((kind, f"{earlier}", same, f"{later}", median, f"{p:.3f}"))
    first, last = settings.information_steps
    title = (
        f"Generalisation with a loss switched on from step {first:,} to {last:,}, beside the "
        "main run of the same seed (never counts as later; median difference in steps where both "
        "generalise; two-sided sign test)"
    )
    columns = ("loss", "earlier", "same", "later", "median difference (seeds)", "p")
    return Table(title, columns, tuple(rows))


def kinds_table(kinds: Mapping[str, Sequence[Record]]) -> Table:
    """When each kind memorises and generalises, and where it ends."""
    rows = []
    for name, records in kinds.items():
        seeds = by_seed(records)
        last = [of_seed[-1] for of_seed in seeds]
        rows.append(
            (
                name,
                _steps([first_step(of_seed, "train_accuracy", MEMORISED) for of_seed in seeds]),
                _steps([first_step(of_seed, "test_accuracy", GENERALISED) for of_seed in seeds]),
                *(
                    cell(last, m)
                    for m in ("test_accuracy", "test_mir", "test_hdr", "train_mir", "train_hdr")
                ),
                *(cell(last, m) for m in ("test_mir_debiased", "train_nc1", "weight_norm")),
            )
        )
    columns = ("network", "memorised", "generalised", "test accuracy", "MIR, test", "HDR, test")
    columns += ("MIR, train", "HDR, train", "debiased MIR, test", "NC1, train", "weight norm")
    title = (
        f"First step of train accuracy {MEMORISED:g} (memorised) and of test accuracy "
        f"{GENERALISED:g} (generalised), with how many seeds get there; the rest at the last step"
    )
    return Table(title, columns, tuple(rows))


def _steps(steps: Sequence[float]) -> str:
    reached = [step for step in steps if math.isfinite(step)]
    if not reached:
        return f"never (0 of {len(steps)})"
    return f"{cell_of_steps(reached)} ({len(reached)} of {len(steps)})"


def halfway_table(kinds: Mapping[str, Sequence[Record]]) -> Table:
    """When each measure is half-way to its final level, in the main runs and in the controls."""
    rows = []
    for name, records in kinds.items():
        cells = []
        for metric in ("test_accuracy", *MEASURES):
            steps = [halfway(of_seed, metric) for of_seed in by_seed(records)]
            # Seeds without a move have no such step.
            known = [step for step in steps if not math.isnan(step)]
            cells.append(cell_of_steps(known))
        rows.append((name, *cells))
    title = (
        "Step from which on a measure is half-way to its final level, for good, after "
        "memorisation: what does so at the same step where nothing generalises does not announce it"
    )
    return Table(title, ("network", "test accuracy", *MEASURES.values()), tuple(rows))


def main_panels(main: Sequence[Record], forms: Mapping[str, float]) -> list[Panel]:
    """The panels of the main runs, over the steps; those of which nothing was measured are none."""
    shown: dict[str, dict[str, str]] = {
        "accuracy": {"train": "train_accuracy", "test": "test_accuracy"},
        "cross-entropy": {
            "train": "train_loss",
            "test": "test_loss",
            "restricted, all": "restricted_loss",
            "excluded, train": "excluded_loss",
        },
        "MIR": {
            "train": "train_mir",
            "test": "test_mir",
            "all pairs": "all_mir",
            "test, debiased": "test_mir_debiased",
        },
        "HDR": {
            "train": "train_hdr",
            "test": "test_hdr",
            "all pairs": "all_hdr",
            "test, debiased": "test_hdr_debiased",
        },
        "entropies, test (nats)": {
            "features": "test_entropy1",
            "head": "test_entropy2",
            "joint": "test_joint_entropy",
        },
        "layers, MIR (test)": {
            "attention": "test_attention_mir",
            "hidden": "test_hidden_mir",
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
    panels = []
    for title, metrics in shown.items():
        lines = [
            Line(name, *line, colour=f"C{number}")
            for number, (name, metric) in enumerate(metrics.items())
            if (line := _from_step_one(main, metric))[0]
        ]
        marks = levels(forms, list(metrics.values())) if title in ("MIR", "HDR") else {}
        log = title in ("cross-entropy", "neural collapse (train)")
        scale = "log" if log else "linear"
        if lines:
            panels.append(Panel(title, "step", lines, marks, "log", scale))
    return panels


def seed_panels(main: Sequence[Record]) -> list[Panel]:
    """The panels with a line for each seed: means smear what seeds do at different steps."""
    shown = {
        "test accuracy": "test_accuracy",
        "MIR, test": "test_mir",
        "HDR, test": "test_hdr",
        "test loss": "test_loss",
        "debiased MIR, test": "test_mir_debiased",
        "debiased MIR, unmirrored": "unmirrored_mir_debiased",
    }
    panels = []
    for title, metric in shown.items():
        lines = [
            Line(f"seed {of_seed[0]['seed']}", *_from_step_one(of_seed, metric), colour=f"C{i}")
            for i, of_seed in enumerate(by_seed(main))
        ]
        lines = [line for line in lines if line.x]
        scale = "log" if metric == "test_loss" else "linear"
        if lines:
            panels.append(Panel(title, "step", lines, {}, "log", scale))
    return panels


def kind_panels(kinds: Mapping[str, Sequence[Record]], forms: Mapping[str, float]) -> list[Panel]:
    """The panels of controls and interventions, with a line for each kind."""
    panels = []
    for title, metric in {
        "test accuracy": "test_accuracy",
        "MIR, test": "test_mir",
        "HDR, test": "test_hdr",
        "test loss": "test_loss",
        "MIR, train": "train_mir",
        "HDR, train": "train_hdr",
        "weight norm": "weight_norm",
        "debiased MIR, test": "test_mir_debiased",
        "debiased MIR, unmirrored": "unmirrored_mir_debiased",
    }.items():
        lines = [
            Line(name, *_from_step_one(records, metric), colour=f"C{number}")
            for number, (name, records) in enumerate(kinds.items())
        ]
        lines = [line for line in lines if line.x]
        scale = "log" if metric == "test_loss" else "linear"
        if lines:
            panels.append(Panel(title, "step", lines, levels(forms, [metric]), "log", scale))
    return panels


def _from_step_one(records: Sequence[Record], metric: str) -> tuple[list, list, list]:
    # The axis is logarithmic and has no place for step 0.
    return curves([r for r in records if r["step"] > 0], metric)


def claims(main: Sequence[Record]) -> tuple[Claim, ...]:
    """The published course, in the seeds that memorise first and generalise later."""
    rows = []
    for of_seed in by_seed(main):
        memorised = first_step(of_seed, "train_accuracy", MEMORISED)
        generalised = first_step(of_seed, "test_accuracy", GENERALISED)
        if memorised < generalised < math.inf:
            at = {r["step"]: r for r in of_seed}
            rows.append((at[memorised], at[generalised], of_seed[-1]))
    seeds = len(by_seed(main))
    courses = {
        "mir": (-1, "falls", "0.47 when memorised, 0.62 at step 1e3, 0.36 at the transition"),
        "hdr": (1, "rises", "0.08 before, a spike to 0.49 at the transition, then 0.12"),
        # What the published course would be without the size of the batch.
        "mir_debiased": (-1, "falls", "as MIR"),
        "hdr_debiased": (1, "rises", "as HDR"),
    }
    made = []
    for metric, (sign, word, published) in courses.items():
        for split in ("train", "test"):
            name = f"{split}_{metric}"
            # Runs of an earlier version lack some.
            if any(row[i].get(name) is None for row in rows for i in range(3)):
                continue
            changes = [sign * (row[1][name] - row[0][name]) for row in rows]
            as_published, opposite = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
            # A single seed decides nothing, and neither do seeds that disagree.
            verdict = "not decided"
            if len(rows) >= 2 and as_published == len(rows):
                verdict = "agrees"
            elif len(rows) >= 2 and opposite == len(rows):
                verdict = "disagrees"
            # Means when memorised, when generalised and at the end.
            parts = [cell([row[i] for row in rows], name) for i in range(3)]
            made.append(
                Claim(
                    f"{MEASURES[name]}: {word} from memorisation to generalisation",
                    f"{published} (modulus 113; split not stated)",
                    f"{parts[0]} memorised, {parts[1]} generalised, {parts[2]} at the end",
                    f"{verdict}: it {word} in {as_published} of the {len(rows)} seeds (of {seeds}) "
                    "that memorise first and generalise later",
                )
            )
    return tuple(made)
