"""Reads finished runs: their settings, their data, and the states of their last checkpoint."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.data.types import ImageData
from train.engine.optimizers import Optimizer
from train.engine.state import Network, TrainState, initial_state
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.folder import saved_run, saved_settings
from train.run.lanes import Lane, lanes_of
from train.run.settings import ImageSettings, RunSettings

S = TypeVar("S", bound=ImageSettings)
R = TypeVar("R", bound=RunSettings)


class FinishedRun(NamedTuple):
    """A finished supervised run, as its folder holds it."""

    settings: ImageSettings
    data: ImageData
    network: Network
    lanes: list[Lane]
    step: int
    states: TrainState
    """The stacked states of all lanes at the last checkpoint."""
    untrained: TrainState
    """The stacked states with which training began."""


def read_settings(folder: Path, kind: type[R]) -> R:
    """The settings that a run was made with.

    Raises:
        RunError: the folder holds no run, or a run of another command or version.
    """
    saved = saved_settings(folder)
    fields = {field.name for field in dataclasses.fields(kind)}
    if saved.keys() - fields:
        raise RunError(
            f"{folder} is a run of another command or version: {kind.__name__} does not have the "
            f"settings {', '.join(sorted(saved.keys() - fields))}. Name the --out of another run."
        )
    # Where the folder lies now: it may have been moved.
    values: dict[str, Any] = {**saved, "out": folder}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RunError(_foreign(folder, error)) from None


def read_lanes(folder: Path, settings: RunSettings) -> list[Lane]:
    """The lanes that a run trained.

    Raises:
        RunError: the folder was written by another version.
    """
    try:
        lanes = [Lane.from_json(lane) for lane in saved_run(folder).get("lanes", [])]
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(_foreign(folder, error)) from None
    # A folder that lists no lanes has one for each seed.
    return lanes or lanes_of(settings)


def _foreign(folder: Path, error: Exception) -> str:
    return (
        f"{folder}/settings.json holds what this version does not know ({error}). Use the version "
        "that made the run, or make it again."
    )


def read_run(
    folder: Path,
    kind: type[S],
    load: Callable[[S], ImageData],
    optimizer_of: Callable[[S], Optimizer],
) -> FinishedRun:
    """Reads the settings and states of a run, and loads its data with `load`.

    Raises:
        RunError: there is no checkpoint yet.
        CheckpointError: the checkpoint cannot be used.
        DataError: the data cannot be loaded.
    """
    settings = read_settings(folder, kind)
    data = load(settings)
    network, lanes = Network.of(settings, data), read_lanes(folder, settings)
    # Orbax restores into a state of the same structure, which includes that of the optimizer.
    untrained = initial_state(network, optimizer_of(settings), lanes)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        step = checkpoints.latest()
        if step is None:
            raise RunError(f"{folder} has no checkpoint. Let the run finish first (--resume).")
        states, _ = checkpoints.restore(step, untrained)
    finally:
        checkpoints.close()
    return FinishedRun(settings, data, network, lanes, step, states, untrained)
