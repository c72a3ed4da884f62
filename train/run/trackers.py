"""Where a run writes its metrics: JSON lines, TensorBoard events, and Weights & Biases if asked for."""

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
from train.run.files import json_line, read_jsonl, write_jsonl
from train.run.lanes import Lane


class Tracker(Protocol):
    """What the loop asks of a tracker; write your own for another service."""

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Records the values of one lane at one step."""

    def close(self, *, failed: bool = False) -> None:
        """Flushes; the run ended, or `failed`."""


class JsonLines:
    """`metrics.jsonl`: a line for each step and lane, with its seed and tags. Non-finite numbers are written as null."""

    def __init__(self, path: Path, *, keep_to: int):
        """Opens the file; lines of steps after `keep_to` (of a run that was killed) are dropped."""
        self.path = path
        kept = (
            [r for r in read_jsonl(path, needs="step") if r["step"] <= keep_to]
            if path.exists()
            else []
        )
        write_jsonl(path, kept)
        self._file = path.open("a")

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
    """TensorBoard events of each lane in a folder of its own.

    Without tensorboardX's `SummaryWriter`: it writes in a thread, where a full disk would be a traceback, and
    what waits for that thread would wait for ever.
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
            # Readers drop what a killed run had written from this step on.
            start = SessionLog(status=SessionLog.START)
            writer.write_event(_event(self._purge, session_log=start))
        return writer


@contextlib.contextmanager
def _named(place: Path) -> Iterator[None]:
    """Adds to an error of a write where it was, which only an error of opening says by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(place)
        raise


def _event(step: int, **what: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **what)


class WandB:
    """Weights & Biases: a run for each lane, in a group for the run folder.

    The ids are in `wandb.json` in that folder, so that a resumed run goes on in the same runs. Steps that a
    killed run had logged after its last checkpoint are sent again; the service keeps the first, which are equal.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        self._wandb, self._project, self._folder = _wandb(), project, folder
        self._config, self._runs, self._id = config, {}, _saved_id(folder / "wandb.json")

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Logs the finite values of one lane at one step.

        Raises:
            TrackerError: the service refuses the run, for want of a login for example.
        """
        if lane.name not in self._runs:
            self._runs[lane.name] = self._start(lane)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._runs[lane.name].log(finite, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Ends the runs, as finished or as failed."""
        for run in self._runs.values():
            run.finish(exit_code=int(failed))

    def _start(self, lane: Lane) -> Any:
        try:
            return self._wandb.init(
                project=self._project,
                id=f"{self._id}-{lane.name}",
                name=f"{self._folder.name} {lane.name}",
                group=f"{self._folder.name}-{self._id}",
                dir=str(self._folder),
                config={**self._config, "seed": lane.seed, **lane.tags},
                resume="allow",
                reinit="create_new",
                settings={"console": "off"},
            )
        except (self._wandb.Error, OSError) as error:
            raise TrackerError(
                f"Weights & Biases cannot start a run ({error}). Log in by `wandb login`, or set "
                f"WANDB_MODE=offline, then go on with --resume."
            ) from None


class TrackerError(UserError):
    """A tracker cannot be used; the message says what to do."""


def check_wandb(project: str | None) -> None:
    """Raises `TrackerError` if a project is named and the package `wandb` is missing."""
    if project is not None:
        _wandb()


def _wandb() -> Any:
    try:
        found = importlib.import_module("wandb")
    except ModuleNotFoundError:
        found = None
    # A folder `wandb` in the working directory, which offline runs leave, is importable too, and empty.
    if not hasattr(found, "init"):
        raise TrackerError(
            "--wandb needs the package wandb, which is not installed: pip install wandb."
        )
    return found


def _saved_id(place: Path) -> str:
    if not place.exists():
        place.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    try:
        return json.loads(place.read_text())["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrackerError(
            f"{place} cannot be read ({error}). Remove it to go on in new runs of Weights & Biases."
        ) from None
