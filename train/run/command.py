"""The command line of every command: reads settings, caches compiled programs, prints results."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax

from train.run.errors import exit_on_user_error
from train.run.settings import RunSettings

S = TypeVar("S", bound=RunSettings)


class Shown(Protocol):
    """The outcome of an experiment, which can be printed."""

    def show(self) -> None:
        """Prints it."""


def from_command_line(presets: Mapping[str, S], arguments: Sequence[str] | None = None) -> S:
    """Reads `[PRESET] --option value ...`: the name of a preset, then what differs from it.

    Unknown options, values of a wrong type and values that a setting refuses end the program with
    a message and status 2.
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
        return type(default)(**_values(parsed))
    # Raised by the checks in `__post_init__`.
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


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
        run(settings).show()


def enable_cache() -> None:
    """Caches compiled programs in `JAX_COMPILATION_CACHE_DIR`, or `.cache/jax` if it is not set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").resolve()))
    # Lower than JAX's default: small networks compile in less than its second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
