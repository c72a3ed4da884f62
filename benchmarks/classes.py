"""Rows about the number of classes: time and peak memory, beside PyTorch if it is installed.

The labels are drawn evenly, so that nearly all samples have a class of their own where there are
many classes: the worst case for measures of pairs of classes that occur.

Memory: "planned" is the compiler's analysis of arguments, results and temporary arrays. "process"
is how far the resident memory of a fresh process rises in one call, with its arguments, above what
it has after a call on a tiny batch and, for ours, after compiling. LAPACK's workspace is in the
second alone, which needs Linux and a CPU.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mirjax
from benchmarks import peers
from benchmarks.timing import OURS, Row, has_torch, in_turn, on_cpu, torch_device

SAMPLES, WIDTH, CLASSES = 2048, 768, (10, 1000, 50_257)
ROUNDS = 3
TORCH = "PyTorch"
# How far values and gradients may be from those of PyTorch, relative to the larger of both.
TOLERANCE = 1e-3
PLANNED, PROCESS, TORCH_PROCESS = "mirjax, planned", "mirjax, process", "PyTorch, process"
STATUS = Path("/proc/self/status")

Fields = dict[str, Any]
Outcome = tuple[Fields, tuple[Any, ...]]
"""Numbers by name, and the gradients of their sum in features and head, if asked for."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is computed of features, head and labels, by the library and by the peer."""

    name: str
    ours: Callable[..., Fields]
    peer: Callable[..., Fields]
    gradient: bool = True


def mir_and_hdr(features, head, labels) -> Fields:
    """By the library."""
    result = mirjax.interplay(features, head, labels)
    return {"mir": result.mir, "hdr": result.hdr}


def mir_and_hdr_in_torch(features, head, labels) -> Fields:
    """By the definition."""
    import torch

    first, second, joint = peers.torch_entropies(features, head, labels)
    smaller, larger = torch.minimum(first, second), torch.maximum(first, second)
    return {"mir": (first + second - joint) / smaller, "hdr": (larger - smaller) / larger}


def loss(features, head, labels) -> Fields:
    """By the library."""
    return {"loss": mirjax.losses.mutual_information_loss(features, head, labels)}


def loss_in_torch(features, head, labels) -> Fields:
    """By the definition."""
    first, second, joint = peers.torch_entropies(features, head, labels)
    return {"loss": joint - first - second}


MANY = ("nc1_quotient", "cdnv", "nc2_generalised", "nc3_uniform")


def collapse(features, head, labels, *, papyan: bool, nc4: bool) -> Fields:
    """By the library; what is not returned is not computed, since all is compiled."""
    fields = mirjax.neural_collapse(features, labels, head, num_classes=len(head))._asdict()
    if not papyan:
        fields = {name: fields[name] for name in (*MANY, "nc4")}
    if not nc4:
        del fields["nc4"]
    return fields


def collapse_in_torch(features, head, labels, *, papyan: bool, nc4: bool) -> Fields:
    """By the definitions."""
    from benchmarks import torch_collapse

    return torch_collapse.collapse(features, head, labels, papyan=papyan, nc4=nc4)


def _collapse(name: str, *, papyan: bool, nc4: bool) -> Measure:
    return Measure(
        name,
        functools.partial(collapse, papyan=papyan, nc4=nc4),
        functools.partial(collapse_in_torch, papyan=papyan, nc4=nc4),
        gradient=not nc4,
    )


MEASURES = (
    Measure("interplay, value and gradient", mir_and_hdr, mir_and_hdr_in_torch),
    Measure("mutual_information_loss, value and gradient", loss, loss_in_torch),
    _collapse("neural_collapse without nc4, value and gradient", papyan=True, nc4=False),
    _collapse("neural_collapse with nc4, value", papyan=True, nc4=True),
    _collapse("its measures for many classes, value and gradient", papyan=False, nc4=False),
)


def drawn(n: int, d: int, classes: int) -> tuple[np.ndarray, ...]:
    """Features with some of their class in them, head and labels."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((classes, d), dtype=np.float32)
    labels = rng.integers(0, classes, n, dtype=np.int32)
    features = rng.standard_normal((n, d), dtype=np.float32)
    return features + np.float32(0.15) * head[labels], head, labels


def compiled(measure: Measure, n: int, d: int, classes: int) -> Any:
    """For arrays of these shapes."""

    def both(features, head, labels):
        fields = measure.ours(features, head, labels)
        return sum(fields.values()), fields

    def with_gradients(*arrays):
        (_, fields), gradients = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(*arrays)
        return fields, gradients

    function = with_gradients if measure.gradient else lambda *arrays: (measure.ours(*arrays), ())
    shapes = [((n, d), jnp.float32), ((classes, d), jnp.float32), ((n,), jnp.int32)]
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()


def planned(program: Any) -> float:
    """MiB of arguments, results and temporary arrays, as the compiler says."""
    sizes = program.memory_analysis()
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return total / 2**20


def in_torch(measure: Measure, tensors: tuple[Any, ...]) -> Callable[[], Outcome]:
    """A call of the peer, which waits for values and gradients."""
    import torch

    def call() -> Outcome:
        leaves = [tensor.detach().requires_grad_(measure.gradient) for tensor in tensors[:2]]
        fields = measure.peer(*leaves, *tensors[2:])
        total = torch.stack(list(fields.values())).sum()
        gradients = torch.autograd.grad(total, leaves) if measure.gradient else ()
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        return {name: value.detach() for name, value in fields.items()}, gradients

    return call


def in_jax(program: Any, arrays: tuple[Any, ...]) -> Callable[[], Outcome]:
    """A call of ours, which waits for values and gradients."""
    return lambda: jax.block_until_ready(program(*arrays))


def on_torch_device(arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """The same as tensors."""
    import torch

    return tuple(torch.from_numpy(array).to(torch_device()) for array in arrays)


def differences(first: Outcome, second: Outcome) -> tuple[float, float]:
    """The largest relative difference of a value, and of a gradient by its norm."""
    if first[0].keys() != second[0].keys():
        raise ValueError(f"{sorted(first[0])} are not {sorted(second[0])}.")
    values = [_apart(value, second[0][name]) for name, value in first[0].items()]
    gradients = [_apart(*pair) for pair in zip(first[1], second[1], strict=True)]
    return max(values), max(gradients, default=0.0)


def _apart(first: Any, second: Any) -> float:
    a, b = (np.asarray(x.cpu() if hasattr(x, "cpu") else x, np.float64) for x in (first, second))
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b), 1e-30))


def compare(
    measure: Measure, n: int, d: int, counts: tuple[int, ...], *, seconds: float, rounds: int
) -> Iterator[Row]:
    """A row for each number of classes, all timed in turn, once their values agree."""
    calls: dict[tuple[int, str], Callable[[], Outcome]] = {}
    first: dict[tuple[int, str], float] = {}
    memory: dict[int, dict[str, float]] = {}
    notes: dict[int, list[str]] = {classes: [] for classes in counts}
    for classes in counts:
        arrays = drawn(n, d, classes)
        started = time.perf_counter()
        program = compiled(measure, n, d, classes)
        calls[classes, OURS] = in_jax(program, tuple(map(jnp.asarray, arrays)))
        ours = calls[classes, OURS]()
        first[classes, OURS] = time.perf_counter() - started
        memory[classes] = {PLANNED: planned(program)}
        if has_torch():
            calls[classes, TORCH] = in_torch(measure, on_torch_device(arrays))
            started = time.perf_counter()
            theirs = calls[classes, TORCH]()
            first[classes, TORCH] = time.perf_counter() - started
            value, gradient = differences(ours, theirs)
            if not max(value, gradient) <= TOLERANCE:
                raise SystemExit(
                    f"{measure.name}, C = {classes}: values differ by {value:.1e}, gradients by "
                    f"{gradient:.1e}:\n{ours[0]}\n{theirs[0]}"
                )
            told = f", gradients to {gradient:.0e}" if measure.gradient else ""
            notes[classes].append(f"values agree to {value:.0e}{told} (relative)")
            del theirs
        del ours
        memory[classes] |= processes(measure, n, d, classes)
        told = ", ".join(f"{name} {mib:,.0f}" for name, mib in memory[classes].items())
        notes[classes].append(f"peak memory, MiB: {told}")
    times = in_turn(calls, seconds=seconds, rounds=rounds)
    for classes in counts:
        for name in (OURS, TORCH) if has_torch() else (OURS,):
            if classes == counts[-1] and len(counts) > 1:
                pairs = zip(times[classes, name], times[counts[-2], name], strict=True)
                ratios = [a / b for a, b in pairs]
                notes[classes].append(
                    f"time of {name} over that at C = {counts[-2]:,}: "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                )
        yield Row(
            "classes",
            f"(n, d, C) = ({n:,}, {d}, {classes:,}), {measure.name}",
            _of(classes, first),
            _of(classes, times),
            memory=memory[classes],
            notes=tuple(notes[classes]),
        )


def _of(classes: int, by_both: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    return {name: value for (count, name), value in by_both.items() if count == classes}


def processes(measure: Measure, n: int, d: int, classes: int) -> dict[str, float]:
    """Peak memory in MiB of one call in a fresh process, ours and the peer's."""
    if not on_cpu() or not STATUS.exists():
        return {}
    names = {OURS: PROCESS} | ({TORCH: TORCH_PROCESS} if has_torch() else {})
    peaks = {}
    for who, name in names.items():
        index = MEASURES.index(measure)
        command = [
            sys.executable,
            "-m",
            "benchmarks.classes",
            who,
            *map(str, (index, n, d, classes)),
        ]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            env=os.environ | _cache(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed for {measure.name}:\n{done.stderr[-2000:]}")
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _cache() -> dict[str, str]:
    """Where this process has put what it compiled, for a process of its own."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    values = {name.upper(): jax.config.values[name] for name in names}
    return {name: str(value) for name, value in values.items() if value is not None}


def rise(who: str, measure: Measure, n: int, d: int, classes: int) -> float:
    """MiB by which the resident memory of this process rises in one call with its arguments."""
    make = {OURS: _in_jax_later, TORCH: _in_torch_later}[who]
    # A tiny batch first: libraries load their parts and start their threads.
    make(measure, 32, 8, 4)()()
    prepared = make(measure, n, d, classes)
    before = _resident("VmRSS")
    call = prepared()
    # The peak so far is forgotten: drawing and compiling do not count.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    outcome = call()
    peak = _resident("VmHWM")
    del outcome
    return peak - before


def _in_jax_later(measure: Measure, *sizes: int) -> Callable[[], Callable[[], Outcome]]:
    program = compiled(measure, *sizes)
    return lambda: in_jax(program, jax.block_until_ready(tuple(map(jnp.array, drawn(*sizes)))))


def _in_torch_later(measure: Measure, *sizes: int) -> Callable[[], Callable[[], Outcome]]:
    return lambda: in_torch(measure, on_torch_device(drawn(*sizes)))


def _resident(name: str) -> float:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Every measure over the number of classes."""
    for measure in MEASURES:
        yield from compare(measure, SAMPLES, WIDTH, CLASSES, seconds=options.seconds, rounds=ROUNDS)


ROWS = {"classes": rows}
"""By group, of the options of the command line."""

if __name__ == "__main__":
    # One call in this process, for `processes`.
    _, who, *numbers = sys.argv
    index, *sizes = map(int, numbers)
    print(json.dumps(rise(who, MEASURES[index], *sizes)))
