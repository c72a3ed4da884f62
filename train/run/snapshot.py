"""What a run's folder holds at one moment, kept while training goes on and removes checkpoints."""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

HELD = ".mirror"
"""The folder in that of a run in which snapshots are held."""

_CHECKPOINTS = "checkpoints"

Signature = tuple[int, int, int]
"""Size, time and number of a file on the disk: they change when it is written."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A file as it was at the moment of a snapshot.

    Attributes:
        signature: what tells whether the file has changed since.
        content: where its content is held; None if the digest was known, so that nobody needs it.
        digest: the SHA-256 that it must have, if that is known.
    """

    signature: Signature
    content: Path | None
    digest: str | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of a run by their path in its folder, `a/b`; those of checkpoints come first."""

    place: Path
    files: Mapping[str, Held]

    def discard(self) -> None:
        """Removes what was held."""
        shutil.rmtree(self.place, ignore_errors=True)


def take(folder: Path, known: Mapping[str, tuple[Signature, str]], number: int) -> Snapshot:
    """Holds what the folder has now: its files, and those of its complete checkpoints.

    Left out are checkpoints without digests, files that are still being written, and links, which
    may lead out of the folder.

    Args:
        folder: the folder of a run, which may have those of other runs in it.
        known: signature and digest of files that need not be held unless they have changed.
        number: tells this snapshot from others.
    """
    place, files = folder / HELD / str(number), {}
    try:
        for path, digest in sorted(_files(folder), key=lambda found: (not found[1], found[0])):
            try:
                files[path] = _hold(folder / path, place / path, known.get(path), digest)
            except FileNotFoundError:
                # Another process removed it, as that of Weights & Biases does with its own files.
                if digest is not None:
                    raise
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return Snapshot(place, files)


def _hold(
    source: Path, target: Path, known: tuple[Signature, str] | None, digest: str | None
) -> Held:
    signature = _signature(source)
    if known is not None and known[0] == signature:
        return Held(signature, None, known[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    # The files of a checkpoint never change, and a link keeps them when it is removed. Others may
    # be written in place, which a link would show.
    if digest is None or not _linked(source, target):
        shutil.copyfile(source, target)
    return Held(signature, target, digest)


def discard_all(folder: Path) -> None:
    """Removes the snapshots that a killed process has left."""
    shutil.rmtree(folder / HELD, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_folder(path: str) -> str | None:
    """The folder of checkpoints that a file belongs to: one that is in it or lists its digests."""
    parts = path.removesuffix(".sha256.json").split("/")
    if _CHECKPOINTS not in parts:
        return None
    folder = "/".join(parts[: parts.index(_CHECKPOINTS) + 1])
    return folder if path == f"{folder}.sha256.json" or path.startswith(f"{folder}/") else None


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder of checkpoints, complete or not."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def _files(folder: Path) -> Iterator[tuple[str, str | None]]:
    """The paths of the files; for those of checkpoints also the digests that they should have."""
    for at, folders, files in os.walk(folder):
        here = Path(at)
        if _CHECKPOINTS in folders:
            yield from _complete(folder, here / _CHECKPOINTS)
        skipped = {_CHECKPOINTS, HELD}
        folders[:] = [f for f in folders if f not in skipped and not _is_left_out(here / f)]
        for name in files:
            path = here / name
            if name != f"{_CHECKPOINTS}.sha256.json" and not _is_left_out(path):
                yield path.relative_to(folder).as_posix(), None


def _complete(folder: Path, checkpoints: Path) -> Iterator[tuple[str, str | None]]:
    """The files of the checkpoints whose digests are noted, and the note, if there is any."""
    note = checkpoints.with_name(f"{checkpoints.name}.sha256.json")
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        found = [
            (checkpoints / step / file, str(digest))
            for step, digests in noted.items()
            if (checkpoints / step).is_dir() and not checkpoints.is_symlink()
            for file, digest in digests.items()
        ]
    except (OSError, ValueError, AttributeError):
        return
    # A file that is missing, or reached through a link: this checkpoint is not what was written.
    if not found or not all(_is_plain(path, checkpoints) for path, _ in found):
        return
    for path, digest in found:
        yield path.relative_to(folder).as_posix(), digest
    yield note.relative_to(folder).as_posix(), None


def _is_plain(path: Path, top: Path) -> bool:
    between = [path, *path.parents]
    inside = between[: between.index(top)] if top in between else [top.parent]
    return path.is_file() and ".." not in path.parts and not any(p.is_symlink() for p in inside)


def _is_left_out(path: Path) -> bool:
    if path.name.endswith(".part") or ".orbax-checkpoint-tmp" in path.name:
        return True
    # Of a file that another process has just removed, and of a device, there is nothing to copy.
    try:
        mode = path.lstat().st_mode
    except OSError:
        return True
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _signature(path: Path) -> Signature:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # not on every file system
        return False
    return True
