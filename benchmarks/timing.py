"""Interleaved timing of calls that do the same, and what is printed and kept of it."""

import dataclasses
import functools
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

OURS = "mirjax"

# Thread pools spin for a while after a call, in the hope of the next: long enough to slow down whatever
# another library does meanwhile. So each has its turn after a pause, and begins with a call that is not timed.
_PAUSE = 0.25
_BLOCK = 0.03

Key = TypeVar("Key", bound=Hashable)

Calls = Mapping[str, Callable[[], float | None]]
"""By name, `OURS` first: each returns when the work is done, with a number that all must agree on."""


@dataclasses.dataclass
class Row:
    """One comparison.

    Attributes:
        group: of rows, as on the command line.
        name: what is computed, and its sizes.
        first: seconds of the first call of each, which compiles.
        milliseconds: of the later calls, one mean a round.
        per: what one call works on, for "a second" (images), or 0.
        differing: which calls compute something else than ours, and what; empty if none.
        memory: MiB by name, of what was measured.
        notes: what else is told of the row.
    """

    group: str
    name: str
    first: dict[str, float]
    milliseconds: dict[str, list[float]]
    per: int = 0
    differing: str = ""
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def ratios(self, name: str) -> list[float]:
        """Time of `name` over ours, in each round."""
        ours = self.milliseconds[OURS]
        return [a / b for a, b in zip(self.milliseconds[name], ours, strict=True)]

    def lines(self) -> list[str]:
        """Rows of a Markdown table, see `HEADER`."""
        made = []
        for name, times in self.milliseconds.items():
            ratios = self.ratios(name)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rate = (
                f", {1e3 * self.per / statistics.median(times):,.0f} a second" if self.per else ""
            )
            made.append(
                f"| {self.name} | {name} | {_ms(statistics.median(times))} ({_ms(min(times))} to "
                f"{_ms(max(times))}){rate} | {'1' if name == OURS else ratio} | {self.first[name]:.1f} |"
            )
        made += [f"| {self.name} | {note} | | | |" for note in self.notes]
        if self.differing:
            made.append(f"| {self.name} | **differs**: {self.differing} | | | |")
        return made


HEADER = (
    "| | | milliseconds: median (min to max) | its time / ours: median (min to max) | first call, s |\n"
    "|---|---|---|---|---|"
)


def measure(
    group: str,
    name: str,
    calls: Calls,
    *,
    seconds: float,
    rounds: int = 5,
    per: int = 0,
    tolerance: float | None = 1e-3,
    before: Mapping[str, Callable[[], Any]] | None = None,
) -> Row:
    """Times the calls in turn for `seconds`, and at least so many rounds: each the mean of a short block.

    A busy machine slows all of a round alike, so that ratios within a round say most. What is in
    `before` is called right before each single call of that name, and is not timed. Values that are further from
    ours than `tolerance` are told in the row.
    """
    first, values = {}, {}
    for key, call in calls.items():
        started = time.perf_counter()
        values[key] = call()
        first[key] = time.perf_counter() - started
        if first[key] < 5:
            call()
    differing = [
        f"{key} computes {value}, {OURS} {values[OURS]}"
        for key, value in values.items()
        if tolerance is not None and not abs(value - values[OURS]) <= tolerance
    ]
    times = in_turn(calls, seconds=seconds, rounds=rounds, before=before)
    return Row(group, name, first, times, per, "; ".join(differing))


def in_turn(
    calls: Mapping[Key, Callable[[], Any]],
    *,
    seconds: float,
    rounds: int,
    before: Mapping[Key, Callable[[], Any]] | None = None,
) -> dict[Key, list[float]]:
    """Milliseconds of each call, one number a round, for `seconds` and at least so many rounds."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    started, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - started < seconds:
        for key, call in calls.items():
            time.sleep(_PAUSE)
            if before and key in before:
                before[key]()
                began = time.perf_counter()
                call()
                taken = time.perf_counter() - began
            else:
                taken = _block(call)
            times[key].append(1e3 * taken)
        done += 1
    return times


def _block(call: Callable[[], Any]) -> float:
    """Seconds a call, after one that is not timed if calls are short."""
    began, count = time.perf_counter(), 0
    call()
    if time.perf_counter() - began > 1:
        return time.perf_counter() - began
    began = time.perf_counter()
    while count == 0 or time.perf_counter() - began < _BLOCK:
        call()
        count += 1
    return (time.perf_counter() - began) / count


def machine() -> dict[str, Any]:
    """What the figures depend on; without PyTorch only some of the groups run."""
    about = {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if has_torch():
        import torch

        about |= {
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "torch_device": torch_device(),
        }
    return about


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def on_cpu() -> bool:
    """Whether JAX computes on a CPU. Not asked while modules load: workers would take the accelerator too."""
    return jax.default_backend() == "cpu"


def torch_device() -> str:
    """Where PyTorch computes."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def save(path: Path, about: Mapping[str, Any], rows: list[Row], tables: Mapping[str, Any]) -> None:
    """Everything as JSON: machine, rows, tables of errors."""
    content = {"machine": about, "rows": [dataclasses.asdict(row) for row in rows], **tables}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
