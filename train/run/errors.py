"""What every command does with errors that its user can mend, and with an interruption."""

import contextlib
import errno
import sys
from collections.abc import Iterator

import jax

from train.data.types import DataError
from train.run.checkpoint import CheckpointError
from train.run.folder import RunError
from train.run.requirements import INSTALL
from train.run.trackers import TrackerError

_MENDABLE = (RunError, CheckpointError, DataError, TrackerError, MemoryError, OSError, ValueError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def told(*, resumable: bool = False) -> Iterator[None]:
    """Prints such an error as one line, without a traceback, and ends the program with status 2.

    An interruption ends it with status 130; a `resumable` command says how to go on.
    """
    try:
        yield
        return
    except KeyboardInterrupt:
        more = " --resume goes on from the last checkpoint." if resumable else ""
        print(f"\ninterrupted.{more}", file=sys.stderr)
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        message = f"the module {error.name} is not installed. {INSTALL}"
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        message = (
            f"the device has too little memory ({_line(error)[:200]}). Try a smaller --batch-size, "
            "--lanes-per-call or --memory-limit-mib."
        )
    except _MENDABLE as error:
        message = explained(error)
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def explained(error: BaseException) -> str:
    """The message of an error in one line; of the operating system's, with what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return _line(error) or type(error).__name__
    place, why = error.filename or "a file", error.strerror
    if error.errno in _FULL:
        return (
            f"{place} could not be written: {why}. Free some room first; what was complete is kept."
        )
    if error.errno in _FORBIDDEN:
        return f"{place} cannot be opened: {why}. Name another place, or change its permissions."
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{place} cannot be made: {why}. Name another place with --out."
    return _line(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
