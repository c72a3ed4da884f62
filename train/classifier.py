"""Training of image classifiers: the loop with the batches, the network and the metrics of a data set."""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array
from jax.sharding import Mesh

from train.evaluate import Evaluator
from train.feeds import feed_of
from train.groups import Groups
from train.lanes import Lane
from train.layers import LayerEvaluator
from train.loop import Result, run_lanes
from train.parallel import data_mesh
from train.settings import Settings
from train.state import Network, TrainState, initial_state, optimizer
from train.step import make_step


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


def about(data: Any) -> dict[str, Any]:
    """What the settings file of a run says of its data."""
    return {"data": data.name, "source": data.source_note, "classes": data.num_classes}


def source_of(data: Any) -> str:
    """The name of the data, with a note on where they differ from the published ones."""
    return f"{data.name} ({data.source_note})" if data.source_note else data.name


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
