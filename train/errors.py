"""What every command does with errors that its user can mend."""

import contextlib
import sys
from collections.abc import Iterator

from train.checkpoint import CheckpointError
from train.folders import RunError
from train.images import DataError


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Prints such an error as one line, without a traceback, and ends the program with status 2."""
    try:
        yield
    except (RunError, CheckpointError, DataError, MemoryError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
