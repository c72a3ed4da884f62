"""Grokking on modular arithmetic, with controls and interventions: `python -m train.grokking`.

Presets: `small` (the default: modulus 23 and width 48, about 15 minutes on 2 cores), `smoke` (for tests),
`paper` (modulus 113, width 128, as published; hours on a CPU).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from train.engine.optimizers import Optimizer, adamw_with_warmup
from train.engine.sharding import data_mesh
from train.engine.state import TrainState, initial_state
from train.engine.step import UsedTerms
from train.engine.trainer import Trainer
from train.modular.measure import MAIN, TableEvaluator, progress_records
from train.modular.network import ModularNetwork
from train.modular.step import TableLoader, make_step
from train.modular.summary import summarize
from train.modular.task import Task, modular_task
from train.reporting.records import Record
from train.reporting.summary import Summary
from train.run.command import run_command
from train.run.files import write_jsonl
from train.run.lanes import Knobs, Lane
from train.run.loop import open_run
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
    """The operation to learn, modulo p."""
    fractions: tuple[float, ...] = (0.6,)
    """Shares of the pairs to train on. Each is trained with every weight decay and seed."""
    weight_decays: tuple[float, ...] = (1.0,)
    """Weight decays of AdamW, on all parameters."""
    width: int = 48
    """Width of the residual stream. The MLP is four times as wide."""
    heads: int = 4
    """Number of attention heads."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after ten steps of warm-up. The betas are 0.9 and 0.98."""
    controls: bool = True
    """Whether to train controls too: random labels, no weight decay, and `large_fraction` of the pairs."""
    large_fraction: float = 0.85
    """Share of the pairs at which the network generalises at once, for the control."""
    interventions: bool = True
    """Whether to train with the MI term, and with the ED term, in `information_steps` too."""
    mi_weight: float = 0.1
    """Weight of the mutual information of features and unembedding rows in these steps, in nats
    (maximised)."""
    ed_weight: float = 0.1
    """Weight of the difference of their entropies in these steps, in nats (minimised)."""
    information_steps: tuple[int, int] = (200, 2000)
    """The first step with these terms, and the first step without them again."""
    information_batch: int = 64
    """Number of pairs on which these terms are computed, drawn anew for each step."""
    log_events: int = 20
    """Number of evaluations on a logarithmic scale of steps, in addition to those of `eval_every`."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("modulus", "width", "heads", "information_batch", "log_events")
        for fraction in (*self.fractions, self.large_fraction):
            modular_task(self.modulus, fraction, self.operation)
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


def run(settings: Grokking, *, quiet: bool = False) -> Summary:
    """Trains all lanes, measures their snapshots, sums up."""
    # On some devices products have a shorter mantissa by default: the small late losses would be noise.
    with jax.default_matmul_precision("highest"):
        lanes = lanes_of_kinds(settings)
        tasks = [task_of(settings, lane) for lane in lanes]
        network = ModularNetwork(settings.modulus, settings.width, settings.heads)
        records = fit(settings, network, lanes, tasks, quiet=quiet)
        progress: list[Record] = []
        if settings.operation == "add":
            events = [0, *settings.events()]
            progress = progress_records(
                network, lanes, tasks, events=events, snapshots=settings.out / "snapshots"
            )
        write_jsonl(settings.out / "progress.jsonl", progress)
        return summarize(settings, records, progress).write()


def fit(
    settings: Grokking,
    network: ModularNetwork,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Trains all lanes on their tasks, and evaluates them on the way; the metric records."""
    optimizer = adamw_with_warmup(warmup_steps=10)
    states = initial_state(network, optimizer, lanes)
    # Lanes are trained together where their arrays have the same shapes and they share the terms.
    ends = [i for i in range(1, len(lanes)) if _shape(lanes[i]) != _shape(lanes[i - 1])]
    shapes = [slice(a, b) for a, b in itertools.pairwise([0, *ends, len(lanes)])]
    about = {"data": f"{settings.operation} modulo {settings.modulus}", "classes": settings.modulus}

    with open_run(settings, about, lanes, quiet=quiet) as run:
        states, start = run.restore(states)
        trainers = [
            make_trainer(
                settings,
                network,
                optimizer,
                lanes[r],
                tasks[r],
                jax.tree.map(lambda x, r=r: x[r], states),
            )
            for r in shapes
        ]
        evaluate = TableEvaluator(network, lanes, tasks, run.folder / "snapshots")
        for event in run.events(after=start):
            terms = [of_lane for trainer in trainers for of_lane in trainer.advance(event)]
            groups = [group for trainer in trainers for group in trainer.states]
            run.record(event, terms, evaluate(groups))
            run.save(event, groups)
    return run.records()


def make_trainer(
    settings: Grokking,
    network: ModularNetwork,
    optimizer: Optimizer,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    states: TrainState,
) -> Trainer:
    """The trainer of lanes of one shape."""
    mesh = data_mesh(1, 1)
    step = make_step(
        network.forward,
        optimizer,
        UsedTerms.of(lanes),
        information_steps=settings.information_steps,
        information_batch=settings.information_batch,
    )
    return Trainer(
        step,
        TableLoader(list(zip(lanes, tasks, strict=True)), mesh),
        lanes,
        states,
        mesh,
        steps_per_call=settings.steps_per_call,
        lanes_per_call=settings.lanes_per_call or len(lanes),
    )


def lanes_of_kinds(settings: Grokking) -> list[Lane]:
    """All lanes, those of equal shapes and terms side by side."""
    fraction, decay = settings.fractions[0], settings.weight_decays[0]
    base = Knobs(settings.learning_rate, decay)

    def kind(name: str, fraction: float, knobs: Knobs) -> list[Lane]:
        tags: dict[str, float | str] = {"kind": name, "fraction": fraction}
        tags["weight_decay"] = knobs.weight_decay
        return [Lane(seed, knobs, tags) for seed in settings.seed_range()]

    lanes = []
    for share in settings.fractions:
        for weight_decay in settings.weight_decays:
            lanes += kind(MAIN, share, base._replace(weight_decay=weight_decay))
    if settings.controls:
        lanes += kind(RANDOM, fraction, base)
        lanes += kind(NO_DECAY, fraction, base._replace(weight_decay=0.0))
        lanes += kind(EASY, settings.large_fraction, base)
    if settings.interventions:
        lanes += kind(MORE_MI, fraction, base._replace(mi_weight=settings.mi_weight))
        lanes += kind(MORE_ED, fraction, base._replace(ed_weight=settings.ed_weight))
    return sorted(lanes, key=_shape)


def _shape(lane: Lane) -> tuple[float, bool]:
    return float(lane.tags["fraction"]), bool(lane.knobs.mi_weight or lane.knobs.ed_weight)


def task_of(settings: Grokking, lane: Lane) -> Task:
    """The task of a lane: its seed draws the pairs to train on."""
    return modular_task(
        settings.modulus,
        float(lane.tags["fraction"]),
        settings.operation,
        seed=lane.seed,
        random=lane.tags["kind"] == RANDOM,
    )


if __name__ == "__main__":
    run_command(PRESETS, run)
