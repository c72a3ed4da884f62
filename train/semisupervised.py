"""Learn from few labels and many unlabelled images: `python -m train.semisupervised`.

Presets: `small` (the default: FreeMatch, a small convolutional network on CIFAR-10 with 40 labels,
about two minutes a seed on 2 cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 with the
published settings; needs an accelerator).

With `--dataset folder:PATH` the labelled images are those in `PATH/train/CLASS/` (give
`--labels None`), the unlabelled ones are in `PATH/unlabelled/`, and those in `PATH/test/CLASS/` are
for the measurements.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from train.data.types import DataError, about, source_of
from train.engine.optimizers import sgd_for_few_labels
from train.engine.sharding import described, mesh_of
from train.engine.state import Network, TrainState, initial_state
from train.engine.step import Terms, UsedTerms
from train.engine.trainer import Trainer, advance, is_slow, mesh_for
from train.evaluation.closed_forms import closed_forms
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import Record, curves, final_records, without_direction
from train.reporting.summary import Summary, table_of
from train.run.command import run_command
from train.run.files import write_text
from train.run.lanes import Lane, lanes_of
from train.run.loop import Result, open_run
from train.run.settings import PAPER, SMALL
from train.ssl.measure import PoolEvaluator, with_pseudo_accuracy
from train.ssl.pool import Pool, PoolLoader, load_pool
from train.ssl.settings import OneAlgorithm, Semisupervised
from train.ssl.step import Augmentation, make_step

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


def run(settings: Semisupervised, *, quiet: bool = False) -> Summary:
    """Trains one lane for each seed, sums up, and draws the curves."""
    pool = open_pool(settings)
    result = fit(settings, pool, quiet=quiet)
    return summarize(settings, result.data, pool.data.num_classes, result.records).write()


def open_pool(settings: OneAlgorithm) -> Pool:
    """The training images of a run, some of which keep their labels.

    Raises:
        DataError, ValueError: data, network, batch sizes and devices do not fit together.
    """
    # All errors are raised here, before a folder is made for a run that cannot start.
    pool = load_pool(settings, settings.labels)
    unlabelled, channels = settings.unlabelled_batch(), pool.data.image_shape[-1]
    if unlabelled > len(pool.truth):
        raise DataError(
            f"unlabelled_ratio {settings.unlabelled_ratio} times batch_size {settings.batch_size} "
            f"is more than the images there are, {len(pool.truth)}."
        )
    if unlabelled and channels not in (1, 3):
        raise DataError(f"{pool.data.name}: images must have 1 or 3 channels, got {channels}.")
    Network.of(settings, pool.data)
    # Only whether there are so many: how many networks there will be, the command knows.
    mesh_of(settings.devices or 1, settings.batch_size, devices=settings.devices)
    return pool


def fit(
    settings: Semisupervised,
    pool: Pool,
    lanes: Sequence[Lane] | None = None,
    *,
    quiet: bool = False,
) -> Result:
    """Trains all lanes on the pool, evaluates them on the way, and returns metrics and last states.

    Args:
        settings: the settings of the run.
        pool: the images, from `open_pool`.
        lanes: the networks to train side by side; if not given, one for each seed.
        quiet: whether to leave out the progress bar.

    Raises:
        RunError, CheckpointError, TrackerError: the run cannot start or continue; see `train.run`.
    """
    lanes = lanes_of(settings) if lanes is None else lanes
    mesh = mesh_for(settings, lanes)
    network, step, states = start(settings, pool, lanes)

    with open_run(settings, about(pool.data), lanes, quiet=quiet) as run:
        run.say(described(mesh, len(lanes)))
        states, begin = run.restore(states)
        # The lists may be drawn and not published, so the run stores which samples kept labels.
        lists = {str(seed): chosen.tolist() for seed, chosen in pool.labelled.items()}
        write_text(run.folder / "labelled.json", json.dumps(lists) + "\n")
        trainer = Trainer(
            jax.vmap(step),
            PoolLoader(pool, settings.batch_size, settings.unlabelled_batch(), mesh),
            lanes,
            states,
            mesh,
            steps_per_call=settings.steps_per_call,
            lanes_per_call=settings.lanes_per_call,
            slow_together=is_slow(settings.model),
            unfinished=run.unfinished,
        )
        evaluate = PoolEvaluator(
            network, settings, pool, settings.method(), mesh, networks=trainer.largest_group
        )
        for event in run.events(after=begin):
            terms = advance([trainer], event, stop=run.stop.asked)
            if terms is None:
                run.interrupt(trainer.step, trainer.all_states, trainer.unfinished())
            run.record(event, list(map(with_pseudo_accuracy, terms)), evaluate(trainer.groups))
            run.save(event, trainer.all_states)
    return Result(run.folder, source_of(pool.data), run.records(), lanes, trainer.all_states())


def start(
    settings: Semisupervised, pool: Pool, lanes: Sequence[Lane]
) -> tuple[Network, Callable[..., tuple[TrainState, Terms]], TrainState]:
    """The network, the step that the settings describe, and the initial states of the lanes."""
    network, method = Network.of(settings, pool.data), settings.method()
    optimizer = sgd_for_few_labels(steps=settings.steps, momentum=settings.momentum)
    step = make_step(
        network,
        optimizer,
        method,
        UsedTerms.of(lanes),
        steps=settings.steps,
        augmentation=augmentation(settings, pool),
        unlabelled_weight=settings.unlabelled_weight,
        ema_momentum=settings.average_momentum,
        placement=settings.placement(),
    )
    states = initial_state(network, optimizer, lanes)
    # The algorithm starts in the same state in all lanes, whatever their seeds.
    algorithm_state = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(lanes), *x.shape)),
        method.init(pool.data.num_classes, len(pool.truth)),
    )
    states = states._replace(ema_params=states.params, algorithm_state=algorithm_state)
    return network, step, states


def augmentation(settings: Semisupervised, pool: Pool) -> Augmentation:
    """The weak augmentation of the settings, for images of the pool's size."""
    if not settings.augment:
        return Augmentation(0, False)
    return Augmentation(min(pool.data.image_shape[:2]) // 8, settings.flips(pool.data.name))


# Columns of the table, and the metrics that they show.
COLUMNS = {
    "accuracy": "test_accuracy",
    "MIR": "test_mir",
    "debiased MIR": "test_mir_debiased",
    "HDR": "test_hdr",
    "debiased HDR": "test_hdr_debiased",
    "NC1": "test_nc1",
    "labelled MIR": "labelled_mir",
    "coverage": "step_coverage",
    "pseudo-labels right": "step_pseudo_accuracy",
}


def name_of(settings: Semisupervised) -> str:
    """The algorithm and the information terms that are added to it, for titles."""
    terms = {"MI": settings.mi_weight, "ED": settings.ed_weight}
    weighted = [f"{weight:g} {name}" for name, weight in terms.items() if weight]
    form = settings.form() if weighted else ""
    return " + ".join([settings.algorithm, *weighted]) + form


def summarize(
    settings: Semisupervised, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
    """Draws the picture, and sums up the metric records in a table."""
    last = final_records(records)
    labels = int(last[0]["labelled_n"])
    title = (
        f"{name_of(settings)}: {source}, {settings.model}, {labels:,} labels"
        f"{without_direction(last, 'labelled_')}, {settings.steps:,} steps, seeds: {settings.seeds}"
    )
    n = int(last[0]["test_n"])

    def note(shown: Sequence[Record]) -> str:
        return (
            f"test n = {n:,}{without_direction(shown)}; moving average of the weights; "
            "mean ± standard deviation over seeds"
        )

    table = table_of({name_of(settings): last}, COLUMNS, title=note(last), first="algorithm")
    picture = settings.out / "curves.png"
    draw(panels(records, closed_forms(num_classes)), picture, title=f"{title}\n{note(records)}")
    text = "accuracy, pseudo-labels, thresholds, MIR, HDR, collapse over the steps"
    return Summary(settings.out, title, (table,), {picture.name: text}, ())


def panels(records: Sequence[Record], forms: dict[str, float]) -> list[Panel]:
    """Up to six panels with the step as the horizontal axis."""
    shown = {
        "accuracy": ("test_accuracy", "unlabelled_accuracy", "labelled_accuracy"),
        "pseudo-labels": ("step_coverage", "step_pseudo_accuracy"),
        "threshold": ("threshold_mean", "threshold_max"),
        "MIR": ("test_mir", "unlabelled_mir", "labelled_mir", "test_mir_debiased"),
        "HDR": ("test_hdr", "unlabelled_hdr", "labelled_hdr", "test_hdr_debiased"),
        "NC1": ("test_nc1", "unlabelled_nc1", "labelled_nc1"),
    }
    drawn = []
    for title, metrics in shown.items():
        # An algorithm without thresholds, for example, has nothing to draw in their panel.
        lines = [
            Line(metric.removeprefix("step_").replace("_", " "), *curve, colour=f"C{number}")
            for number, metric in enumerate(metrics)
            if (curve := curves(records, metric))[0]
        ]
        if not lines:
            continue
        scale = "log" if title == "NC1" else "linear"
        marks = levels(forms, list(metrics)) if title in ("MIR", "HDR") else {}
        drawn.append(Panel(title, "step", lines, marks, yscale=scale))
    return drawn


if __name__ == "__main__":
    run_command(PRESETS, run)
