"""Learn from few labels and many unlabelled images: `python -m train.semisupervised`.

Presets: `small` (the default: FreeMatch, a small convolutional network on CIFAR-10 with 40 labels, about
two minutes a seed on 2 cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 with the published
settings; needs an accelerator).

With `--dataset folder:PATH` the images in `PATH/train/CLASS/` are the labelled ones (give `--labels None`),
those in `PATH/unlabelled/` have none, and `PATH/test/CLASS/` is for the measurements.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from train.algorithms import Algorithm, algorithm
from train.classifier import about, source_of
from train.experiment import run_command
from train.folders import write_text
from train.groups import Groups
from train.images import DataError
from train.lanes import Lane, lanes_of
from train.loop import Result, run_lanes
from train.parallel import data_mesh
from train.pool import Pool, PoolFeed, load_pool
from train.presets import PAPER, SMALL
from train.semisupervised_measure import JudgedGroups, Measure
from train.semisupervised_step import Augmentation, Information, Part, make_step
from train.semisupervised_summary import summarize
from train.settings import Settings
from train.state import Network, TrainState, initial_state
from train.summary import Summary

# Mirrored, these are other signs.
_NOT_FLIPPED = ("digits", "mnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class Semisupervised(Settings):
    """One semi-supervised algorithm on a data set of which few samples keep their labels."""

    algorithm: Literal[
        "supervised", "pseudo_label", "uda", "fixmatch", "flexmatch", "softmatch", "freematch"
    ] = "freematch"
    """What is learned of the unlabelled images; `supervised` does not read them."""
    learning_rate: float = 0.03
    """At the start; `cos(7 π k / 16 K)` of it at step k of K."""
    labels: int | None = 40
    """Samples that keep their labels, as many of each class, drawn by the seed; all, if None."""
    unlabelled_ratio: int = 7
    """Unlabelled samples a step, as a multiple of `batch_size`."""
    unlabelled_weight: float = 1.0
    """Of the loss on unlabelled samples."""
    threshold: float | None = None
    """Confidence from which on pseudo-labels count; the algorithm's own, if not given."""
    temperature: float | None = None
    """Of the targets of `uda`."""
    statistics_momentum: float = 0.999
    """Weight of the old statistics in `softmatch` and `freematch`; short runs need less."""
    fairness_weight: float | None = None
    """Of the fairness term of `freematch`; 0.01, if not given."""
    augment: bool = True
    """Weak augmentation: reflect-pad by an eighth of the side, crop, flip."""
    flip: bool | None = None
    """Whether weak augmentation flips; if not given, all data sets but those of digits."""
    average_momentum: float = 0.999
    """Of the moving average of the weights, which is what is evaluated."""
    mi_weight: float = 0.0
    """Weight of the mutual information of features and head rows, in nats (maximised)."""
    ed_weight: float = 0.0
    """Weight of the difference of their entropies, in nats (minimised)."""
    information_on: tuple[Part, ...] = ("labelled", "weak")
    """Samples of these two terms, together."""
    information_samples: Literal["passed", "all"] = "passed"
    """Unlabelled ones by the weight that the algorithm gives them, or all alike."""
    information_rows: Literal["hard", "soft"] = "hard"
    """Their rows of the head: of the pseudo-label, or the mean by the weak prediction."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side that the two terms do not train."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("unlabelled_ratio", "labels")
        for name in ("average_momentum", "statistics_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        self.distinct("information_on")
        if self.unlabelled_weight < 0:
            raise ValueError(
                f"unlabelled_weight must not be negative, got {self.unlabelled_weight}."
            )
        for name in ("train_size", "eval_layers"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is for supervised training; give --labels instead of a size."
                )
        self.method()
        if self.mi_weight or self.ed_weight:
            self.fits_terms()

    def fits_terms(self) -> None:
        """Raises `ValueError` if the information terms are on samples that the algorithm does not use."""
        uses = ("labelled", *self.method().uses)
        if not set(self.information_on) <= set(uses):
            raise ValueError(
                f"information_on must be of {', '.join(uses)} with {self.algorithm}, got "
                f"{', '.join(self.information_on)}."
            )

    def method(self) -> Algorithm:
        """The algorithm with its settings."""
        adapts = self.algorithm in ("softmatch", "freematch")
        return algorithm(
            self.algorithm,
            threshold=self.threshold,
            temperature=self.temperature,
            momentum=self.statistics_momentum if adapts else None,
            fairness_weight=self.fairness_weight,
        )


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


if __name__ == "__main__":
    run_command(PRESETS, run)
