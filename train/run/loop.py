"""What surrounds the loop of a training command: folder, checkpoints, trackers, progress bar.

Of several processes the first alone reads and writes the folder, and tells the others what they
need of it: their disks may be others.
"""

import contextlib
import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from train.run import hosts
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.files import read_jsonl
from train.run.folder import claim, same_settings
from train.run.lanes import Lane
from train.run.mirrored import copy_to_mirror, mirrored
from train.run.settings import RunSettings
from train.run.stopping import Interrupted, StopRequest
from train.run.trackers import JsonLines, TensorBoard, Tracker, WandB, check_wandb

Metrics = dict[str, float]
"""Measured numbers of one lane at one step, by name."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    folder: Path
    data: str
    """Name of the data set, with a note on how it departs from the published one."""
    records: list[dict[str, Any]]
    lanes: Sequence[Lane]
    states: Any
    """The stacked states of all lanes at the last step."""


class Run:
    """A run whose loop is written out in the training command; `open_run` makes it.

    ```python
    with open_run(settings, about, lanes) as run:
        states, start = run.restore(states)
        for event in run.events(after=start):
            ...  # train up to this step, or until `run.stop.asked()`, and then `run.interrupt(...)`
            run.record(event, terms, metrics)
            run.save(event, trainer.all_states)
    records = run.records()
    ```
    """

    def __init__(
        self,
        settings: RunSettings,
        about: Mapping[str, Any],
        lanes: Sequence[Lane],
        *,
        quiet: bool = False,
    ):
        check_wandb(settings.wandb)
        self.folder = claim(settings, {**about, "lanes": [lane.as_json() for lane in lanes]})
        self._settings, self._about, self._lanes, self._quiet = settings, about, lanes, quiet
        self._checkpoints = Checkpoints(self.folder / "checkpoints") if hosts.is_first() else None
        self._trackers: list[Tracker] = []
        self.stop = StopRequest()
        """Whether somebody asked the run to stop."""
        self.unfinished: Any = None
        """What `interrupt` was given by the run that is resumed, if it had not reached an event."""

    def say(self, line: str | None) -> None:
        """Prints a line about the run, unless it is quiet."""
        if line is not None and not self._quiet:
            print(line)

    def restore(self, states: Any) -> tuple[Any, int]:
        """The states to start from and the step that they have reached; opens the trackers.

        A resumed run gets the states of the last checkpoint. A new one gets `states` and the step
        -1, since not even the evaluation at step 0 is done.

        Raises:
            RunError: the settings have changed, or the metrics of the run are missing.
            CheckpointError: the checkpoint cannot be used.
        """
        start = -1
        if self._settings.resume:
            states, start, self.unfinished = self._restored(states)
        if not hosts.is_first():
            return states, start
        # Metrics that a killed run wrote after its last checkpoint are dropped and written again.
        self._trackers.append(JsonLines(self.folder / "metrics.jsonl", keep_to=start))
        # A machine that was made for other work may lack it; commands ask for it beforehand.
        if importlib.util.find_spec("tensorboardX") is not None:
            self._trackers.append(TensorBoard(self.folder / "events", keep_to=start))
        if self._settings.wandb is not None:
            config = {**self._about, **self._settings.as_json()}
            self._trackers.append(WandB(self._settings.wandb, self.folder, config))
        return states, start

    def _restored(self, states: Any) -> tuple[Any, int, Any]:
        """The states of the last checkpoint, its step, and what an interruption left unfinished."""
        start, unfinished = -1, None
        if self._checkpoints is not None and (latest := self._checkpoints.latest()) is not None:
            states, about = self._checkpoints.restore(latest, states)
            same_settings(self._settings, about["settings"])
            start, unfinished = latest, about.get("unfinished")
            _require_metrics(self.folder, start)
        start, unfinished = hosts.from_first(lambda: (start, unfinished))
        return (states if start < 0 else hosts.arrays_of_first(states)), start, unfinished

    def events(self, *, after: int) -> Iterator[int]:
        """The steps at which the lanes are evaluated, from 0 on, under a progress bar in steps."""
        left = [step for step in (0, *self._settings.events()) if step > after]
        # A very narrow terminal would wrap the bar.
        if self._quiet or shutil.get_terminal_size().columns < 20:
            yield from left
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress("steps", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("", total=self._settings.steps, completed=max(after, 0))
            for step in left:
                yield step
                bar.update(task, completed=step)

    def record(self, step: int, terms: Sequence[Metrics], metrics: Sequence[Metrics]) -> None:
        """Writes the mean terms of the loss and the evaluation of each lane to all trackers."""
        for lane, trained, evaluated in zip(self._lanes, terms, metrics, strict=True):
            for tracker in self._trackers:
                tracker.write(step, lane, trained | evaluated)

    def save(self, step: int, states: Callable[[], Any]) -> None:
        """Writes a checkpoint of the states of all lanes, if the settings ask for one now."""
        if self._settings.is_saved(step):
            self._save(step, states, {})

    def interrupt(self, step: int, states: Callable[[], Any], unfinished: Any) -> NoReturn:
        """Saves a checkpoint between two events, and ends the run as was asked.

        Args:
            step: the step that the lanes have reached.
            states: gives the states of all lanes.
            unfinished: what the resumed run needs besides, as plain values.

        Raises:
            Interrupted: always.
        """
        self._save(step, states, {"unfinished": unfinished})
        raise Interrupted(
            f"interrupted at step {step:,}, of which a checkpoint is in {self.folder}. Continue "
            "with the same command and --resume.",
            self.stop.status,
        )

    def _save(self, step: int, states: Callable[[], Any], more: dict[str, Any]) -> None:
        whole = states()
        if self._checkpoints is not None and self._checkpoints.latest() != step:
            about = {"settings": self._settings.as_json(), **more}
            self._checkpoints.save(step, whole, about)
        copy_to_mirror()
        # Nobody goes on before it is written: the next collective would not wait for so long.
        hosts.gathered(None)

    def records(self) -> list[dict[str, Any]]:
        """All metrics of the run, including those from before it was resumed."""
        return hosts.from_first(lambda: read_jsonl(self.folder / "metrics.jsonl"))

    def __enter__(self) -> "Run":
        self.stop.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The stack closes all of them even if one raises an error, on a full disk for example.
        with contextlib.ExitStack() as stack:
            stack.push(lambda *_: self.stop.__exit__(kind))
            if self._checkpoints is not None:
                stack.callback(self._checkpoints.close)
            for tracker in self._trackers:
                stack.callback(tracker.close, failed=error is not None)


@contextlib.contextmanager
def open_run(
    settings: RunSettings,
    about: Mapping[str, Any],
    lanes: Sequence[Lane],
    *,
    quiet: bool = False,
) -> Iterator[Run]:
    """Claims the folder of a new or resumed run, and at the end closes what the run has opened.

    Args:
        settings: the settings, which are written to `settings.json` in the folder.
        about: what else that file says of the run, for instance its data.
        lanes: the networks that are trained side by side.
        quiet: show no progress bar.

    Raises:
        RunError: the folder holds something else.
        TrackerError: Weights & Biases was requested but is not installed.
    """
    with mirrored(settings), Run(settings, about, lanes, quiet=quiet) as run:
        yield run


def _require_metrics(folder: Path, step: int) -> None:
    place = folder / "metrics.jsonl"
    if not place.exists() or not read_jsonl(place, needs="step"):
        raise RunError(
            f"{place} is missing or empty, but there is a checkpoint of step {step:,}. Put the "
            "file back, or start again in another folder (--out)."
        )
