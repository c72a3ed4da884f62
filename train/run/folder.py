"""The folder of a run: claimed once, never overwritten, and resumed only with the same settings."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from train.run import hosts
from train.run.errors import RunError
from train.run.files import write_text
from train.run.settings import RunSettings

# Settings that may differ between a run and its resumption.
_FREE = {
    "resume",
    "out",
    "data_dir",
    "checkpoint_every",
    "devices",
    "lane_devices",
    "mirror",
    "wandb",
}


def claim(settings: RunSettings, about: dict[str, Any]) -> Path:
    """The folder `settings.out`: new or empty or, with `resume`, that of a run with these settings.

    A new folder gets a `settings.json` with the settings and what `about` says of the run. Of
    several processes the first alone looks and writes: the others may lie on other disks.

    Raises:
        RunError: the folder holds something else, a run although `resume` is not set, or a run with
            other settings.
    """
    folder = Path(settings.out)
    if not hosts.is_first():
        return folder
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder. Name a folder with --out.")
    _can_write(folder)
    if not _is_utf8(folder.absolute()):
        raise RunError(
            f"The name of {folder} is not UTF-8, which checkpoints need. Set PYTHONUTF8=1, or name "
            "another folder with --out."
        )
    # An empty folder counts as new: the user may have made it for this run.
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "settings.json").exists():
            raise RunError(
                f"{folder} exists and holds something else than a run. It was left as it is; "
                "name another folder with --out."
            )
        if not settings.resume:
            raise RunError(
                f"{folder} holds a run already. Continue it with --resume, or name another folder "
                "with --out."
            )
        same_kind(settings, folder)
        same_settings(settings, saved_settings(folder))
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings.as_json(), "kind": type(settings).__name__, **about}
    content["versions"] = {"jax": jax.__version__, "backend": jax.default_backend()}
    write_text(folder / "settings.json", json.dumps(content, indent=2) + "\n")
    return folder


def saved_run(folder: Path) -> dict[str, Any]:
    """The content of `settings.json`.

    Raises:
        RunError: it is missing or cannot be read.
    """
    place = folder / "settings.json"
    try:
        saved = json.loads(place.read_text(encoding="utf-8"))
        # Raises an error if this is no dictionary with a dictionary of settings.
        saved["settings"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} holds no run: {place} cannot be read ({error}). Name the --out of a run."
        ) from None
    return saved


def saved_settings(folder: Path) -> dict[str, Any]:
    """The settings in `settings.json`; raises errors like `saved_run`."""
    return saved_run(folder)["settings"]


def same_kind(settings: RunSettings, folder: Path) -> None:
    """Raises `RunError` if the run in `folder` was made by another command."""
    made_by, resumed_by = saved_run(folder).get("kind"), type(settings).__name__
    if made_by is not None and made_by != resumed_by:
        raise RunError(
            f"{folder} holds a run of another command (its settings are {made_by}, these are "
            f"{resumed_by}). Resume it with the command that made it, or name another folder with "
            "--out."
        )


def new_place(path: Path) -> None:
    """Raises `RunError` if the path exists already or cannot be written."""
    if path.exists():
        raise RunError(f"{path} exists; name another place with --out.")
    _can_write(path)


def _can_write(path: Path) -> None:
    # Of a path that is still to be made, the closest folder that exists decides.
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RunError(f"{path} cannot be made: {there} is a file. Name another place with --out.")
    if not os.access(there, os.W_OK):
        raise RunError(
            f"{path} cannot be written: there is no permission to write in {there}. Name another "
            "place with --out."
        )


def _is_utf8(path: Path) -> bool:
    # In a locale of another encoding, the operating system has the name in that one.
    try:
        return str(path).encode() == os.fsencode(path)
    except UnicodeError:
        return False


def same_settings(settings: RunSettings, saved: dict[str, Any]) -> None:
    """Raises `RunError` if a run would be resumed with settings other than its own."""
    # Through JSON, which turns tuples into lists, as it did for the saved settings.
    now = json.loads(json.dumps(settings.as_json()))
    # Runs of older versions name options that are refused now; their checkpoints say what they are.
    compared = (now.keys() | saved.keys()) - _FREE - settings.refused.keys()
    changed = [k for k in compared if now.get(k) != saved.get(k)]
    if changed:
        listed = ", ".join(f"{k} was {saved.get(k)!r}, is {now.get(k)!r}" for k in sorted(changed))
        raise RunError(
            f"The run in {settings.out} was made with other settings ({listed}). Resume it with "
            "those, or name another folder with --out."
        )
