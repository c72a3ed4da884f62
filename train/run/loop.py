"""The training loop that all experiments share."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from train.run.checkpoint import Checkpoints
from train.run.folder import RunError, claim, same_settings
from train.run.lanes import Lane
from train.run.settings import RunSettings
from train.run.trackers import JsonLines, TensorBoard, Tracker, WandB, check_wandb, read_jsonl


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    folder: Path
    data: str
    """Name of the data, with a note on where they differ from the published ones."""
    records: list[dict[str, Any]]
    lanes: Sequence[Lane]
    states: Any
    """Of the lanes, stacked."""


class Trainer(Protocol):
    """What the loop asks of whatever takes the steps."""

    rows: list[range]
    """The lanes of each group that is trained and evaluated together."""
    states: list[Any]
    """The stacked states of each group."""

    def advance(self, to: int) -> list[dict[str, float]]:
        """Takes all lanes to step `to`; the mean terms of the steps taken, for each lane."""

    def all_states(self) -> Any:
        """The states of all lanes, stacked."""


def run_lanes(
    settings: RunSettings,
    about: dict[str, Any],
    lanes: Sequence[Lane],
    states: Any,
    trainer_of: Callable[[Any], tuple[Trainer, Callable[[int, Any], list[dict[str, float]]]]],
    *,
    quiet: bool = False,
) -> tuple[list[dict[str, Any]], Any]:
    """Trains all lanes, evaluates them at the events of the settings, saves, resumes.

    Args:
        settings: of the run; written to `settings.json` in its folder.
        about: what else the settings file says of the run.
        lanes: what is trained side by side.
        states: of the lanes at step 0, stacked.
        trainer_of: makes of the states to start or go on from the trainer, and the evaluation
            `(group, states of that group) -> metrics of each lane`.
        quiet: no progress bar.

    Returns:
        All metric records, and the last states.

    Raises:
        RunError: the folder holds something else, settings changed since the start, or the loss
            became non-finite.
        CheckpointError: the checkpoint to resume from is unusable.
        TrackerError: Weights & Biases is asked for and cannot be used.
    """
    check_wandb(settings.wandb)
    folder = claim(settings, about | {"lanes": [lane.as_json() for lane in lanes]})
    checkpoints = Checkpoints(folder / "checkpoints")
    start = 0
    if settings.resume and (latest := checkpoints.latest()) is not None:
        states, saved = checkpoints.restore(latest, states)
        same_settings(settings, saved)
        start = latest
        _has_metrics(folder, start)
    trainer, evaluate = trainer_of(states)
    trackers: list[Tracker] = [
        JsonLines(folder / "metrics.jsonl", keep_to=start if start else -1),
        TensorBoard(folder / "events", keep_to=start if start else -1),
    ]
    if settings.wandb is not None:
        trackers.append(WandB(settings.wandb, folder, about | settings.as_json()))
    finished = False

    def record(step: int, terms: list[dict[str, float]]) -> None:
        for group, rows in enumerate(trainer.rows):
            found = evaluate(group, trainer.states[group])
            for row, values in zip(rows, found, strict=True):
                for tracker in trackers:
                    tracker.write(step, lanes[row], terms[row] | values)

    try:
        if start == 0:
            record(0, [{} for _ in lanes])
        events = [event for event in settings.events() if event > start]
        for event in _progress(events, settings.steps, start, quiet):
            record(event, trainer.advance(event))
            if settings.is_saved(event):
                checkpoints.save(event, trainer.all_states(), settings.as_json())
        finished = True
    finally:
        # All are closed, even if one of them raises, on a full disk for example.
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            for tracker in trackers:
                stack.callback(tracker.close, failed=not finished)
    return read_jsonl(folder / "metrics.jsonl"), trainer.all_states()


def _has_metrics(folder: Path, step: int) -> None:
    place = folder / "metrics.jsonl"
    if not place.exists() or not read_jsonl(place, needs="step"):
        raise RunError(
            f"{place} is missing or empty, but there is a checkpoint of step {step:,}. Put the file back, or "
            "start again in another folder (--out)."
        )


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
