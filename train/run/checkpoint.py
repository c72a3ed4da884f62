"""Checkpoints: saves and restores the state of a run (Orbax); its errors say what to do."""

import errno
import gc
import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.run import hosts
from train.run.errors import UserError
from train.run.files import write_text

# The number is raised whenever the contents of a state change.
FORMAT = "mirjax-train 3"

_OVERHEAD = 2**17
"""Bytes of a checkpoint besides its arrays: 100 KiB for a small network, in blocks of 4 KiB."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or used; an existing one was left as it was."""


class Checkpoints:
    """The checkpoints of one run, in `folder/STEP/`."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        # Orbax logs a traceback of each error that it also raises, which is reported once, below.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp, self.folder = ocp, folder.resolve()
        # Beside the folder and not in it, where Orbax expects nothing but steps.
        self._files = self.folder.with_name(f"{self.folder.name}.sha256.json")
        # Of several processes the first writes alone: the disk of another may be another.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0,
            active_processes={0} if hosts.several() else None,
            barrier_sync_key_prefix="first" if hosts.several() else None,
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
            create=False,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The step of the last complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Writes the checkpoint of a step; a crash meanwhile leaves the earlier one.

        Args:
            step: the step.
            state: a tree of arrays.
            about: the `settings` of the run, and what else goes with the state, as plain values.
        """
        # Arrays of JAX are saved with their devices, and could be restored on no others.
        leaves = {name: np.asarray(leaf) for name, leaf in _leaves(state).items()}
        about = {"format": FORMAT, **about}
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(leaves), about=self._ocp.args.JsonSave(about)
        )
        if (reason := self._write(step, args, leaves)) is not None:
            _collect_unfinished()
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be written to {self.folder} "
                f"({reason}). Look for room on the disk and for permission to write there; "
                "--resume then continues from the checkpoint before."
            )
        # Orbax has removed the older checkpoints by now: their digests go too.
        known = self._known_files()
        kept = {str(s): known[str(s)] for s in self._manager.all_steps() if str(s) in known}
        kept[str(step)] = _digests(self.folder / str(step))
        write_text(self._files, json.dumps(kept))

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state saved at `step`, with the structure of `like`, and what was saved about it.

        Raises:
            CheckpointError: the checkpoint is damaged, of another version or of another network.
        """
        place = self.folder / str(step)
        # Checked before Orbax reads: when one of its parallel reads fails, the others go on.
        expected = self._known_files().get(str(step))
        if expected is not None and (changed := _changed(place, expected)):
            raise CheckpointError(
                _unreadable(place, f"{changed} is missing or not what was written")
            )
        about = self._read(step, about=self._ocp.args.JsonRestore())["about"]
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(
                f"{place} is no checkpoint of this version of the program (format {FORMAT!r}). It "
                "was left as it is; continue with the version that wrote it, or name another "
                "folder with --out."
            )
        # Shapes, types and shardings: Orbax puts each array where its counterpart lies.
        abstract = jax.tree.map(_abstract, _leaves(like))
        leaves = self._read(step, state=self._ocp.args.StandardRestore(abstract))["state"]
        state = jax.tree.unflatten(jax.tree.structure(like), [leaves[k] for k in _leaves(like)])
        return state, about

    def _write(self, step: int, args: Any, leaves: dict[str, Any]) -> str | None:
        """Saves, and returns why that failed, if it did."""
        # Checked first: Orbax writes in parallel, and when one write fails, the others go on.
        needed = sum(leaf.nbytes for leaf in leaves.values()) + _OVERHEAD
        if (free := shutil.disk_usage(self.folder).free) < needed:
            return f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free, {needed:,} are needed"
        try:
            self._manager.save(step, args=args)
        # Orbax and its storage layer raise errors of many unrelated types.
        except Exception as error:
            return _first_line(error)
        return None

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**items))
        except Exception as error:
            message = _unreadable(self.folder / str(step), error)
        # Outside the handler, whose traceback would keep the unfinished coroutines alive.
        _collect_unfinished()
        raise CheckpointError(message)

    def _known_files(self) -> dict[str, dict[str, str]]:
        """SHA-256 of the files of each step; a run killed before it noted them has none."""
        try:
            digests = dict(json.loads(self._files.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}
        return {step: files for step, files in digests.items() if isinstance(files, dict)}

    def close(self) -> None:
        """Releases the manager."""
        self._manager.close()


def _collect_unfinished() -> None:
    # A failed call leaves coroutines behind. Python would print a traceback for each of them
    # whenever it happens to collect them; collected here, they stay silent.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _changed(folder: Path, expected: dict[str, str]) -> str | None:
    """The first of the expected files that is missing or has changed."""
    current = _digests(folder)
    return next((name for name, sha in expected.items() if current.get(name) != sha), None)


def _leaves(state: Any) -> dict[str, Any]:
    # By path, so that a checkpoint does not depend on the classes that a state is made of.
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _abstract(leaf: Any) -> Any:
    # As arrays of NumPy, which the first of several processes sends on.
    if hosts.several():
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _first_line(error: Exception | str) -> str:
    # Orbax wraps an error of the system in many lines; a full disk is the one to recognise.
    full = os.strerror(errno.ENOSPC)
    lines = [full] if full in str(error) else str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _unreadable(place: Path, error: Exception | str) -> str:
    return (
        f"The checkpoint {place} cannot be read ({_first_line(error)}). It was left as it is. "
        "Remove that folder to continue from an earlier one or to start again, or name another "
        "--out."
    )
