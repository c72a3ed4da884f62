"""How busy a call keeps the device, and with what, by JAX's own profiler."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

# The first part of a kernel's name that is found decides.
_KINDS = (
    ("wgrad", "convolutions (gradients of weights)"),
    ("dgrad", "convolutions (gradients of inputs)"),
    ("reduce", "reductions"),
    ("convert", "elementwise"),
    ("conv", "convolutions"),
    ("fprop", "convolutions"),
    ("nchw", "changes of layout"),
    ("transpose", "changes of layout"),
    ("gemm", "products"),
    ("cutlass", "products"),
    ("memcpy", "copies"),
    ("memset", "copies"),
    ("scatter", "gathers and scatters"),
    ("gather", "gathers and scatters"),
    ("sort", "sorting"),
)


class Profile(NamedTuple):
    """Of a few calls.

    Attributes:
        milliseconds: that a call takes, by the clock.
        busy: share of that in which the device computes or copies; the rest it waits.
        work: milliseconds of each kind of work in a call, most first; what runs side by side counts twice. Empty
            on a CPU, whose threads do not say.
    """

    milliseconds: float
    busy: float
    work: dict[str, float]


def show(profiles: Mapping[str, Profile]) -> None:
    """As a Markdown table."""
    print("| | milliseconds | device busy | most of it, ms |\n|---|---|---|---|")
    for name, profile in profiles.items():
        most = ", ".join(f"{kind} {ms:.2f}" for kind, ms in list(profile.work.items())[:7])
        print(f"| {name} | {profile.milliseconds:.2f} | {100 * profile.busy:.0f} % | {most} |")


def profiled(call: Callable[[], Any], calls: int) -> Profile:
    """Profiles so many calls, after one that is not."""
    call()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            began = time.perf_counter()
            for _ in range(calls):
                call()
            taken = 1e3 * (time.perf_counter() - began)
        (place,) = Path(folder).rglob("*.xplane.pb")
        events = _device_events(jax.profiler.ProfileData.from_file(str(place)))
    work: Counter[str] = Counter()
    for event in events if jax.default_backend() != "cpu" else ():
        work[_kind(event.name)] += event.duration_ns / 1e6 / calls
    busy = _covered((e.start_ns, e.start_ns + e.duration_ns) for e in events) / 1e6
    return Profile(taken / calls, busy / taken, dict(work.most_common()))


def _device_events(data: Any) -> list[Any]:
    """What the first device did. On a CPU that is what runs in the threads of XLA's client."""
    lines = [
        line
        for plane in data.planes
        for line in plane.lines
        if (plane.name.endswith(":0") and line.name.startswith(("Stream", "XLA Ops")))
        or (plane.name == "/host:CPU" and line.name.startswith("tf_XLAPjRtCpuClient"))
    ]
    devices = [line for line in lines if not line.name.startswith("tf_")]
    return [event for line in devices or lines for event in line.events if event.duration_ns]


def _kind(name: str) -> str:
    """Of a kernel, by what its name says."""
    name = name.lower()
    return next((kind for part, kind in _KINDS if part in name), "elementwise")


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
