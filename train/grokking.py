"""Grokking on modular arithmetic, with controls and interventions: `python -m train.grokking`.

Presets: `small` (the default: modulus 23 and width 48, about 15 minutes on 2 cores), `smoke`
(modulus 7, for tests), `paper` (modulus 113 and width 128, as published; hours on a CPU).
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from train.engine.optimizers import Optimizer, adamw_with_warmup
from train.engine.sharding import described, mesh_of
from train.engine.state import TrainState, initial_state
from train.engine.step import UsedTerms
from train.engine.trainer import Trainer, advance
from train.modular.measure import MAIN, TableEvaluator, progress_records
from train.modular.network import ModularNetwork
from train.modular.settings import CONTROLS, INTERVENTIONS, Grokking
from train.modular.step import TableLoader, make_step
from train.modular.summary import summarize
from train.modular.task import Task, modular_task
from train.reporting.records import Record
from train.reporting.summary import Summary
from train.run import hosts
from train.run.command import run_command
from train.run.files import write_jsonl
from train.run.lanes import Knobs, Lane, concatenated
from train.run.loop import open_run

RANDOM, NO_DECAY, EASY = CONTROLS
MORE_MI, MORE_ED = INTERVENTIONS


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
        # The 3,830 training pairs would be decomposed: most of the time of an evaluation.
        exact_side=2048,
        out=Path("runs/grokking-paper"),
    ),
}


def run(settings: Grokking, *, quiet: bool = False) -> Summary:
    """Trains all lanes, measures their snapshots, and sums up."""
    # Some devices shorten the mantissa in products by default, and late in training the losses are
    # so small that they would be noise.
    with jax.default_matmul_precision("highest"):
        lanes = lanes_of_kinds(settings)
        tasks = [task_of(settings, lane) for lane in lanes]
        network = ModularNetwork(settings.modulus, settings.width, settings.heads)
        records = fit(settings, network, lanes, tasks, quiet=quiet)
        events = [0, *settings.events()]

        def progress_of_snapshots() -> list[Record]:
            # The published progress measures are those of the Fourier algorithm for addition.
            if settings.operation != "add":
                return []
            folder = settings.out / "snapshots"
            return progress_records(network, lanes, tasks, events=events, snapshots=folder)

        # The first process has written the snapshots.
        progress = hosts.from_first(progress_of_snapshots)
        write_jsonl(settings.out / "progress.jsonl", progress)
        return summarize(settings, records, progress).write()


def fit(
    settings: Grokking,
    network: ModularNetwork,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    *,
    quiet: bool = False,
) -> Sequence[Record]:
    """Trains all lanes on their tasks, and returns the metric records of all evaluations."""
    optimizer = adamw_with_warmup(warmup_steps=10)
    states = initial_state(network, optimizer, lanes)
    # One trainer for neighbouring lanes whose arrays have the same shapes and whose loss the same
    # terms.
    ends = [i for i in range(1, len(lanes)) if _shape(lanes[i]) != _shape(lanes[i - 1])]
    slices = [slice(a, b) for a, b in itertools.pairwise([0, *ends, len(lanes)])]
    smallest = min(r.stop - r.start for r in slices)
    mesh = mesh_of(
        min(settings.lanes_per_call or smallest, smallest),
        # A table is too small to be cut over several devices.
        1,
        devices=settings.devices,
        lane_devices=settings.lane_devices,
    )
    about = {"data": f"{settings.operation} modulo {settings.modulus}", "classes": settings.modulus}

    with open_run(settings, about, lanes, quiet=quiet) as run:
        states, start = run.restore(states)
        run.say(described(mesh, len(lanes)))
        unfinished = run.unfinished or [None] * len(slices)
        trainers = [
            make_trainer(
                settings,
                network,
                optimizer,
                lanes[r],
                tasks[r],
                jax.tree.map(lambda x, r=r: x[r], states),
                mesh,
                part,
            )
            for r, part in zip(slices, unfinished, strict=True)
        ]

        def all_states() -> TrainState:
            return concatenated([trainer.all_states() for trainer in trainers])

        evaluate = TableEvaluator(
            network,
            lanes,
            tasks,
            run.folder / "snapshots",
            mesh,
            exact_side=settings.exact_side,
        )
        for event in run.events(after=start):
            terms = advance(trainers, event, stop=run.stop.asked)
            if terms is None:
                parts = [trainer.unfinished() for trainer in trainers]
                run.interrupt(trainers[0].step, all_states, parts)
            groups = [group for trainer in trainers for group in trainer.groups]
            run.record(event, terms, evaluate(groups))
            run.save(event, all_states)
    return run.records()


def make_trainer(
    settings: Grokking,
    network: ModularNetwork,
    optimizer: Optimizer,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    states: TrainState,
    mesh: Mesh,
    unfinished: Any = None,
) -> Trainer:
    """The trainer of lanes whose arrays have the same shapes and whose loss has the same terms."""
    step = make_step(
        network.forward,
        optimizer,
        UsedTerms.of(lanes),
        information_steps=settings.information_steps,
        information_batch=settings.information_batch,
    )
    # Lanes are small and go in one group: asking how many of them fit would cost a compilation.
    return Trainer(
        step,
        TableLoader(list(zip(lanes, tasks, strict=True)), mesh),
        lanes,
        states,
        mesh,
        steps_per_call=settings.steps_per_call,
        lanes_per_call=settings.lanes_per_call or len(lanes),
        unfinished=unfinished,
    )


def lanes_of_kinds(settings: Grokking) -> list[Lane]:
    """The lanes of all kinds, sorted so that those of equal shapes and terms are side by side."""
    # Controls and interventions differ in one thing each from the first of the main lanes.
    fraction, decay = settings.fractions[0], settings.weight_decays[0]
    base = Knobs(settings.learning_rate, decay)

    def kind(name: str, fraction: float, knobs: Knobs) -> list[Lane]:
        weight_decay = float(knobs.weight_decay)
        tags = {"kind": name, "fraction": fraction, "weight_decay": weight_decay}
        count = settings.seeds if name == MAIN else settings.kind_seeds or settings.seeds
        return [Lane(seed, knobs, tags) for seed in settings.seed_range()[:count]]

    others = {
        RANDOM: (fraction, base),
        NO_DECAY: (fraction, base._replace(weight_decay=0.0)),
        EASY: (settings.large_fraction, base),
        MORE_MI: (fraction, base._replace(mi_weight=settings.mi_weight)),
        MORE_ED: (fraction, base._replace(ed_weight=settings.ed_weight)),
    }
    lanes = []
    for share in settings.fractions:
        for weight_decay in settings.weight_decays:
            lanes += kind(MAIN, share, base._replace(weight_decay=weight_decay))
    for name, (share, knobs) in others.items():
        if settings.has(name):
            lanes += kind(name, share, knobs)
    return sorted(lanes, key=_shape)


def _shape(lane: Lane) -> tuple[float, bool]:
    """What lanes of one trainer have in common: size of the table and terms of the loss."""
    return float(lane.tags["fraction"]), bool(lane.knobs.mi_weight or lane.knobs.ed_weight)


def task_of(settings: Grokking, lane: Lane) -> Task:
    """The task of a lane. Its seed decides which pairs are trained on."""
    return modular_task(
        settings.modulus,
        float(lane.tags["fraction"]),
        settings.operation,
        seed=lane.seed,
        random=lane.tags["kind"] == RANDOM,
    )


if __name__ == "__main__":
    run_command(PRESETS, run)
