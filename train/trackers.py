"""Where a run writes its metrics: one JSON object a line, and TensorBoard events."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from train.lanes import Lane


class Tracker(Protocol):
    """What the loop asks of a tracker; write your own for another service."""

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Records the values of one lane at one step."""

    def close(self) -> None:
        """Flushes."""


class JsonLines:
    """`metrics.jsonl`: a line for each step and lane, with its seed and tags. Non-finite numbers are written as null."""

    def __init__(self, path: Path, *, keep_to: int):
        """Opens the file; lines of steps after `keep_to` (of a run that was killed) are dropped."""
        self.path = path
        kept = [r for r in read_jsonl(path) if r["step"] <= keep_to] if path.exists() else []
        temporary = path.with_suffix(".part")
        temporary.write_text("".join(_line(record) for record in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Appends one line and flushes it."""
        self._file.write(_line({"step": step, "seed": lane.seed, **lane.tags, **values}))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard events of each lane in a folder of its own."""

    def __init__(self, folder: Path, *, keep_to: int):
        self._folder, self._purge, self._writers = folder, keep_to + 1, {}

    def write(self, step: int, lane: Lane, values: Mapping[str, float]) -> None:
        """Adds one scalar for each value."""
        from tensorboardX import SummaryWriter

        if lane.name not in self._writers:
            purge = self._purge if self._purge > 0 else None
            folder = str(self._folder / lane.name)
            self._writers[lane.name] = SummaryWriter(folder, purge_step=purge)
        for name, value in values.items():
            if math.isfinite(value):
                self._writers[lane.name].add_scalar(name, value, step)

    def close(self) -> None:
        """Closes all event files."""
        for writer in self._writers.values():
            writer.close()


def _line(record: Mapping[str, Any]) -> str:
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    return json.dumps(plain) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut off is ignored."""
    records = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records
