"""Train a classifier with and without the information losses: `python -m train.supervised`.

Presets: `small` (the default: an MLP on digits, about a minute on 2 cores), `smoke` (seconds, for
tests), `paper` (WideResNet-28-2 on CIFAR-10 with the published settings; needs an accelerator).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jax import Array
from jax.sharding import Mesh

from train.data.load import load
from train.data.subsets import balanced_part
from train.data.types import DataError, ImageData, about, source_of
from train.engine.loader import feed_of
from train.engine.sharding import data_mesh
from train.engine.state import Network, TrainState, initial_state, optimizer
from train.engine.step import information_loss, make_step
from train.engine.trainer import Groups
from train.evaluation.closed_forms import closed_forms
from train.evaluation.evaluator import Evaluator
from train.evaluation.layers import LayerEvaluator
from train.reporting.plots import plot_runs
from train.reporting.summary import show
from train.run.command import enable_cache, from_command_line
from train.run.errors import told
from train.run.lanes import Lane, lanes_of
from train.run.loop import Result, run_lanes
from train.run.settings import PAPER, Settings


@dataclasses.dataclass(frozen=True)
class Supervised(Settings):
    """Cross-entropy - mi_weight · MI + ed_weight · |H1 - H2| on a labelled data set."""

    mi_weight: float = 0.0
    """Weight of the mutual information of features and head rows of a batch, in nats (maximised)."""
    ed_weight: float = 0.0
    """Weight of the difference of their entropies, in nats (minimised)."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side that the two terms do not train."""
    smoothing: float = 0.0
    """ε of label smoothing: the cross-entropy is against (1 - ε) y + ε / C."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}.")


PRESETS = {
    "small": Supervised(),
    "smoke": Supervised(steps=20, eval_every=10, out=Path("runs/smoke")),
    "paper": Supervised(
        **PAPER,
        eval_every=5000,
        out=Path("runs/cifar10-wrn-28-2"),
    ),
}


def load_data(settings: Settings) -> ImageData:
    """The data set that the settings name, cut to `train_size`."""
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        memory_limit_mib=settings.memory_limit_mib,
        image_size=settings.image_size,
    )
    if settings.train_size is not None:
        part = balanced_part(data.train, settings.train_size, name="train_size")
        note = f"{settings.train_size:,} of {len(data.train):,} training images"
        note = f"{data.source_note}; {note}" if data.source_note else note
        data = dataclasses.replace(data, train=part, source_note=note)
    # What does not fit together is told before a folder is claimed.
    Network.of(settings, data)
    data_mesh(settings.batch_size, settings.devices)
    if settings.batch_size > len(data.train):
        raise DataError(
            f"batch_size {settings.batch_size} is larger than the training split, "
            f"{len(data.train)} samples."
        )
    return data


def train(
    settings: Settings,
    data: Any,
    loss: Callable[..., tuple[Array, Any]],
    lanes: Sequence[Lane],
    *,
    start_from: Callable[[TrainState], TrainState] | None = None,
    quiet: bool = False,
) -> Result:
    """Trains all lanes on `data` and evaluates them on the way.

    Args:
        settings: of the run.
        data: from `train.data.load`.
        loss: `(logits, features, head, labels, knobs) -> (loss, Terms)`.
        lanes: what is trained side by side.
        start_from: changes the initial states of the lanes: other weights, masks.
        quiet: no progress bar.

    Raises:
        RunError, CheckpointError: as `run_lanes`.
    """
    mesh = data_mesh(settings.batch_size, settings.devices)
    network, transform = Network.of(settings, data), optimizer(settings)
    states = initial_state(network, transform, lanes)
    states = states if start_from is None else start_from(states)
    step = make_step(network, transform, loss, augment=settings.augment)

    def trainer_of(states: TrainState) -> tuple[Groups, Callable]:
        feed = feed_of(data.train, settings.batch_size, mesh)
        groups = Groups(settings, lanes, states, step, feed, mesh)
        return groups, _evaluation(network, settings, data, groups, mesh)

    records, states = run_lanes(settings, about(data), lanes, states, trainer_of, quiet=quiet)
    return Result(settings.out, source_of(data), records, lanes, states)


def fit(
    settings: Supervised,
    data: ImageData,
    lanes: Sequence[Lane] | None = None,
    *,
    start_from: Callable[[TrainState], TrainState] | None = None,
    quiet: bool = False,
) -> Result:
    """`train` with the loss of the settings; a lane for each seed, if none are given."""
    lanes = lanes_of(settings) if lanes is None else lanes
    loss = information_loss(lanes, settings.stop_gradient)
    return train(settings, data, loss, lanes, start_from=start_from, quiet=quiet)


def _evaluation(
    network: Network, settings: Settings, data: Any, groups: Groups, mesh: Mesh
) -> Callable[[int, TrainState], list[dict[str, float]]]:
    """All that is measured of the states of one group, a dictionary a lane."""
    networks = max(map(len, groups.rows))
    splits = {"test": data.test} | ({"train": data.train} if settings.eval_train else {})
    evaluators: dict[str, Callable] = {
        f"{name}_": Evaluator(network, split, data.num_classes, settings, mesh, networks=networks)
        for name, split in splits.items()
    }
    if settings.eval_layers:
        evaluators["layer_"] = LayerEvaluator(network, data.test, data.num_classes, settings)

    def evaluate(_: int, states: TrainState) -> list[dict[str, float]]:
        logged: list[dict[str, float]] = [{} for _ in states.seed]
        for prefix, evaluator in evaluators.items():
            for values, found in zip(logged, evaluator(states), strict=True):
                values |= {f"{prefix}{name}": value for name, value in found.items()}
        return logged

    return evaluate


def run(settings: Supervised, *, quiet: bool = False) -> Result:
    """Trains, and writes pictures beside the metrics."""
    data = load_data(settings)
    result = fit(settings, data, quiet=quiet)
    title = (
        f"{result.data}, {settings.model}, {describe(settings)}, seeds: {settings.seeds}\n"
        f"whole test set: n = {int(result.records[-1]['test_n'])}, batches of {settings.metric_batch}"
    )
    picture = result.folder / "curves.png"
    plot_runs({"": result.records}, closed_forms(data.num_classes), picture, title=title)
    return result


def describe(settings: Supervised) -> str:
    """The loss in words."""
    parts = ["cross-entropy"]
    if settings.mi_weight:
        parts.append(f"{settings.mi_weight:g} · MI")
    if settings.ed_weight:
        parts.append(f"{settings.ed_weight:g} · ED")
    if settings.smoothing:
        parts[0] += f" (smoothed, {settings.smoothing:g})"
    return " + ".join(parts)


def main() -> None:
    """Command line."""
    with told(resumable=True):
        settings = from_command_line(PRESETS)
        enable_cache()
        result = run(settings)
        n = int(result.records[-1]["test_n"])
        show({describe(settings): result.records}, title=f"{result.data}, n = {n}")
        print(f"Metrics, events, checkpoints and pictures are in {result.folder}/")


if __name__ == "__main__":
    main()
