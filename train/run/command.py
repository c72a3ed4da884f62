"""The command line of every command: reads settings, caches compiled programs, prints results, and
ends on errors and interruptions.
"""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax

from train.run import hosts
from train.run.errors import UserError, message_of, one_line
from train.run.mirrored import mirrored
from train.run.requirements import INSTALL
from train.run.settings import RunSettings
from train.run.stopping import Interrupted

S = TypeVar("S", bound=RunSettings)


class Shown(Protocol):
    """The outcome of an experiment, which can be printed."""

    def show(self) -> None:
        """Prints it."""


def from_command_line(presets: Mapping[str, S], arguments: Sequence[str] | None = None) -> S:
    """Reads `[PRESET] --option value ...`: the name of a preset, then what differs from it.

    Unknown options, values of a wrong type and values that a setting refuses end the program with
    a message and status 2. Then the processes of the run join, if there are several.
    """
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # The first preset is the default.
    name = next(iter(presets))
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in presets:
            print(
                f"error: Preset {name!r} is unknown. There are: {', '.join(presets)}.",
                file=sys.stderr,
            )
            raise SystemExit(2)
    default = presets[name]
    # Before tyro parses: it would call these options unknown and not say what to give instead.
    for option, instead in default.refused.items():
        dashed = option.replace("_", "-")
        flags = {f"--{dashed}", f"--no-{dashed}", f"--{option}"}
        if any(argument.partition("=")[0] in flags for argument in arguments):
            print(f"error: {instead}", file=sys.stderr)
            raise SystemExit(2)
    description = (
        f"{type(default).__doc__}\n\nPresets (first argument): {', '.join(presets)}. "
        f"The defaults below are those of {name!r}."
    )
    program = f"python -m train.{Path(sys.argv[0]).stem} [PRESET]"
    unchecked = _unchecked(default)
    parsed = tyro.cli(
        type(unchecked), default=unchecked, args=arguments, description=description, prog=program
    )
    try:
        settings = type(default)(**_values(parsed))
    # Raised by the checks in `__post_init__`.
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    hosts.join(settings.coordinator, settings.processes, settings.process)
    # Each host may have its data elsewhere, but all must train the same.
    shared = settings.as_json() | {"data_dir": None, "jax": jax.__version__}
    hosts.agree(json.loads(json.dumps(shared)), "The options or the version of JAX")
    return settings


def _unchecked(settings: S) -> S:
    """The settings as those of a class that takes every value of the right type.

    Some versions of tyro report what a constructor refuses, in a box of several lines.
    """
    kind = type(settings)
    unchecked = type(kind.__name__, (kind,), {"__post_init__": lambda _: None})
    return unchecked(**_values(settings))


def _values(settings: RunSettings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def run_command(presets: Mapping[str, S], run: Callable[[S], Shown]) -> None:
    """Reads the settings, runs the experiment and prints its results; errors end with status 2."""
    with exit_on_user_error(resumable=True):
        settings = from_command_line(presets)
        enable_cache()
        with mirrored(settings):
            run(settings).show()


def enable_cache() -> None:
    """Caches compiled programs in `JAX_COMPILATION_CACHE_DIR`, or `.cache/jax` if it is not set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").resolve()))
    # Lower than JAX's default: small networks compile in less than its second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@contextlib.contextmanager
def exit_on_user_error(*, resumable: bool = False) -> Iterator[None]:
    """Prints an error that the user can fix as one line, and ends the program with status 2.

    All other errors keep their traceback. An interruption ends the program with status 130; a
    `resumable` command says how to continue. Of several processes all end, and the first prints.
    """
    status = 2
    try:
        yield
        return
    # All processes come here together.
    except Interrupted as stop:
        if hosts.is_first():
            print(f"\n{stop}", file=sys.stderr)
        raise SystemExit(stop.status) from None
    except KeyboardInterrupt:
        more = " --resume continues from the last checkpoint." if resumable else ""
        status, message = 130, f"\ninterrupted.{more}"
    except ModuleNotFoundError as error:
        message = f"error: the module {error.name} is not installed. {INSTALL}"
    except jax.errors.JaxRuntimeError as error:
        if hosts.lost(error):
            hosts.end_lost()
        # Any other error of the runtime is a bug, whose traceback is needed.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            _end_on_bug(error)
            raise
        message = (
            f"error: the device has too little memory ({one_line(error)[:200]}). Try a smaller "
            "--batch-size, --lanes-per-call or --memory-limit-mib."
        )
    # A `ValueError` is a setting that was refused; the operating system refuses a path or a limit.
    except (UserError, ValueError, OSError, MemoryError) as error:
        message = f"error: {message_of(error)}"
    except Exception as error:
        _end_on_bug(error)
        raise
    hosts.end(status, message)
    print(message, file=sys.stderr)
    raise SystemExit(status)


def _end_on_bug(error: Exception) -> None:
    # With one process the error is raised on; of several, the others would wait for this one.
    if hosts.several():
        traceback.print_exception(error)
        hosts.end(1, f"error: {type(error).__name__}: {one_line(error)[:300]}")
