"""The list of what a mirror of a run consists of: files with their digests, and who writes them."""

import dataclasses
import json
from pathlib import PurePosixPath, PureWindowsPath

from train.run.errors import RunError
from train.run.snapshot import checkpoint_folder

NAME = "mirror.json"

INCOMING = ".incoming"
"""The folder in the store for files whose place is taken until the next list is written."""

_FORMAT = "mirjax-mirror 1"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file in the store."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a mirror consists of.

    Attributes:
        writer: identifies the process that wrote the list.
        files: the files by their path in the folder of the run; none if it has been claimed only.
    """

    writer: str
    files: dict[str, Stored]

    def steps(self) -> dict[str, list[int]]:
        """The steps of the checkpoints in each folder of checkpoints."""
        found: dict[str, set[int]] = {}
        for path in self.files:
            folder = checkpoint_folder(path)
            if folder is not None and path.startswith(f"{folder}/"):
                step = path.removeprefix(f"{folder}/").split("/")[0]
                if step.isdecimal():
                    found.setdefault(folder, set()).add(int(step))
        return {folder: sorted(steps) for folder, steps in sorted(found.items())}

    def as_bytes(self) -> bytes:
        """The list as JSON."""
        content = {
            "format": _FORMAT,
            "writer": self.writer,
            "steps": self.steps(),
            "files": {path: dataclasses.asdict(file) for path, file in sorted(self.files.items())},
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def parsed(content: bytes, place: str) -> Manifest:
    """The list in a file of the store at `place`.

    Raises:
        RunError: it is damaged, of another version, or names a file outside the folder of the run.
    """
    try:
        saved = json.loads(content)
        if saved["format"] != _FORMAT:
            raise ValueError(f"its format is {saved['format']!r}, not {_FORMAT!r}")
        files = {path: Stored(**about) for path, about in saved["files"].items()}
        if outside := [path for path in files if not _is_inside(path)]:
            raise ValueError(f"it names {outside[0]}")
        return Manifest(saved["writer"], files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{place} cannot be used ({error!r}): it should list what the copy of a run consists "
            "of. It was left as it is; name another --mirror, or continue with the version of the "
            "program that wrote it."
        ) from None


def waiting(path: str, file: Stored) -> str:
    """Where a file waits for the place that it will take."""
    return f"{INCOMING}/{path}.{file.sha256}"


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not PureWindowsPath(path).anchor
