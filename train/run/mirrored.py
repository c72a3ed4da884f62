"""The mirror of what a command writes: opened with the command, copied to with each checkpoint."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from train.run import hosts
from train.run.errors import UserError
from train.run.settings import RunSettings
from train.run.stopping import Interrupted


class MirrorBehind(UserError):
    """The run is complete, but its mirror is not; the message says why."""


_PATIENCE = 20
"""Seconds that a run which has failed waits for its last copy."""

# One for the command, whose runs may lie in folders below that of the command.
_open: list[Any] = []
# Whether a run has saved anything: only then is what lies in the folder known to be the command's.
_saved: list[bool] = []


@contextlib.contextmanager
def mirrored(settings: RunSettings) -> Iterator[None]:
    """Keeps a copy of the folder `out` at `mirror`, if the settings name one.

    A run within a command that is mirrored already is a part of the command's folder.

    Raises:
        RunError: the mirror holds something else.
        StoreError: the place cannot be used.
        MirrorBehind: at the end, the copy lacks something.
    """
    if settings.mirror is None or _open:
        yield
        return
    mirror = None
    if hosts.is_first():
        from train.run.mirror import Mirror

        mirror = Mirror(settings.mirror, settings.out)
        if settings.resume and mirror.bring_back():
            print(f"The run was brought back from {settings.mirror}.")
        mirror.claim(resume=settings.resume)
    # Nobody looks for what is brought back before it is there.
    hosts.gathered(None)
    _open.append(mirror)
    _saved.clear()
    try:
        yield
    except BaseException as error:
        # The other processes wait to hear of an error; after an interruption all are here.
        limit = None if isinstance(error, Interrupted) else _PATIENCE
        at_once = isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted)
        ours = mirror is not None and _saved and not at_once
        if ours and (problem := mirror.close(limit=limit)) is not None:
            print(f"warning: {problem}", file=sys.stderr)
        raise
    finally:
        _open.clear()
    if mirror is not None and (problem := mirror.close()) is not None:
        raise MirrorBehind(problem)


def copy_to_mirror() -> None:
    """Starts a copy of what the command's folder holds now, if there is a mirror."""
    _saved.append(True)
    for mirror in _open:
        if mirror is not None:
            mirror.copy()
