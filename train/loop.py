"""The training loop that all experiments share."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax import Array

from train.checkpoint import CheckpointError, Checkpoints
from train.evaluate import Evaluator
from train.folders import RunError, claim, same_settings
from train.groups import Groups
from train.lanes import Lane
from train.layers import LayerEvaluator
from train.settings import Settings
from train.state import Network, TrainState, initial_state, optimizer
from train.step import make_step
from train.trackers import JsonLines, TensorBoard, read_jsonl


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    folder: Path
    data: str
    """Name of the data, with a note on where they differ from the published ones."""
    records: list[dict[str, Any]]
    lanes: Sequence[Lane]
    states: TrainState
    """Of the lanes, stacked."""


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
        settings: of the run; written to `settings.json` in its folder.
        data: from `train.data.load`.
        loss: `(logits, features, head, labels, knobs) -> (loss, Terms)`.
        lanes: what is trained side by side.
        start_from: changes the initial states of the lanes: other weights, masks.
        quiet: no progress bar.

    Raises:
        RunError: the folder holds something else, settings changed since the start, or the loss
            became non-finite.
        CheckpointError: the checkpoint to resume from is unusable.
    """
    network, transform = Network.of(settings, data), optimizer(settings)
    folder = claim(settings, about(data) | {"lanes": [lane.as_json() for lane in lanes]})
    checkpoints = Checkpoints(folder / "checkpoints")
    states = initial_state(network, transform, lanes)
    states = states if start_from is None else start_from(states)
    start = 0
    if settings.resume and (latest := checkpoints.latest()) is not None:
        states, saved = checkpoints.restore(latest, states)
        same_settings(settings, saved)
        start = latest
    trackers = [
        JsonLines(folder / "metrics.jsonl", keep_to=start if start else -1),
        TensorBoard(folder / "events", keep_to=start if start else -1),
    ]
    groups = Groups(
        settings, data, lanes, states, make_step(network, transform, loss, augment=settings.augment)
    )
    evaluate = _evaluation(network, settings, data, groups)

    def record(step: int, terms: list[dict[str, float]]) -> None:
        for states_of_group, rows in zip(groups.states, groups.rows, strict=True):
            for row, values in zip(rows, evaluate(states_of_group), strict=True):
                for tracker in trackers:
                    tracker.write(step, lanes[row], terms[row] | values)

    every = settings.eval_every if settings.checkpoint_every is None else settings.checkpoint_every
    try:
        if start == 0:
            record(0, [{} for _ in lanes])
        events = list(range(start + settings.eval_every, settings.steps, settings.eval_every))
        events += [settings.steps] if start < settings.steps else []
        for event in _progress(events, settings.steps, start, quiet):
            record(event, groups.advance(event))
            if event == settings.steps or (every and event % every == 0):
                checkpoints.save(event, groups.all_states(), settings.as_json())
    finally:
        for tracker in trackers:
            tracker.close()
        checkpoints.close()
    records = read_jsonl(folder / "metrics.jsonl")
    return Result(folder, source_of(data), records, lanes, groups.all_states())


def about(data: Any) -> dict[str, Any]:
    """What the settings file of a run says of its data."""
    return {"data": data.name, "source": data.source_note, "classes": data.num_classes}


def source_of(data: Any) -> str:
    """The name of the data, with a note on where they differ from the published ones."""
    return f"{data.name} ({data.source_note})" if data.source_note else data.name


def _evaluation(
    network: Network, settings: Settings, data: Any, groups: Groups
) -> Callable[[TrainState], list[dict[str, float]]]:
    """All that is measured of the states of one group, a dictionary a lane."""
    splits = {"test": data.test} | ({"train": data.train} if settings.eval_train else {})
    evaluators: dict[str, Callable] = {
        f"{name}_": Evaluator(network, split, data.num_classes, settings, groups.mesh)
        for name, split in splits.items()
    }
    if settings.eval_layers:
        evaluators["layer_"] = LayerEvaluator(network, data.test, data.num_classes, settings)

    def evaluate(states: TrainState) -> list[dict[str, float]]:
        logged: list[dict[str, float]] = [{} for _ in states.seed]
        for prefix, evaluator in evaluators.items():
            for values, found in zip(logged, evaluator(states), strict=True):
                values |= {f"{prefix}{name}": value for name, value in found.items()}
        return logged

    return evaluate


def _progress(events: list[int], steps: int, start: int, quiet: bool) -> Iterator[int]:
    """The events, under a progress bar in steps unless `quiet`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    if quiet or shutil.get_terminal_size().columns < 20:
        yield from events
        return
    with Progress("steps", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=steps, completed=start)
        for event in events:
            yield event
            bar.update(task, completed=event)


__all__ = ["CheckpointError", "Result", "RunError", "about", "source_of", "train"]
