"""Train a classifier with and without the information losses: `python -m train.supervised`.

Presets: `small` (the default: an MLP on digits, about a minute on 2 cores), `smoke` (seconds, for
tests), `paper` (WideResNet-28-2 on CIFAR-10 with the published settings; needs an accelerator).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from mirjax.losses import Side
from train.data.augment import crop_and_flip
from train.data.load import load
from train.data.subsets import balanced_part
from train.data.types import DataError, ImageData, about, agree_on, check_classes, source_of
from train.engine.loader import loader_of
from train.engine.optimizers import Optimizer, sgd_with_cosine
from train.engine.sharding import described, mesh_of
from train.engine.state import Network, TrainState, initial_state
from train.engine.step import (
    PUBLISHED,
    TermForm,
    Terms,
    UsedTerms,
    augmentation_key,
    descend,
    information_terms,
)
from train.engine.trainer import Group, Trainer, advance, is_slow, mesh_for
from train.evaluation.closed_forms import closed_forms
from train.evaluation.evaluator import Evaluator
from train.evaluation.layers import LayerEvaluator
from train.reporting.plots import plot_runs
from train.reporting.records import final_records, without_direction
from train.reporting.summary import comparison
from train.run.command import enable_cache, exit_on_user_error, from_command_line
from train.run.lanes import Knobs, Lane, lanes_of
from train.run.loop import Metrics, Result, open_run
from train.run.mirrored import mirrored
from train.run.settings import (
    PAPER,
    ImageSettings,
    InformationForm,
    InformationWeights,
    LabelSmoothing,
    LearningRate,
)


@dataclasses.dataclass(frozen=True)
class SupervisedTraining(InformationForm, ImageSettings):
    """Settings of supervised training, except for the numbers that an experiment may sweep."""

    train_size: int | None = None
    """Number of training samples, a class-balanced subset drawn with seed 0; if not given, all of
    them."""
    eval_layers: bool = False
    """Whether each evaluation also measures every layer, on the test split."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side, features or head, that the information terms do not train; if not given, they train
    both."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("train_size")


@dataclasses.dataclass(frozen=True)
class Supervised(LabelSmoothing, InformationWeights, LearningRate, SupervisedTraining):
    """Trains a classifier with the loss cross-entropy - mi_weight · MI + ed_weight · ED."""


PRESETS = {
    "small": Supervised(),
    "smoke": Supervised(steps=20, eval_every=10, out=Path("runs/smoke")),
    "paper": Supervised(
        **PAPER,
        eval_every=5000,
        out=Path("runs/cifar10-wrn-28-2"),
    ),
}


def run(settings: Supervised, *, quiet: bool = False) -> Result:
    """Trains one lane for each seed, and draws the curves beside the metrics."""
    data = load_data(settings)
    result = fit(settings, data, quiet=quiet)
    n = int(result.records[-1]["test_n"])
    title = (
        f"{result.data}, {settings.model}, {describe(settings)}, seeds: {settings.seeds}\n"
        f"whole test set: n = {n:,}{without_direction(result.records)}, "
        f"batches of {settings.metric_batch}"
    )
    picture = result.folder / "curves.png"
    plot_runs({"": result.records}, closed_forms(data.num_classes), picture, title=title)
    return result


def load_data(settings: SupervisedTraining) -> ImageData:
    """The data set that the settings name, reduced to `train_size` training samples.

    Raises:
        DataError, ValueError: data, network, batch size and devices do not fit together.
    """
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        memory_limit_mib=settings.memory_limit_mib,
        image_size=settings.image_size,
    )
    check_classes(data)
    agree_on(data)
    if settings.train_size is not None:
        part = balanced_part(data.train, settings.train_size, name="train_size")
        note = f"{settings.train_size:,} of {len(data.train):,} training images"
        note = f"{data.source_note}; {note}" if data.source_note else note
        data = dataclasses.replace(data, train=part, source_note=note)
    # Built only to raise their errors now, before a folder is made for a run that cannot start.
    Network.of(settings, data)
    # Only whether there are so many: how many networks there will be, the command knows.
    mesh_of(settings.devices or 1, settings.batch_size, devices=settings.devices)
    if settings.batch_size > len(data.train):
        raise DataError(
            f"batch_size {settings.batch_size} is larger than the training split, "
            f"{len(data.train)} samples."
        )
    return data


def fit(
    settings: SupervisedTraining,
    data: ImageData,
    lanes: Sequence[Lane] | None = None,
    *,
    start_from: Callable[[TrainState], TrainState] | None = None,
    quiet: bool = False,
) -> Result:
    """Trains all lanes on `data`, evaluates them on the way, and returns metrics and last states.

    Args:
        settings: the settings of the run.
        data: the data set, from `load_data`.
        lanes: the networks to train side by side; if not given, one for each seed.
        start_from: maps the initial states of all lanes to those to start from, with other weights
            or with masks for example.
        quiet: whether to leave out the progress bar.

    Raises:
        RunError, CheckpointError, TrackerError: the run cannot start or continue; see `train.run`.
    """
    lanes = lanes_of(settings) if lanes is None else lanes
    mesh = mesh_for(settings, lanes)
    network = Network.of(settings, data)
    optimizer = optimizer_of(settings)
    step = make_step(
        network,
        optimizer,
        UsedTerms.of(lanes),
        stop_gradient=settings.stop_gradient,
        form=TermForm(settings.order, settings.debiased),
        augment=settings.augment,
    )
    states = initial_state(network, optimizer, lanes)
    if start_from is not None:
        states = start_from(states)

    with open_run(settings, about(data), lanes, quiet=quiet) as run:
        run.say(described(mesh, len(lanes)))
        states, start = run.restore(states)
        trainer = Trainer(
            jax.vmap(step),
            loader_of(data.train, settings.batch_size, mesh),
            lanes,
            states,
            mesh,
            steps_per_call=settings.steps_per_call,
            lanes_per_call=settings.lanes_per_call,
            slow_together=is_slow(settings.model),
            unfinished=run.unfinished,
        )
        evaluate = evaluation(network, settings, data, mesh, networks=trainer.largest_group)
        for event in run.events(after=start):
            terms = advance([trainer], event, stop=run.stop.asked)
            if terms is None:
                run.interrupt(trainer.step, trainer.all_states, trainer.unfinished())
            run.record(event, terms, evaluate(trainer.groups))
            run.save(event, trainer.all_states)
    return Result(run.folder, source_of(data), run.records(), lanes, trainer.all_states())


def optimizer_of(settings: SupervisedTraining) -> Optimizer:
    """SGD with the momentum of the settings, and the learning rate of each lane."""
    return sgd_with_cosine(steps=settings.steps, momentum=settings.momentum)


def make_step(
    network: Network,
    optimizer: Optimizer,
    used: UsedTerms,
    *,
    stop_gradient: Side | None = None,
    form: TermForm = PUBLISHED,
    augment: bool = False,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Terms]]:
    """The step of one lane on one batch: `(state, images, labels) -> (state, terms)`.

    With `augment` the images are cropped and flipped first, with a key that is a function of seed,
    copy and step. Weights that the masks of the state hold at zero stay exactly zero.
    """

    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Terms]:
        if augment:
            images = crop_and_flip(images, augmentation_key(state))

        def loss(params: Any) -> tuple[Array, tuple[Terms, Any]]:
            logits, features, head, rest = network.apply(params, state.rest, images, train=True)
            ce = smoothed_cross_entropy(logits, labels, state.knobs)
            information = information_terms(
                features, head, labels, used, stop_gradient=stop_gradient, form=form
            )
            terms = Terms.of(ce, information, state.knobs)
            return terms.loss, (terms, rest)

        # `rest`, the statistics of batch norm, is not trained: the forward pass updates it.
        gradient, (terms, rest) = jax.grad(loss, has_aux=True)(state.params)
        return descend(state._replace(rest=rest), gradient, optimizer), terms

    return step


def smoothed_cross_entropy(logits: Array, labels: Array, knobs: Knobs) -> Array:
    """Mean cross-entropy against `(1 - smoothing) y + smoothing / num_classes`."""
    # Cross-entropy is linear in the target, so that smoothed labels need not be made.
    hard = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    uniform = -jnp.mean(jax.nn.log_softmax(logits))
    return (1 - knobs.smoothing) * hard + knobs.smoothing * uniform


def evaluation(
    network: Network, settings: SupervisedTraining, data: ImageData, mesh: Mesh, *, networks: int
) -> Callable[[Sequence[Group]], list[Metrics]]:
    """A function that measures all lanes at an event: `groups -> metrics`.

    Args:
        network: the network that the lanes share.
        settings: which splits are measured, and how.
        data: the data set with the splits.
        mesh: the devices, over which lanes and batches are divided.
        networks: the largest number of lanes in a group, whose features are held together.
    """
    splits = {"test": data.test} | ({"train": data.train} if settings.eval_train else {})
    evaluators: dict[str, Evaluator | LayerEvaluator] = {
        f"{name}_": Evaluator(network, split, data.num_classes, settings, mesh, networks=networks)
        for name, split in splits.items()
    }
    if settings.eval_layers:
        evaluators["layer_"] = LayerEvaluator(network, data.test, data.num_classes, settings, mesh)

    def evaluate_group(group: Group) -> list[Metrics]:
        metrics: list[Metrics] = [{} for _ in group.lanes]
        for prefix, evaluator in evaluators.items():
            measures = evaluator(group.states, lanes=len(group.lanes))
            for of_lane, measured in zip(metrics, measures, strict=True):
                # The prefix keeps apart what is measured under one name on several splits.
                of_lane |= {f"{prefix}{name}": value for name, value in measured.items()}
        return metrics

    return lambda groups: [metrics for group in groups for metrics in evaluate_group(group)]


def describe(settings: Supervised) -> str:
    """The loss in words, for titles."""
    parts = ["cross-entropy"]
    if settings.mi_weight:
        parts.append(f"{settings.mi_weight:g} · MI")
    if settings.ed_weight:
        parts.append(f"{settings.ed_weight:g} · ED")
    if settings.smoothing:
        parts[0] += f" (smoothed, {settings.smoothing:g})"
    of_terms = settings.mi_weight or settings.ed_weight
    return " + ".join(parts) + (settings.form() if of_terms else "")


def main() -> None:
    """Runs the command."""
    with exit_on_user_error(resumable=True):
        settings = from_command_line(PRESETS)
        enable_cache()
        with mirrored(settings):
            result = run(settings)
            n = int(result.records[-1]["test_n"])
            runs = {describe(settings): result.records}
            undirected = without_direction(final_records(result.records))
            comparison(runs, title=f"{result.data}, n = {n:,}{undirected}").show()
            print(f"Metrics, events, checkpoints and pictures are in {result.folder}/")


if __name__ == "__main__":
    main()
