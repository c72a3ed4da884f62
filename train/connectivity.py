"""Linear mode connectivity of two copies of one initialisation: `python -m train.connectivity`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 20 minutes on 2 cores),
`smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.classifier import about, source_of
from train.evaluate import Evaluator
from train.experiment import balanced_part, load_data, run_command
from train.folders import claim as claim_folder
from train.folders import write_text
from train.groups import is_slow
from train.images import ImageData, RecordSplit, Split
from train.lanes import Lane, lanes_of
from train.loop import Result
from train.path_summary import INTERPOLATED, NO_STATISTICS, RECOMPUTED, summarize
from train.paths import Statistics, interpolate
from train.presets import PAPER, SMALL
from train.records import Record
from train.state import Network, TrainState
from train.summary import Summary
from train.supervised import Supervised, fit


@dataclasses.dataclass(frozen=True)
class Connectivity(Supervised):
    """Accuracy, loss, MIR and HDR on the straight line between two trained copies of a network."""

    learning_rates: tuple[float, ...] = (3e-2, 3e-3, 3e-4)
    """Each is trained with every seed, in two copies or more."""
    branch_steps: tuple[int, ...] = (0,)
    """Steps after which the second copy draws its own data order and augmentation; one second copy
    for each."""
    points: int = 21
    """Of the path, ends included."""
    path_samples: int | None = None
    """Test samples that each point is measured on, a class-balanced part; all if not given."""
    statistics_batches: int = 20
    """Training batches (of eval_batch samples) from which batch statistics are recomputed."""

    def __post_init__(self):
        super().__post_init__()
        if self.points < 5 or self.points % 2 == 0:
            raise ValueError(f"points must be odd and at least 5, got {self.points}.")
        if self.statistics_batches < 1 or (self.path_samples or 1) < 1:
            raise ValueError("statistics_batches and path_samples must be at least 1.")
        self.distinct("learning_rates")
        self.distinct("branch_steps")
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be positive, got {self.learning_rates}.")
        if self.learning_rate != Supervised.learning_rate:
            raise ValueError(
                "learning rates are what this experiment sweeps: give --learning-rates."
            )
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
    """Trains the copies, and goes along the lines between them."""
    data = load_data(settings)
    measured = data.test
    if settings.path_samples is not None:
        measured = balanced_part(measured, settings.path_samples, name="path_samples")
    folder = claim_folder(settings, about(data))
    training = dataclasses.replace(settings, out=folder / "training")
    result = fit(training, data, copies(settings), quiet=quiet)
    records = list(path_records(settings, data, measured, result))
    write_text(folder / "path.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    return summarize(settings, source_of(data), data.num_classes, records).write()


def copies(settings: Connectivity) -> list[Lane]:
    """For each learning rate and seed: copy 0, and a copy for each step of branching off."""
    found = []
    for lane in lanes_of(settings, learning_rate=settings.learning_rates):
        found.append(dataclasses.replace(lane, tags={**lane.tags, "copy": 0}))
        for number, step in enumerate(settings.branch_steps, 1):
            tags = {**lane.tags, "copy": number, "branch_step": step}
            found.append(dataclasses.replace(lane, tags=tags, copy=number, branch_step=step))
    return found


def path_records(
    settings: Connectivity, data: ImageData, measured: Split | RecordSplit, result: Result
) -> Iterator[Record]:
    """The metrics on a split at every point between copy 0 and each other copy."""
    network = Network.of(settings, data)
    # All points under one vmap, but one after the other where batched convolutions are slow.
    size = 1 if is_slow(settings) else settings.points
    evaluate = Evaluator(network, measured, data.num_classes, settings, networks=size)
    recompute = Statistics(network, data.train, settings, batches=settings.statistics_batches)
    points = np.linspace(0, 1, settings.points).tolist()
    places = {
        (lane.seed, lane.knobs.learning_rate, lane.copy): i for i, lane in enumerate(result.lanes)
    }
    for place, lane in enumerate(result.lanes):
        if lane.copy == 0:
            continue
        first = _at(result.states, places[lane.seed, lane.knobs.learning_rate, 0])
        path = interpolate(first, _at(result.states, place), points)
        normed = bool(jax.tree.leaves(path.rest))
        for kind in (INTERPOLATED, RECOMPUTED) if normed else (NO_STATISTICS,):
            for start in range(0, settings.points, size):
                part = jax.tree.map(lambda x, s=start: x[s : s + size], path)
                if kind == RECOMPUTED:
                    part = recompute(part)
                for point, values in zip(points[start : start + size], evaluate(part), strict=True):
                    place_on: dict[str, Any] = {"statistics": kind, "point": point}
                    yield {"seed": lane.seed, **lane.tags, **place_on, **values}


def _at(states: TrainState, place: int) -> TrainState:
    return jax.tree.map(lambda x: x[place], states)


if __name__ == "__main__":
    run_command(PRESETS, run)
