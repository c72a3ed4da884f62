"""Errors that a user can fix, and their messages."""

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """Something that the user can fix; the message alone says what is wrong and what to do."""


class RunError(UserError):
    """A run cannot start or continue; the message says why and what to do."""


def message_of(error: BaseException) -> str:
    """The message of an error on one line; for one of the operating system, also what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return one_line(error) or type(error).__name__
    place, why = error.filename or "a file", error.strerror
    if error.errno in _FULL:
        return (
            f"{place} could not be written: {why}. Free some room first; what was complete is kept."
        )
    if error.errno in _FORBIDDEN:
        return f"{place} cannot be opened: {why}. Name another place, or change its permissions."
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{place} cannot be made: {why}. Name another place with --out."
    return one_line(error)


def one_line(error: BaseException) -> str:
    """The text of an error, in one line."""
    return " ".join(str(error).split())
