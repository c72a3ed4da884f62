"""The folder of a run: claimed once, never overwritten, resumed with the same settings only."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from train.settings import RunSettings

# What may differ between a run and its resumption.
_FREE = {"resume", "out", "data_dir", "checkpoint_every", "devices", "wandb"}


class RunError(Exception):
    """A run cannot start or go on; the message says why and what to do."""


def claim(settings: RunSettings, about: dict[str, Any]) -> Path:
    """The folder `settings.out`: new or empty, or, with `resume`, that of a run of these settings.

    Writes `settings.json` with the settings and what else is told `about` the run.

    Raises:
        RunError: the folder holds something else, or a run and `resume` is not set, or a run of other
            settings.
    """
    folder = Path(settings.out)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder. Name a folder with --out.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "settings.json").exists():
            raise RunError(
                f"{folder} exists and holds something else than a run. It was left as it is; "
                "name another folder with --out."
            )
        if not settings.resume:
            raise RunError(
                f"{folder} holds a run already. Go on with it by --resume, or name another folder "
                "with --out."
            )
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
        RunError: there is none that can be read.
    """
    place = folder / "settings.json"
    try:
        saved = json.loads(place.read_text())
        saved["settings"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} holds no run: {place} cannot be read ({error}). Name the --out of a run."
        ) from None
    return saved


def saved_settings(folder: Path) -> dict[str, Any]:
    """The settings in `settings.json`, as `saved_run`."""
    return saved_run(folder)["settings"]


def same_settings(settings: RunSettings, saved: dict[str, Any]) -> None:
    """Raises `RunError` where a run would be resumed with other settings than it was made with."""
    now = json.loads(json.dumps(settings.as_json()))
    changed = [
        k for k in now.keys() | saved.keys() if k not in _FREE and now.get(k) != saved.get(k)
    ]
    if changed:
        listed = ", ".join(f"{k} was {saved.get(k)!r}, is {now.get(k)!r}" for k in sorted(changed))
        raise RunError(
            f"The run in {settings.out} was made with other settings ({listed}). Resume it with those, "
            "or name another folder with --out."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: a crash leaves the old one or the new one."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)
