"""Errors that a user can fix, and how a command ends on them and on an interruption."""

import contextlib
import errno
import sys
from collections.abc import Iterator

import jax

from train.run.requirements import INSTALL

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """Something that the user can fix; the message alone says what is wrong and what to do."""


class RunError(UserError):
    """A run cannot start or continue; the message says why and what to do."""


@contextlib.contextmanager
def exit_on_user_error(*, resumable: bool = False) -> Iterator[None]:
    """Prints an error that the user can fix as one line, and ends the program with status 2.

    All other errors keep their traceback. An interruption ends the program with status 130; a
    `resumable` command says how to continue.
    """
    try:
        yield
        return
    except KeyboardInterrupt:
        more = " --resume continues from the last checkpoint." if resumable else ""
        print(f"\ninterrupted.{more}", file=sys.stderr)
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        message = f"the module {error.name} is not installed. {INSTALL}"
    except jax.errors.JaxRuntimeError as error:
        # Any other error of the runtime is a bug, whose traceback is needed.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        message = (
            f"the device has too little memory ({_one_line(error)[:200]}). Try a smaller "
            "--batch-size, --lanes-per-call or --memory-limit-mib."
        )
    # A `ValueError` is a setting that was refused; the operating system refuses a path or a limit.
    except (UserError, ValueError, OSError, MemoryError) as error:
        message = message_of(error)
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def message_of(error: BaseException) -> str:
    """The message of an error on one line; for one of the operating system, also what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return _one_line(error) or type(error).__name__
    place, why = error.filename or "a file", error.strerror
    if error.errno in _FULL:
        return (
            f"{place} could not be written: {why}. Free some room first; what was complete is kept."
        )
    if error.errno in _FORBIDDEN:
        return f"{place} cannot be opened: {why}. Name another place, or change its permissions."
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{place} cannot be made: {why}. Name another place with --out."
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
