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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from train.algorithms import Algorithm, algorithm
from train.classifier import about, source_of
from train.evaluate import Evaluator, closed_forms
from train.experiment import run_command
from train.folders import write_text
from train.groups import Groups
from train.images import DataError
from train.lanes import Lane, lanes_of
from train.loop import Result, run_lanes
from train.parallel import data_mesh
from train.plots import Line, Panel, draw, levels
from train.pool import Pool, PoolFeed, load_pool
from train.presets import PAPER, SMALL
from train.records import Record, curves, final_records
from train.semisupervised_step import Augmentation, Information, Part, make_step
from train.settings import Settings
from train.state import Network, TrainState, initial_state
from train.summary import Summary
from train.tables import table_of

# Mirrored, these are other signs.
_NOT_FLIPPED = ("digits", "mnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class Semisupervised(Settings):
    """One semi-supervised algorithm on a data set of which few samples keep their labels."""

    algorithm: Literal[
        "supervised", "pseudo_label", "uda", "fixmatch", "flexmatch", "softmatch", "freematch"
    ] = "freematch"
    """What is learned of the unlabelled images; `supervised` does not read them."""
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
        uses = ("labelled", *self.method().uses)
        if (self.mi_weight or self.ed_weight) and not set(self.information_on) <= set(uses):
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


def fit(
    settings: Semisupervised,
    pool: Pool,
    lanes: Sequence[Lane] | None = None,
    *,
    quiet: bool = False,
) -> Result:
    """Trains all lanes, one for each seed if none are given, and evaluates them on the way."""
    lanes = lanes_of(settings) if lanes is None else lanes
    method, network = settings.method(), Network.of(settings, pool.data)
    unlabelled = settings.unlabelled_ratio * settings.batch_size if method.uses else 0
    if unlabelled > len(pool.truth):
        raise DataError(
            f"unlabelled_ratio {settings.unlabelled_ratio} times batch_size {settings.batch_size} is more than "
            f"the images there are, {len(pool.truth)}."
        )
    mesh, transform = data_mesh(settings.batch_size, settings.devices), optimizer(settings)
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

    def trainer_of(states: TrainState) -> tuple[Groups, Any]:
        lists = {str(seed): chosen.tolist() for seed, chosen in pool.labelled.items()}
        write_text(settings.out / "labelled.json", json.dumps(lists) + "\n")
        feed = PoolFeed(pool, settings.batch_size, unlabelled, mesh)
        groups = _Groups(settings, lanes, states, step, feed, mesh)
        measure = Measure(network, settings, pool, method, groups, mesh)
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


class _Groups(Groups):
    """Tells the accuracy of pseudo-labels too."""

    def advance(self, to: int) -> list[dict[str, float]]:
        """As the loop asks, with the share of right ones among those that count and are known."""
        found = super().advance(to)
        for values in found:
            correct, known = values.pop("step_correct"), values.pop("step_known")
            if known > 0:
                values["step_pseudo_accuracy"] = correct / known
        return found


class Measure:
    """Metrics of the averaged weights on the test, labelled and unlabelled sets, and the thresholds."""

    def __init__(
        self,
        network: Network,
        settings: Semisupervised,
        pool: Pool,
        method: Algorithm,
        groups: Groups,
        mesh: Mesh,
    ):
        data, lanes = pool.data, max(map(len, groups.rows))
        self._classes, self._method = data.num_classes, method
        self._whole = {
            "test_": Evaluator(network, data.test, self._classes, settings, mesh, networks=lanes)
        }
        if settings.eval_train:
            self._whole["unlabelled_"] = Evaluator(
                network, pool.known(), self._classes, settings, mesh, networks=lanes
            )
        self._splits = {seed: pool.labelled_split(seed) for seed in pool.labelled}
        first = next(iter(self._splits.values()))
        self._labelled = Evaluator(network, first, self._classes, settings, mesh)

    def __call__(self, states: TrainState, seeds: Sequence[int]) -> list[dict[str, float]]:
        """The metrics of each lane of a group."""
        averaged = states._replace(params=states.average)
        found: list[dict[str, float]] = []
        for i, seed in enumerate(seeds):
            one = jax.tree.map(lambda x, i=i: x[i : i + 1], averaged)
            (values,) = self._labelled(one, self._splits[seed])
            extra = jax.tree.map(lambda x, i=i: x[i], states.extra)
            limits = np.asarray(self._method.thresholds(extra, self._classes))
            own = {f"labelled_{k}": v for k, v in values.items()}
            if np.all(np.isfinite(limits)):
                own["threshold_mean"], own["threshold_max"] = limits.mean(), limits.max()
                own |= {f"threshold_class{c}": limit for c, limit in enumerate(limits)}
            found.append({k: float(v) for k, v in own.items()})
        for prefix, evaluator in self._whole.items():
            for values, measured in zip(found, evaluator(averaged), strict=True):
                values |= {f"{prefix}{k}": v for k, v in measured.items()}
        return found


def run(settings: Semisupervised, *, quiet: bool = False) -> Summary:
    """Trains, sums up, draws."""
    pool = load_pool(settings, settings.labels)
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


def name_of(settings: Semisupervised) -> str:
    """The algorithm and its information terms."""
    terms = (
        (f"{settings.mi_weight:g} MI", settings.mi_weight),
        (
            f"{settings.ed_weight:g} ED",
            settings.ed_weight,
        ),
    )
    return " + ".join([settings.algorithm, *(name for name, weight in terms if weight)])


def summarize(
    settings: Semisupervised, source: str, num_classes: int, records: Sequence[Record]
) -> Summary:
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
