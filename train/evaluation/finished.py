"""Finished runs: their settings, their data, the states of their last checkpoint."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.engine.state import Network, TrainState, initial_state, optimizer
from train.run.checkpoint import Checkpoints
from train.run.folder import RunError, saved_run, saved_settings
from train.run.lanes import Lane, lanes_of
from train.run.settings import Settings

S = TypeVar("S", bound=Settings)


class Run(NamedTuple):
    """What a run folder holds."""

    settings: Any
    data: Any
    network: Network
    lanes: list[Lane]
    step: int
    states: TrainState
    """Of all lanes, at the last checkpoint."""
    untrained: TrainState


def read_settings(folder: Path, kind: type[S]) -> S:
    """The settings that a run was made with.

    Raises:
        RunError: the folder holds no run, or one of another command.
    """
    saved = saved_settings(folder)
    fields = {field.name for field in dataclasses.fields(kind)}
    if saved.keys() - fields:
        raise RunError(
            f"{folder} is a run of another command or version: {kind.__name__} does not have the settings "
            f"{', '.join(sorted(saved.keys() - fields))}. Name the --out of another run."
        )
    values: dict[str, Any] = {**saved, "out": folder}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RunError(_foreign(folder, error)) from None


def read_lanes(folder: Path, settings: Settings) -> list[Lane]:
    """The lanes that a run trained.

    Raises:
        RunError: what the folder says of them is of another version.
    """
    try:
        lanes = [Lane.from_json(lane) for lane in saved_run(folder).get("lanes", [])]
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(_foreign(folder, error)) from None
    return lanes or lanes_of(settings)


def _foreign(folder: Path, error: Exception) -> str:
    return (
        f"{folder}/settings.json holds what this version does not know ({error}). Use the version that made "
        "the run, or make it again."
    )


def open_run(folder: Path, kind: type[S], load: Callable[[S], Any]) -> Run:
    """Settings, data (by `load`), network and states of a run.

    Raises:
        RunError: there is no checkpoint yet.
        CheckpointError, DataError: as they say.
    """
    settings = read_settings(folder, kind)
    data = load(settings)
    network, transform = Network.of(settings, data), optimizer(settings)
    lanes = read_lanes(folder, settings)
    untrained = initial_state(network, transform, lanes)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        step = checkpoints.latest()
        if step is None:
            raise RunError(f"{folder} has no checkpoint. Let the run finish first (--resume).")
        states, _ = checkpoints.restore(step, untrained)
    finally:
        checkpoints.close()
    return Run(settings, data, network, lanes, step, states, untrained)
