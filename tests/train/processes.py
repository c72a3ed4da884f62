"""Starts a command as several processes on this machine, each with simulated devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(name, *arguments, processes=2, devices=2, environment=None, told=True, first=None):
    """The processes of a command that have been started.

    Args:
        name: the command.
        arguments: its arguments.
        processes: their number; one is started without telling it of others.
        devices: the simulated devices of each.
        environment: gives more variables, for the number of a process and a free port.
        told: whether the processes are told of each other in their arguments.
        first: Python code that the first process runs before the command begins.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    flags = os.environ.get("XLA_FLAGS", "")

    def one(number):
        more = []
        if processes > 1 and told:
            more = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes)]
            more += ["--process", str(number)]
        variables = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # Beside those of the tests, which save most of the time of the compiler.
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            **(environment(number, port) if environment else {}),
        }
        begin = ["-m", "tests.contexts", f"train.{name}"]
        if first and number == 0:
            # In the process itself: between fork and exec, JAX in the parent warns.
            begin = ["-c", f"{first}; from tests import contexts; contexts.run('train.{name}')"]
        return subprocess.Popen(
            [sys.executable, *begin, *map(str, arguments), *more],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return [one(number) for number in range(processes)]


def finish(started, timeout=300):
    """The exit status and the printed errors of each process, all of which end in time."""
    try:
        # Read by threads of their own, so that no process waits for a full pipe.
        errors = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], errors


def run(name, *arguments, **options):
    """Runs a command to its end, which must be a good one."""
    statuses, errors = finish(start(name, *arguments, **options))
    assert set(statuses) == {0}, errors
    return errors


def messages(errors):
    """The lines about errors and interruptions that the processes have printed."""
    lines = [line for text in errors for line in text.splitlines()]
    return [line for line in lines if line.startswith(("error:", "interrupted"))]


def records(place):
    """The records of a file."""
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def assert_same(mine, theirs, *, tolerance=1e-6):
    """Whether two files have the same records, to rounding.

    The tolerance is relative, or absolute below 1. What divides by small numbers gets more of it.
    """
    mine, theirs = records(mine), records(theirs)
    assert len(mine) == len(theirs) > 0
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if not isinstance(value, int | float):
                assert value == other[name], name
                continue
            allowed = tolerance * (30 if any(part in name for part in _STEEP) else 3)
            assert abs(value - other[name]) <= allowed * max(1, abs(value)), name


# What divides by small numbers, or comes from a few samples.
_STEEP = ("alpha_req", "nc1", "layer_", "attention_", "hidden_", "unmirrored_")
