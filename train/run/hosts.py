"""The processes of a run, one for each host: how they join, share values, and end together.

The engine is JAX's own distributed runtime. What a process tells the others goes through the
runtime's store of keys and values and not through the devices, whose collectives give up after
half a minute on some backends, while the first process may write files for longer than that.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from train.run.errors import RunError

HEARTBEAT = 30
"""Seconds after which a process that is not heard of counts as dead. The runtime then ends the
others, those that wait for it on a device included."""

_PATIENCE = 10
"""Seconds that a process which ends waits for the others to know why."""
_A_DAY = 24 * 60 * 60 * 1000
_PIECE = 2**20
_FAILED, _LEFT = "mirjax/failed", "mirjax/left"

_numbers = itertools.count()
_mine: list[str] = []
_ending = threading.Lock()


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of the run, if there are others; to be called before any of JAX.

    Without a coordinator this does what `jax.distributed.initialize()` finds by itself: on a TPU
    slice, under SLURM and under Open MPI.

    Raises:
        RunError: the others cannot be reached.
    """
    by_hand = (coordinator, processes, process)
    if by_hand == (None, None, None) and not _looks_like_several():
        return
    try:
        jax.distributed.initialize(
            *by_hand,
            heartbeat_timeout_seconds=HEARTBEAT,
            # The first process may draw and write for long when the others are done.
            shutdown_timeout_seconds=60 * 60,
            # What SLURM says, for instance, is of no account for processes that are told by hand.
            cluster_detection_method=None if coordinator is None else "deactivate",
        )
    except (RuntimeError, ValueError, OSError) as error:
        if by_hand == (None, None, None) and "coordinator_address should be" in str(error):
            # A single host, of which nothing says that there are others.
            return
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"The processes of this run do not find each other ({reason}). Start one on each host "
            "with the same --coordinator HOST:PORT and --processes, and --process 0, 1, ..."
        ) from None
    if several():
        if not is_first():
            # What is printed, the progress bar too, is that of the first.
            sys.stdout.flush()
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
        threading.Thread(target=_watch, name="watch", daemon=True).start()


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return not several() or jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them; plain values, as JSON has them."""
    if not several():
        return make()
    key = f"mirjax/first/{next(_numbers)}"
    if is_first():
        _post(key, make())
    return _wait_for(key)


def gathered(value: Any) -> list[Any]:
    """The value of each process, in their order; plain values, as JSON has them.

    Nobody goes on before all have come here.
    """
    if not several():
        return [value]
    number, before = next(_numbers), len(_mine)
    _post(f"mirjax/all/{number}/{jax.process_index()}", value)
    values = [_wait_for(f"mirjax/all/{number}/{i}") for i in range(jax.process_count())]
    # All are here, so all have read what was posted before.
    for key in _mine[:before]:
        _client().key_value_delete(key)
    del _mine[:before]
    return values


def arrays_of_first(tree: Any) -> Any:
    """The arrays that the first process has, in all of them; shapes and types are those here."""
    if not several():
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def agree(value: Any, what: str) -> None:
    """Raises `RunError` if `what` differs between the processes, which have a `value` of it each.

    Of dictionaries, those entries are named that differ.
    """
    values = gathered(value)
    differing = [i for i, other in enumerate(values) if other != values[0]]
    if differing:
        first, other = values[0], values[differing[0]]
        if isinstance(first, dict):
            names = [name for name in first if first[name] != other.get(name)]
            first, other = ({name: v.get(name) for name in names} for v in (first, other))
        listed = ", ".join(map(str, differing))
        raise RunError(
            f"{what} of process {listed} are not those of process 0 ({other} and {first}). Start "
            "all processes with the same options, data and version of JAX."
        )


def end(status: int, message: str | None) -> None:
    """Ends all processes: the first prints the message, once. With one process it returns.

    What this process waits for on a device is not waited for, since the others may never come.
    """
    if not several():
        return
    # The watching thread may be at it already.
    with _ending:
        content: dict[str, Any] = {
            "status": status,
            "message": message,
            "process": jax.process_index(),
        }
        known = _tell(content)
        if is_first():
            known = known or content
            _say(known)
            _wait_until_left()
        elif known is None:
            # The first process is gone: somebody has to say it, but not each of the others.
            known = content | {"message": f"error: {_LOST}"}
            if jax.process_index() == 1:
                _say(known)
        else:
            _try(lambda: _client().key_value_set(f"{_LEFT}/{jax.process_index()}", "1"))
        _leave(known["status"])


_LOST = (
    "another process of this run has ended without a word: it was killed, or its host is gone. "
    "--resume continues from the last checkpoint."
)


def lost(error: BaseException) -> bool:
    """Whether an error of the runtime only says that another process is gone."""
    text = str(error)
    return several() and any(
        sign in text for sign in ("Gloo", "Connection reset", "coordination service", "UNAVAILABLE")
    )


def end_lost() -> None:
    """Ends this process after `lost`: with what the other one has said, if it said anything."""
    # An error that is reported arrives within seconds, and is the better message.
    deadline = time.monotonic() + _PATIENCE / 3
    while time.monotonic() < deadline and _try(_failure) is None:
        time.sleep(0.2)
    end(2, f"error: {_LOST}")


def _looks_like_several() -> bool:
    """Whether the environment is one in which JAX finds the other processes by itself."""
    # A script of a job, which is no step of it, is alone however many tasks the job may have.
    slurm = all(f"SLURM_{name}" in os.environ for name in ("JOB_ID", "STEP_NODELIST", "PROCID"))
    if slurm and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    return _is_tpu()


def _is_tpu() -> bool:
    """Whether this is a host of a TPU, which may be one of several."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    if (names := os.environ.get("TPU_WORKER_HOSTNAMES")) is not None:
        return "," in names
    devices = any(Path(place).exists() for place in ("/dev/accel0", "/dev/vfio/0"))
    return devices and "TPU_SKIP_MDS_QUERY" not in os.environ


def _client() -> Any:
    # The store of the runtime, which JAX itself and Orbax use in this way: there is no public one.
    from jax._src import distributed

    return distributed.global_state.client


def _post(key: str, value: Any) -> None:
    content = json.dumps(value)
    pieces = [content[i : i + _PIECE] for i in range(0, len(content), _PIECE)]
    for i, piece in enumerate(pieces):
        _client().key_value_set(f"{key}/{i}", piece)
        _mine.append(f"{key}/{i}")
    # Last, so that whoever sees it finds all pieces.
    _client().key_value_set(f"{key}/pieces", str(len(pieces)))
    _mine.append(f"{key}/pieces")


def _wait_for(key: str) -> Any:
    count = int(_client().blocking_key_value_get(f"{key}/pieces", _A_DAY))
    pieces = [_client().blocking_key_value_get(f"{key}/{i}", _A_DAY) for i in range(count)]
    return json.loads("".join(pieces))


def _watch() -> None:
    """Ends this process as soon as another one says that it has failed."""
    # There is no client any more when the program comes to its regular end.
    while _client() is not None:
        time.sleep(0.5)
        if (failure := _try(_failure)) is not None:
            end(failure["status"], failure["message"])


def _failure() -> dict[str, Any]:
    return json.loads(_client().key_value_try_get(_FAILED))


def _tell(content: dict[str, Any]) -> dict[str, Any] | None:
    """Says that the run has failed, unless another process has; what was said first, or None."""
    _try(lambda: _client().key_value_set(_FAILED, json.dumps(content)))
    return _try(_failure)


def _say(known: dict[str, Any]) -> None:
    if known["message"]:
        where = "" if known["process"] == 0 else f" (process {known['process']})"
        print(f"{known['message']}{where}", file=sys.stderr, flush=True)


def _wait_until_left() -> None:
    # The store is in this process: if it ended first, the runtime would end the others with noise.
    deadline = time.monotonic() + _PATIENCE
    others = set(range(1, jax.process_count()))
    while others and time.monotonic() < deadline:
        there = _try(lambda: _client().key_value_dir_get(_LEFT)) or []
        others -= {int(key.rpartition("/")[2]) for key, _ in there}
        time.sleep(0.1)


def _leave(status: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # No handlers of the exit: the runtime's waits for all processes, and some may be stuck.
    os._exit(status)


def _try(action: Callable[[], Any]) -> Any:
    """The result of the action, or None if the store does not have it or cannot be reached."""
    try:
        return action()
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, AttributeError):
        return None
