"""Trackers, to which a run writes its metrics: JSON lines, TensorBoard, and Weights & Biases."""

import contextlib
import importlib
import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from train.run.errors import UserError
from train.run.files import json_line, legible, read_jsonl, write_jsonl, write_text
from train.run.lanes import Lane


class Tracker(Protocol):
    """What a run expects of a tracker; write your own for another service."""

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Records the values of one lane at one step."""

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes the tracker, at the end of a run or after it `failed`."""


class JsonLines:
    """`metrics.jsonl`: a line for each step and lane, with the seed and the tags of the lane.

    Non-finite numbers are written as null.
    """

    def __init__(self, path: Path, *, keep_to: int):
        """Opens the file and drops lines of steps after `keep_to`, which a killed run has left."""
        self.path = path
        kept = (
            [r for r in read_jsonl(path, needs="step") if r["step"] <= keep_to]
            if path.exists()
            else []
        )
        write_jsonl(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Appends one line and flushes it."""
        with _named(self.path):
            self._file.write(json_line({"step": step, "seed": lane.seed, **lane.tags, **values}))
            self._file.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes the file."""
        del failed
        with _named(self.path):
            self._file.close()


class TensorBoard:
    """TensorBoard events, with a separate folder for each lane.

    It does not use the `SummaryWriter` of tensorboardX, which writes in a thread: on a full disk
    that thread would print a traceback, and whoever waits for it would wait forever.
    """

    def __init__(self, folder: Path, *, keep_to: int):
        self._folder, self._purge, self._writers = folder, keep_to + 1, {}

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Adds one event with a scalar for each finite value."""
        from tensorboardX.proto.summary_pb2 import Summary

        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        with _named(self._folder):
            if lane.name not in self._writers:
                self._writers[lane.name] = self._open(self._folder / lane.name)
            writer = self._writers[lane.name]
            writer.write_event(_event(step, summary=Summary(value=scalars)))
            writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes all event files."""
        del failed
        with _named(self._folder):
            for writer in self._writers.values():
                writer.close()

    def _open(self, folder: Path) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"))
        if self._purge > 0:
            # Tells readers to drop what a killed run has written from this step on.
            start = SessionLog(status=SessionLog.START)
            writer.write_event(_event(self._purge, session_log=start))
        return writer


@contextlib.contextmanager
def _named(place: Path) -> Iterator[None]:
    """Adds the path to an error of writing; only errors of opening a file have it already."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(place)
        raise


def _event(step: int, **content: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **content)


class WandB:
    """Weights & Biases: a run of the service for each lane, collected under the name of the run
    folder.

    Their ids are kept in `wandb.json` in that folder, so that a resumed run continues them. Steps
    that a killed run had logged after its last checkpoint are sent again; the service keeps the
    first values, which are equal.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        self._wandb, self._project, self._folder = _wandb(), project, folder
        self._config, self._runs, self._id = config, {}, _saved_id(folder / "wandb.json")
        self._name = legible(folder.name)

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Logs the finite values of one lane at one step.

        Raises:
            TrackerError: the service refuses the run, for example because nobody is logged in.
        """
        # Started with its first metrics: a run that fails before leaves nothing on the service.
        if lane.name not in self._runs:
            self._runs[lane.name] = self._start(lane)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._runs[lane.name].log(finite, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Ends the runs and marks them as finished or as failed."""
        for run in self._runs.values():
            run.finish(exit_code=int(failed))

    def _start(self, lane: Lane) -> Any:
        try:
            return self._wandb.init(
                project=self._project,
                id=f"{self._id}-{lane.name}",
                name=f"{self._name} {lane.name}",
                group=f"{self._name}-{self._id}",
                dir=str(self._folder),
                config={**self._config, "seed": lane.seed, **lane.tags},
                resume="allow",
                reinit="create_new",
                settings={"console": "off"},
            )
        except (self._wandb.Error, OSError) as error:
            raise TrackerError(
                f"Weights & Biases cannot start a run ({error}). Log in with `wandb login`, or set "
                f"WANDB_MODE=offline; then continue with --resume."
            ) from None


class TrackerError(UserError):
    """A tracker cannot be used; the message says what to do."""


def check_wandb(project: str | None) -> None:
    """Raises `TrackerError` if a project is named and the package `wandb` is missing."""
    if project is not None:
        _wandb()


def _wandb() -> Any:
    try:
        module = importlib.import_module("wandb")
    except ModuleNotFoundError:
        module = None
    # Offline runs leave a folder `wandb`, which can be imported from where it lies but is empty.
    if not hasattr(module, "init"):
        raise TrackerError(
            "--wandb needs the package wandb, which is not installed: pip install wandb."
        )
    return module


def _saved_id(place: Path) -> str:
    # Random, since two run folders may have the same name.
    if not place.exists():
        write_text(place, json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    try:
        return json.loads(place.read_text(encoding="utf-8"))["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrackerError(
            f"{place} cannot be read ({error}). Remove it to continue in "
            "new runs of Weights & Biases."
        ) from None
