"""Linear mode connectivity of two copies of one initialisation: `python -m train.connectivity`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 20 minutes on 2
cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.data.batches import stream
from train.data.subsets import balanced_part
from train.data.types import ImageData, RecordSplit, Split, about, source_of
from train.engine.sharding import LANES, mesh_of
from train.engine.state import Network, TrainState
from train.engine.trainer import is_slow
from train.evaluation.evaluator import Evaluator
from train.reporting.plots import Line, Panel, draw
from train.reporting.records import Record, cell, curves, select, without_direction
from train.reporting.summary import Claim, Summary, Table
from train.run import hosts
from train.run.command import run_command
from train.run.files import read_jsonl, write_jsonl
from train.run.folder import claim as claim_folder
from train.run.lanes import Lane, lanes_of, take_lane
from train.run.loop import Result
from train.run.settings import PAPER, SMALL, InformationWeights, LabelSmoothing
from train.supervised import SupervisedTraining, fit, load_data


@dataclasses.dataclass(frozen=True)
class Connectivity(LabelSmoothing, InformationWeights, SupervisedTraining):
    """Measures accuracy, loss, MIR and HDR on the line between two trained copies of a network."""

    refused: ClassVar[dict[str, str]] = {
        "learning_rate": "learning rates are what this experiment sweeps: give --learning-rates."
    }

    learning_rates: tuple[float, ...] = (3e-2, 3e-3, 3e-4)
    """Peak learning rates of SGD, decayed to 0 by a cosine. Every one is trained with every seed,
    in two copies or more."""
    branch_steps: tuple[int, ...] = (0,)
    """Steps at which a second copy departs from the first: from there on it has another order of
    the data and other augmentation. One second copy is trained for every step given."""
    points: int = 21
    """Number of points on each path, both ends included."""
    path_samples: int | None = None
    """Number of test samples on which each point is measured, a class-balanced subset; if not
    given, all of them."""
    statistics_batches: int = 20
    """Number of training batches (of `eval_batch` samples) from which the statistics of batch norm
    are recomputed."""

    def __post_init__(self):
        super().__post_init__()
        # An odd number, so that one of the points is the middle.
        if self.points < 5 or self.points % 2 == 0:
            raise ValueError(f"points must be odd and at least 5, got {self.points}.")
        self.at_least_one("statistics_batches", "path_samples")
        self.distinct("learning_rates")
        self.distinct("branch_steps")
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be positive, got {self.learning_rates}.")
        if not all(0 <= step < self.steps for step in self.branch_steps):
            raise ValueError(
                f"branch_steps must be in [0, steps = {self.steps}), got {self.branch_steps}."
            )


PRESETS = {
    "small": Connectivity(
        **SMALL,
        augment=True,
        steps=1000,
        eval_every=1000,
        branch_steps=(0, 200),
        path_samples=2000,
        seeds=3,
        out=Path("runs/connectivity"),
    ),
    "smoke": Connectivity(
        steps=20,
        eval_every=20,
        learning_rates=(3e-2, 3e-3),
        branch_steps=(0, 10),
        points=5,
        out=Path("runs/connectivity-smoke"),
    ),
    "paper": Connectivity(
        **PAPER,
        eval_every=2**16,
        branch_steps=(0, 2**14),
        seeds=3,
        out=Path("runs/connectivity-paper"),
    ),
}


def run(settings: Connectivity, *, quiet: bool = False) -> Summary:
    """Trains the copies, and measures the networks on the lines between them."""
    data = load_data(settings)
    measured = data.test
    if settings.path_samples is not None:
        measured = balanced_part(measured, settings.path_samples, name="path_samples")
    folder = claim_folder(settings, about(data))
    # The training is a run in a folder below, so that it resumes from its last checkpoint.
    training = dataclasses.replace(settings, out=folder / "training")
    result = fit(training, data, copies(settings), quiet=quiet)
    file = folder / "path.jsonl"
    # An earlier call may have been ended among the paths.
    known = hosts.from_first(lambda: read_jsonl(file) if file.exists() else [])
    # JSON has no NaN.
    known = [{k: math.nan if v is None else v for k, v in record.items()} for record in known]
    records: list[Record] = []
    for of_path in path_records(settings, data, measured, result, known):
        records += of_path
        # Written only when there is something new, so that the file never shrinks.
        if len(records) > len(known):
            write_jsonl(file, records)
    return summarize(settings, source_of(data), data.num_classes, records).write()


def copies(settings: Connectivity) -> list[Lane]:
    """The lanes: for each learning rate and seed copy 0, and one more copy for each branch step."""
    lanes = []
    for lane in lanes_of(settings, learning_rate=settings.learning_rates):
        lanes.append(dataclasses.replace(lane, tags={**lane.tags, "copy": 0}))
        for number, step in enumerate(settings.branch_steps, 1):
            tags = {**lane.tags, "copy": number, "branch_step": step}
            lanes.append(dataclasses.replace(lane, tags=tags, copy=number, branch_step=step))
    return lanes


def path_records(
    settings: Connectivity,
    data: ImageData,
    measured: Split | RecordSplit,
    result: Result,
    known: Sequence[Record] = (),
) -> Iterator[Sequence[Record]]:
    """Metrics on the split `measured` of the points on the line from copy 0 to each other copy.

    Paths among the records `known` are not measured again.
    """
    network = Network.of(settings, data)
    # The points are lanes. All of them under one `vmap`, but one on each row of the mesh after the
    # other where batched convolutions are slow.
    devices = None if settings.devices is None else min(settings.devices, settings.points)
    mesh = mesh_of(settings.points, 1, devices=devices)
    size = mesh.shape[LANES] if is_slow(settings.model) else settings.points
    evaluate = Evaluator(network, measured, data.num_classes, settings, mesh, networks=size)
    recompute = Statistics(
        network,
        data.train,
        momentum=settings.batch_norm_momentum,
        batch_size=settings.eval_batch,
        batches=settings.statistics_batches,
    )
    points = np.linspace(0, 1, settings.points).tolist()
    places = {
        (lane.seed, lane.knobs.learning_rate, lane.copy): i for i, lane in enumerate(result.lanes)
    }
    for place, lane in enumerate(result.lanes):
        if lane.copy == 0:
            continue
        first = take_lane(result.states, places[lane.seed, lane.knobs.learning_rate, 0])
        path = interpolate(first, take_lane(result.states, place), points)
        # Interpolated statistics are not those of the interpolated weights: measure with both.
        normed = bool(jax.tree.leaves(path.rest))
        for kind in (INTERPOLATED, RECOMPUTED) if normed else (NO_STATISTICS,):
            which = {"seed": lane.seed, **lane.tags, "statistics": kind}
            of_path = select(known, **which)
            if len(of_path) < settings.points:
                values: list[Record] = []
                for start in range(0, settings.points, size):
                    part = jax.tree.map(lambda x, s=start: x[s : s + size], path)
                    values += evaluate(recompute(part) if kind == RECOMPUTED else part)
                of_path = [
                    {**which, "point": point, **of_point}
                    for point, of_point in zip(points, values, strict=True)
                ]
            yield of_path


def interpolate(first: TrainState, second: TrainState, points: Sequence[float]) -> TrainState:
    """The networks `(1 - ω) first + ω second`, stacked, in both weights and batch statistics.

    At ω = 0 and ω = 1 they are the two networks, bit for bit.
    """
    along = jnp.asarray(points)

    def line(a: Array, b: Array) -> Array:
        w = along.reshape(-1, *[1] * a.ndim).astype(a.dtype)
        # Selected at the ends, where the sum could still change the sign of a zero.
        return jnp.where(w == 0, a, jnp.where(w == 1, b, (1 - w) * a + w * b))

    params, rest = (
        jax.tree.map(line, getattr(first, k), getattr(second, k)) for k in ("params", "rest")
    )
    # What no evaluation reads is left out; the rest is the same at every point.
    bare = first._replace(params=None, rest=None, opt_state=None, masks=None)
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(points), *jnp.shape(x))), bare)
    return repeated._replace(params=params, rest=rest)


class Statistics:
    """Recomputes the statistics of batch norm for given weights, as means over training batches.

    Whole batches pass through the network as in training, and the statistics of every batch norm
    are averaged over `batches` batches of `batch_size` samples (seed 0, no augmentation).
    """

    def __init__(
        self,
        network: Network,
        split: Split | RecordSplit,
        *,
        momentum: float,
        batch_size: int,
        batches: int,
    ):
        # Training moves the statistics r to m r + (1 - m) batch. From r = 0 that is (1 - m) batch,
        # which is divided by 1 - m below.
        share = 1 - momentum
        size = min(batch_size, len(split))
        drawn = itertools.islice(stream(split, batch_size=size, seed=0), batches)
        self._images = [batch["image"] for batch in drawn]

        def one(total: Any, params: Any, zero: Any, images: Array) -> Any:
            moved = network.apply(params, zero, images, train=True).rest
            return jax.tree.map(lambda t, r: t + r / (share * batches), total, moved)

        self._add = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))

    def __call__(self, states: TrainState) -> TrainState:
        """The stacked states with their statistics recomputed."""
        zeros = total = jax.tree.map(jnp.zeros_like, states.rest)
        for images in self._images:
            total = self._add(total, states.params, zeros, images)
        return states._replace(rest=total)


def barrier(points: Sequence[float], losses: Sequence[float]) -> float:
    """The largest height of the loss above the straight line between its ends; at least 0."""
    places, heights = np.asarray(points, float), np.asarray(losses, float)
    line = np.interp(places, places[[0, -1]], heights[[0, -1]])
    return float(np.max(heights - line))


# Where the statistics of batch norm on a path come from.
INTERPOLATED, RECOMPUTED, NO_STATISTICS = "interpolated", "recomputed", "no batch norm"
# Columns of the picture, and the metrics that they show.
METRICS = {
    "accuracy": "accuracy",
    "cross-entropy": "loss",
    "MIR": "mir",
    "MIR, batches": "mir_batch",
    "MIR, debiased": "mir_debiased",
    "HDR": "hdr",
    "HDR, batches": "hdr_batch",
    "HDR, debiased": "hdr_debiased",
}


def summarize(
    settings: Connectivity, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """Draws the picture, and sums up the records of all paths in a table and claims."""
    n = int(records[0]["n"])
    title = (
        f"Mode connectivity: {source}, {settings.model}, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    note = f"test set, n = {n:,}{without_direction(records, '')}; "
    note += "mean ± standard deviation over seeds"
    picture, columns = settings.out / "paths.png", len(METRICS)
    draw(panels(settings, records), picture, title=f"{title}\n{note}", columns=columns)
    return Summary(
        settings.out,
        title,
        (table(settings, records, note),),
        {picture.name: "accuracy, loss, MIR and HDR on the way from one copy to the other"},
        tuple(claims(settings, num_classes, records)),
    )


def _statistics(records: Sequence[Record]) -> list[str]:
    """The kinds of batch statistics that were measured, in their order."""
    return list(dict.fromkeys(record["statistics"] for record in records))


def panels(settings: Connectivity, records: Sequence[Record]) -> list[Panel]:
    """A row for each learning rate and a column for each metric.

    The colour of a line says when the copies part, its style where the batch statistics come from.
    """
    drawn = []
    for rate, (title, metric) in itertools.product(settings.learning_rates, METRICS.items()):
        lines = []
        for number, step in enumerate(settings.branch_steps):
            for kind in _statistics(records):
                along = select(records, learning_rate=rate, branch_step=step, statistics=kind)
                label, style = f"apart from step {step}", "-"
                if kind == INTERPOLATED:
                    label, style = f"{label}, {kind}", "--"
                points = curves(along, metric, by="point")
                lines.append(Line(label, *points, colour=f"C{number}", style=style))
        # No lines for the values at collapse, which are far away and would flatten the paths. A
        # barrier is a height above the chord, and is one of accuracy or loss.
        chords = metric in ("accuracy", "loss")
        drawn.append(Panel(f"{title}, learning rate {rate:g}", "ω", lines, chords=chords))
    return drawn


_INFORMATION = ("mir", "mir_batch", "mir_debiased", "hdr", "hdr_batch", "hdr_debiased")


def paths(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One record for each path: its barrier, and the metrics at the ends and in the middle."""
    by_path: dict[tuple, list[Record]] = {}
    for record in records:
        key = tuple(record[k] for k in ("learning_rate", "branch_step", "statistics", "seed"))
        by_path.setdefault(key, []).append(record)
    summaries = []
    for (rate, step, kind, seed), path in by_path.items():
        middle, ends = path[len(path) // 2], (path[0], path[-1])
        # Runs of an earlier version lack some.
        measured = [m for m in _INFORMATION if m in middle]
        summaries.append(
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
                # ω from 0.4 to 0.6, both included in spite of rounding.
                "best_between": max(
                    r["accuracy"] for r in path if abs(r["point"] - 0.5) < 0.1 + 1e-9
                ),
                "least_accuracy": min(r["accuracy"] for r in path),
                **{f"end_{m}": sum(r[m] for r in ends) / 2 for m in measured},
                **{f"middle_{m}": middle[m] for m in measured},
                "least_hdr_at": min(path, key=lambda r: r["hdr_batch"])["point"],
                "least_hdr": min(r["hdr_batch"] for r in path),
                "lower_end_hdr": min(r["hdr_batch"] for r in ends),
            }
        )
    return summaries


def table(settings: Connectivity, records: Sequence[Record], note: str) -> Table:
    """Barriers, and metrics at the ends and in the middle: a row for each kind of path."""
    columns = {"loss barrier": "barrier"}
    for name in ("accuracy", "MIR", "MIR b", "MIR d", "HDR", "HDR b", "HDR d"):
        metric = name.lower().replace(" b", "_batch").replace(" d", "_debiased")
        columns |= {f"{name}, ends": f"end_{metric}", f"{name}, middle": f"middle_{metric}"}
    rows, all_paths = [], paths(records)
    kinds = settings.learning_rates, settings.branch_steps, _statistics(records)
    for rate, step, kind in itertools.product(*kinds):
        of_seeds = select(all_paths, learning_rate=rate, branch_step=step, statistics=kind)
        cells = [cell(of_seeds, metric) for metric in columns.values()]
        rows.append((f"{rate:g}", f"{step:,}", kind, *cells))
    middle = all_paths[0]["middle"]
    return Table(
        f"Paths between copies: {note}; middle: ω = {middle:g}; barrier in nats above the line "
        f"between the ends; b: mean over batches of {settings.metric_batch}; d: debiased, order 2",
        ("learning rate", "apart from step", "batch statistics", *columns),
        tuple(rows),
    )


# What the accuracy on a path comes to, and what the paper reports for each learning rate.
CHANCE, CONNECTED, BETWEEN = "chance for ω in 0.4 to 0.6", "connected", "between"
_PUBLISHED = {
    "cifar10": {3e-2: CHANCE, 3e-3: BETWEEN, 3e-4: CONNECTED},
    "cifar100": {3e-2: CONNECTED, 3e-3: CONNECTED, 3e-4: CONNECTED},
}


def claims(settings: Connectivity, num_classes: int, records: Sequence[Record]) -> list[Claim]:
    """The paper's statements about this data set, with MIR and HDR in batches as published."""
    # Recomputed statistics, if there are any, and copies that part at the start, as published.
    kind = _statistics(records)[-1]
    apart = select(paths(records), statistics=kind, branch_step=0)
    if not apart:
        return []
    published = _PUBLISHED.get(settings.dataset, {})
    statements, states = [], {}
    for rate in settings.learning_rates:
        of_seeds = select(apart, learning_rate=rate)
        states[rate] = state = _state(of_seeds, num_classes)
        wanted = published.get(rate)
        if state is None:
            verdict = "not decided: an end is below three times chance"
        elif wanted is None:
            verdict = f"not published for this data set; here: {state}"
        else:
            verdict = f"{'agrees' if state == wanted else 'disagrees'}: {state}"
        statements.append(
            Claim(
                f"accuracy on the path, learning rate {rate:g}",
                f"{wanted} ({settings.dataset})" if wanted else "-",
                f"middle {cell(of_seeds, 'middle_accuracy')}, "
                f"lower end {cell(of_seeds, 'lower_end_accuracy')}, "
                f"barrier {cell(of_seeds, 'barrier')} ({kind})",
                f"{verdict} (chance: no point there above 1.5 / C; connected: no point more than "
                "2 points below the lower end)",
            )
        )
    # The course of MIR and HDR was published for paths through chance, at this learning rate.
    rate = 3e-2
    if rate in states and CHANCE in published.values():
        of_seeds = select(apart, learning_rate=rate)
        statements.append(_hump(of_seeds, states[rate]))
        statements.append(_dips(of_seeds, states[rate]))
    return statements


def _state(of_seeds: Sequence[Record], num_classes: int) -> str | None:
    """What the accuracy on the paths comes to, by its means over seeds.

    None where the ends have learned too little to tell.
    """

    def mean(name: str) -> float:
        return sum(r[name] for r in of_seeds) / len(of_seeds)

    if mean("lower_end_accuracy") < 3 / num_classes:
        return None
    if mean("best_between") < 1.5 / num_classes:
        return CHANCE
    return CONNECTED if mean("least_accuracy") >= mean("lower_end_accuracy") - 0.02 else BETWEEN


def _reading(state: str | None, holds: Sequence[bool]) -> str:
    """The reading of a statement about paths through chance, by the seeds in which it holds."""
    if state != CHANCE:
        return "not decided: the published course is that of paths through chance"
    word = "agrees" if all(holds) else "not decided" if any(holds) else "disagrees"
    return f"{word}: in {sum(holds)} of {len(holds)} seeds"


def _hump(of_seeds: Sequence[Record], state: str | None) -> Claim:
    return Claim(
        "MIR (batches) has a hump in the middle, learning rate 0.03",
        "a hump where accuracy is at chance (cifar10)",
        f"middle {cell(of_seeds, 'middle_mir_batch')}, ends {cell(of_seeds, 'end_mir_batch')}; "
        f"whole set: middle {cell(of_seeds, 'middle_mir')}, ends {cell(of_seeds, 'end_mir')}; "
        f"debiased: middle {cell(of_seeds, 'middle_mir_debiased')}, "
        f"ends {cell(of_seeds, 'end_mir_debiased')}",
        _reading(state, [r["middle_mir_batch"] > r["end_mir_batch"] for r in of_seeds]),
    )


def _dips(of_seeds: Sequence[Record], state: str | None) -> Claim:
    def dips(r: Record) -> bool:
        # Near an end, but not at it: the lowest point of a path without a dip is an end.
        near = 0.02 <= r["least_hdr_at"] <= 0.25 or 0.75 <= r["least_hdr_at"] <= 0.98
        return near and r["least_hdr"] < r["lower_end_hdr"]

    places = ", ".join(f"{r['least_hdr_at']:.2f}" for r in of_seeds)
    return Claim(
        "HDR (batches) dips near the ends, learning rate 0.03",
        "dips near ω 0.1 and 0.93 (cifar10)",
        f"least {cell(of_seeds, 'least_hdr')} at ω {places}; "
        f"lower end {cell(of_seeds, 'lower_end_hdr')}",
        _reading(state, [dips(r) for r in of_seeds]),
    )


if __name__ == "__main__":
    run_command(PRESETS, run)
