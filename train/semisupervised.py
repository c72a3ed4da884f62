"""Learn from few labels and many unlabelled images: `python -m train.semisupervised`.

Presets: `small` (the default: FreeMatch, a small convolutional network on CIFAR-10 with 40 labels, about
two minutes a seed on 2 cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 with the published
settings; needs an accelerator).

With `--dataset folder:PATH` the images in `PATH/train/CLASS/` are the labelled ones (give `--labels None`),
those in `PATH/unlabelled/` have none, and `PATH/test/CLASS/` is for the measurements.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.data.types import DataError, about, source_of
from train.engine.sharding import data_mesh
from train.engine.state import Network, TrainState, initial_state
from train.engine.trainer import Groups
from train.evaluation.closed_forms import closed_forms
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, curves, final_records
from train.reporting.summary import Summary, table_of
from train.run.command import run_command
from train.run.folder import write_text
from train.run.lanes import Lane, lanes_of
from train.run.loop import Result, run_lanes
from train.run.settings import PAPER, SMALL
from train.ssl.measure import JudgedGroups, Measure
from train.ssl.pool import Pool, PoolFeed, load_pool
from train.ssl.settings import Semisupervised
from train.ssl.step import Augmentation, Information, make_step

# Mirrored, these are other signs.
_NOT_FLIPPED = ("digits", "mnist", "svhn_cropped")


PRESETS = {
    "small": Semisupervised(
        **SMALL,
        steps=1500,
        eval_every=500,
        batch_size=16,
        unlabelled_ratio=4,
        average_momentum=0.99,
        statistics_momentum=0.99,
        out=Path("runs/semisupervised"),
    ),
    "smoke": Semisupervised(
        steps=20,
        eval_every=10,
        batch_size=16,
        unlabelled_ratio=2,
        average_momentum=0.9,
        statistics_momentum=0.9,
        out=Path("runs/semisupervised-smoke"),
    ),
    "paper": Semisupervised(
        **PAPER,
        eval_every=5000,
        out=Path("runs/semisupervised-paper"),
    ),
}


def optimizer(settings: Semisupervised) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and the rate `cos(7 π k / 16 K)`, for a learning rate of 1."""

    def schedule(step: Any) -> Any:
        return jnp.cos(7 * math.pi * step / (16 * settings.steps))

    return optax.sgd(schedule, momentum=settings.momentum, nesterov=True)


def unlabelled_batch(settings: Semisupervised) -> int:
    """Unlabelled samples a step."""
    return settings.unlabelled_ratio * settings.batch_size if settings.method().uses else 0


def open_pool(settings: Semisupervised) -> Pool:
    """`load_pool`, after what does not fit together is told, before a folder is claimed."""
    pool = load_pool(settings, settings.labels)
    unlabelled, channels = unlabelled_batch(settings), pool.data.image_shape[-1]
    if unlabelled > len(pool.truth):
        raise DataError(
            f"unlabelled_ratio {settings.unlabelled_ratio} times batch_size {settings.batch_size} is more than "
            f"the images there are, {len(pool.truth)}."
        )
    if unlabelled and channels not in (1, 3):
        raise DataError(f"{pool.data.name}: images must have 1 or 3 channels, got {channels}.")
    Network.of(settings, pool.data)
    data_mesh(settings.batch_size, settings.devices)
    return pool


def start(
    settings: Semisupervised, pool: Pool, lanes: Sequence[Lane]
) -> tuple[Network, Callable[..., tuple[TrainState, Any]], TrainState]:
    """The network, the step that the settings describe, and the initial states of the lanes."""
    network, transform = Network.of(settings, pool.data), optimizer(settings)
    method = settings.method()
    states = initial_state(network, transform, lanes)
    extra = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(lanes), *x.shape)),
        method.init(pool.data.num_classes, len(pool.truth)),
    )
    states = states._replace(average=jax.tree.map(jnp.copy, states.params), extra=extra)
    step = make_step(
        network,
        transform,
        method,
        lanes,
        steps=settings.steps,
        augmentation=augmentation(settings, pool),
        unlabelled_weight=settings.unlabelled_weight,
        average_momentum=settings.average_momentum,
        information=Information(
            settings.information_on,
            settings.information_samples,
            settings.information_rows,
            settings.stop_gradient,
        ),
    )
    return network, step, states


def fit(
    settings: Semisupervised,
    pool: Pool,
    lanes: Sequence[Lane] | None = None,
    *,
    quiet: bool = False,
) -> Result:
    """Trains all lanes, one for each seed if none are given, and evaluates them on the way."""
    lanes = lanes_of(settings) if lanes is None else lanes
    network, step, states = start(settings, pool, lanes)
    unlabelled, mesh = unlabelled_batch(settings), data_mesh(settings.batch_size, settings.devices)

    def trainer_of(states: TrainState) -> tuple[Groups, Any]:
        lists = {str(seed): chosen.tolist() for seed, chosen in pool.labelled.items()}
        write_text(settings.out / "labelled.json", json.dumps(lists) + "\n")
        feed = PoolFeed(pool, settings.batch_size, unlabelled, mesh)
        groups = JudgedGroups(settings, lanes, states, step, feed, mesh)
        measure = Measure(network, settings, pool, settings.method(), groups, mesh)
        return groups, lambda group, states: measure(
            states, [lanes[i].seed for i in groups.rows[group]]
        )

    records, states = run_lanes(settings, about(pool.data), lanes, states, trainer_of, quiet=quiet)
    return Result(settings.out, source_of(pool.data), records, lanes, states)


def augmentation(settings: Semisupervised, pool: Pool) -> Augmentation:
    """The weak augmentation for images of this size."""
    if not settings.augment:
        return Augmentation(0, False)
    flip = pool.data.name not in _NOT_FLIPPED if settings.flip is None else settings.flip
    return Augmentation(min(pool.data.image_shape[:2]) // 8, flip)


def run(settings: Semisupervised, *, quiet: bool = False) -> Summary:
    """Trains, sums up, draws."""
    pool = open_pool(settings)
    result = fit(settings, pool, quiet=quiet)
    return summarize(settings, result.data, pool.data.num_classes, result.records).write()


COLUMNS = {
    "accuracy": "test_accuracy",
    "MIR": "test_mir",
    "HDR": "test_hdr",
    "NC1": "test_nc1",
    "labelled MIR": "labelled_mir",
    "coverage": "step_coverage",
    "pseudo-labels right": "step_pseudo_accuracy",
}


def name_of(settings: Any) -> str:
    """The algorithm and its information terms."""
    terms = (
        (f"{settings.mi_weight:g} MI", settings.mi_weight),
        (
            f"{settings.ed_weight:g} ED",
            settings.ed_weight,
        ),
    )
    return " + ".join([settings.algorithm, *(name for name, weight in terms if weight)])


def summarize(settings: Any, source: str, num_classes: int, records: Sequence[Record]) -> Summary:
    """The summary of metric records, and its picture."""
    last = final_records(records)
    labels = int(last[0]["labelled_n"])
    title = (
        f"{name_of(settings)}: {source}, {settings.model}, {labels:,} labels, {settings.steps:,} steps, "
        f"seeds: {settings.seeds}"
    )
    n = int(last[0]["test_n"])
    note = f"test n = {n:,}; moving average of the weights; mean ± standard deviation over seeds"
    table = table_of({name_of(settings): last}, COLUMNS, title=note, first="algorithm")
    picture = settings.out / "curves.png"
    draw(panels(records, closed_forms(num_classes)), picture, title=f"{title}\n{note}")
    text = "accuracy, pseudo-labels, thresholds, MIR, HDR, collapse over the steps"
    return Summary(settings.out, title, (table,), {picture.name: text}, ())


def panels(records: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """Six panels over the steps."""
    shown = {
        "accuracy": ("test_accuracy", "unlabelled_accuracy", "labelled_accuracy"),
        "pseudo-labels": ("step_coverage", "step_pseudo_accuracy"),
        "threshold": ("threshold_mean", "threshold_max"),
        "MIR": ("test_mir", "unlabelled_mir", "labelled_mir"),
        "HDR": ("test_hdr", "unlabelled_hdr", "labelled_hdr"),
        "NC1": ("test_nc1", "unlabelled_nc1", "labelled_nc1"),
    }
    found = []
    for title, metrics in shown.items():
        lines = [
            Line(metric.removeprefix("step_").replace("_", " "), *line, colour=f"C{number}")
            for number, metric in enumerate(metrics)
            if (line := curves(records, metric))[0]
        ]
        if not lines:
            continue
        scale = "log" if title == "NC1" else "linear"
        marks = levels(forms, list(metrics)) if title in ("MIR", "HDR") else {}
        found.append(Panel(title, "step", lines, marks, "linear", scale))
    return found


if __name__ == "__main__":
    run_command(PRESETS, run)
