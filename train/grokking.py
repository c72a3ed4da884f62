"""Grokking on modular arithmetic, with controls and interventions: `python -m train.grokking`.

Presets: `small` (the default: modulus 23 and width 48, about 15 minutes on 2 cores), `smoke` (for tests),
`paper` (modulus 113, width 128, as published; hours on a CPU).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.engine.state import TrainState, initial_state
from train.modular.measure import MAIN, Measure, progress_records
from train.modular.network import ModularNetwork
from train.modular.summary import summarize
from train.modular.task import Table, table
from train.modular.trainer import Batch, FullBatch
from train.reporting.summary import Summary
from train.run.command import run_command
from train.run.folder import write_text
from train.run.lanes import Knobs, Lane
from train.run.loop import run_lanes
from train.run.settings import RunSettings

RANDOM, NO_DECAY, EASY, MORE_MI, MORE_ED = (
    "random-labels",
    "no-decay",
    "large-fraction",
    "+MI",
    "+ED",
)


@dataclasses.dataclass(frozen=True)
class Grokking(RunSettings):
    """A one-layer transformer learns a table modulo p from a part of it, by full-batch AdamW."""

    modulus: int = 23
    """p; there are p² pairs."""
    operation: Literal["add", "subtract", "multiply", "squares"] = "add"
    """What is learned, modulo p."""
    fractions: tuple[float, ...] = (0.6,)
    """Of the pairs, to train on; each is trained with every weight decay and seed."""
    weight_decays: tuple[float, ...] = (1.0,)
    """Of AdamW, on all parameters."""
    width: int = 48
    """Of the residual stream; the MLP is four times as wide."""
    heads: int = 4
    """Of attention."""
    learning_rate: float = 1e-3
    """Of AdamW, after ten steps of warm-up; betas 0.9 and 0.98."""
    controls: bool = True
    """Also train with random labels, without weight decay, and on `large_fraction` of the pairs."""
    large_fraction: float = 0.85
    """A fraction at which the network generalises at once."""
    interventions: bool = True
    """Also train with the MI and with the ED loss in `information_steps`."""
    mi_weight: float = 0.1
    """Weight of the mutual information of features and unembedding rows there (maximised)."""
    ed_weight: float = 0.1
    """Weight of the difference of their entropies there (minimised)."""
    information_steps: tuple[int, int] = (200, 2000)
    """First step of these terms, and the first step without them again."""
    information_batch: int = 64
    """Pairs that they are computed on, drawn anew for each step."""
    log_events: int = 20
    """Evaluations on a logarithmic scale of steps, beside those of `eval_every`."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("modulus", "width", "heads", "information_batch", "log_events")
        for fraction in (*self.fractions, self.large_fraction):
            table(self.modulus, fraction, self.operation)
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}.")
        start, stop = self.information_steps
        if not 0 <= start < stop or (self.interventions and start >= self.steps):
            raise ValueError(
                f"information_steps must be FIRST < LAST with FIRST below steps = {self.steps}, got {start} "
                f"and {stop} (or give --no-interventions)."
            )
        self.distinct("fractions")
        self.distinct("weight_decays")
        if min(self.weight_decays) < 0:
            raise ValueError(f"weight_decays must not be negative, got {self.weight_decays}.")

    def events(self) -> list[int]:
        """Those of `eval_every`, and as many on a logarithmic scale."""
        logarithmic = np.geomspace(1, self.steps, self.log_events).round().astype(int)
        return sorted({*super().events(), *logarithmic.tolist()})


PRESETS = {
    "small": Grokking(
        steps=9000,
        fractions=(0.7,),
        eval_every=300,
        log_events=10,
        information_steps=(300, 2000),
        seeds=5,
        out=Path("runs/grokking"),
    ),
    "smoke": Grokking(
        modulus=7,
        fractions=(0.5,),
        width=16,
        heads=2,
        steps=40,
        eval_every=20,
        log_events=3,
        information_steps=(5, 30),
        information_batch=8,
        out=Path("runs/grokking-smoke"),
    ),
    "paper": Grokking(
        modulus=113,
        fractions=(0.3,),
        width=128,
        steps=20_000,
        eval_every=200,
        seeds=3,
        steps_per_call=200,
        out=Path("runs/grokking-paper"),
    ),
}


def lanes(settings: Grokking) -> list[Lane]:
    """All lanes, those of equal shapes and terms side by side."""
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    fraction, decay = settings.fractions[0], settings.weight_decays[0]
    base = Knobs(settings.learning_rate, decay)

    def kind(name: str, fraction: float, knobs: Knobs) -> list[Lane]:
        tags: dict[str, float | str] = {"kind": name, "fraction": fraction}
        tags["weight_decay"] = knobs.weight_decay
        return [Lane(seed, knobs, tags) for seed in seeds]

    found = []
    for share in settings.fractions:
        for own in settings.weight_decays:
            found += kind(MAIN, share, base._replace(weight_decay=own))
    if settings.controls:
        found += kind(RANDOM, fraction, base)
        found += kind(NO_DECAY, fraction, base._replace(weight_decay=0.0))
        found += kind(EASY, settings.large_fraction, base)
    if settings.interventions:
        found += kind(MORE_MI, fraction, base._replace(mi_weight=settings.mi_weight))
        found += kind(MORE_ED, fraction, base._replace(ed_weight=settings.ed_weight))
    return sorted(found, key=lambda lane: _shape(lane))


def _shape(lane: Lane) -> tuple[float, bool]:
    return float(lane.tags["fraction"]), bool(lane.knobs.mi_weight or lane.knobs.ed_weight)


def run(settings: Grokking, *, quiet: bool = False) -> Summary:
    """Trains all lanes, measures their snapshots, sums up."""
    # On some devices products have a shorter mantissa by default: the small late losses would be noise.
    with jax.default_matmul_precision("highest"):
        return _run(settings, quiet=quiet)


def _run(settings: Grokking, *, quiet: bool) -> Summary:
    all_lanes = lanes(settings)
    tables = [
        table(
            settings.modulus,
            float(lane.tags["fraction"]),
            settings.operation,
            seed=lane.seed,
            random=lane.tags["kind"] == RANDOM,
        )
        for lane in all_lanes
    ]
    groups = _groups(settings, all_lanes)
    network = ModularNetwork(settings.modulus, settings.width, settings.heads)
    transform = optax.scale_by_adam(b1=0.9, b2=0.98)

    def trainer_of(states: TrainState) -> tuple[FullBatch, Any]:
        trainer = FullBatch(
            all_lanes,
            states,
            [(rows, _batch([tables[i] for i in rows])) for rows in groups],
            network.forward,
            transform,
            steps_per_call=settings.steps_per_call or 100,
            information_steps=settings.information_steps,
            information_batch=settings.information_batch,
        )
        snapshots = settings.out / "snapshots"
        measured = [
            Measure(network, [tables[i] for i in rows], [all_lanes[i] for i in rows], snapshots)
            for rows in groups
        ]
        return trainer, lambda group, states: measured[group](states)

    about = {"data": f"{settings.operation} modulo {settings.modulus}", "classes": settings.modulus}
    states = initial_state(network, transform, all_lanes)
    records, _ = run_lanes(settings, about, all_lanes, states, trainer_of, quiet=quiet)
    progress = progress_records(settings, network, all_lanes, tables)
    text = "".join(json.dumps(record) + "\n" for record in progress)
    write_text(settings.out / "progress.jsonl", text)
    return summarize(settings, records, progress).write()


def _groups(settings: Grokking, lanes: Sequence[Lane]) -> list[range]:
    """Lanes of one shape, no more at once than `lanes_per_call`."""
    found, start = [], 0
    most = settings.lanes_per_call or math.inf
    for end in range(1, len(lanes) + 1):
        last = end == len(lanes)
        if last or _shape(lanes[end]) != _shape(lanes[start]) or end - start >= most:
            found.append(range(start, end))
            start = end
    return found


def _batch(tables: Sequence[Table]) -> Batch:
    size = tables[0].train_size
    return Batch(
        jnp.asarray(np.stack([t.pairs[:size] for t in tables])),
        jnp.asarray(np.stack([t.labels[:size] for t in tables])),
    )


if __name__ == "__main__":
    run_command(PRESETS, run)
