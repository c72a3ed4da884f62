"""Files that are written whole or not at all, and metrics as JSON lines."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.run import hosts
from train.run.errors import RunError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end; a crash leaves the old file or the new."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    # Whatever went wrong, an interruption included: nothing is left behind that would look like a
    # file of the user's.
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file as UTF-8, whole or not at all; of several processes the first does."""
    if not hosts.is_first():
        return
    with replacing(path) as temporary:
        temporary.write_text(legible(text), encoding="utf-8")


def legible(text: str) -> str:
    """Text that UTF-8 can hold: what the locale could not read of a name of a file is mended.

    Python keeps such bytes as lone surrogates, in a locale that is not UTF-8 for instance. They
    become the letters that they are in UTF-8 or, where they are none, escapes.
    """
    with contextlib.suppress(UnicodeError):
        return text.encode(errors="surrogateescape").decode()
    return text.encode(errors="backslashreplace").decode()


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records, one per line, all or none of them."""
    write_text(path, "".join(map(json_line, records)))


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON. JSON has no non-finite numbers: they become null."""
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    return json.dumps(plain) + "\n"


def read_jsonl(path: Path, *, needs: str | None = None) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off is ignored.

    Args:
        path: the file.
        needs: name of an integer that every record must have.

    Raises:
        RunError: the file cannot be read, or a line is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}). Name the --out of a run.") from None
    # A run that was killed while writing leaves a last line without its end.
    return [_record(path, n, line, needs) for n, line in enumerate(lines, 1) if line.endswith("\n")]


def _record(path: Path, number: int, line: str, needs: str | None) -> dict[str, Any]:
    try:
        record = json.loads(line)
        numbers = [] if needs is None else [record[needs]]
        if not isinstance(record, dict) or not all(isinstance(n, int) for n in numbers):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}, line {number}: this is no record of a run, the file was changed. Remove the "
            "line to do without it, or start again in another folder (--out)."
        ) from None
    return record
