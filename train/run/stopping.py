"""Requests to stop: an interruption or SIGTERM lets a run save its state before it ends."""

import itertools
import os
import signal
import threading
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils

from train.run import hosts


class Interrupted(KeyboardInterrupt):
    """A run has saved its state and ends because it was asked to; the message says how to go on."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


# Of all runs of a command: the runtime names one number at which every process stops.
_calls = itertools.count(1)


class StopRequest:
    """As a context, turns the first interruption or SIGTERM into a request to stop.

    A second interruption ends the program at once. Of several processes any may get the signal:
    JAX's runtime tells the others, and all stop at the same call.
    """

    def __init__(self):
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status of a program that ends because of the signal."""
        return 128 + (self._signal or signal.SIGTERM)

    def asked(self) -> bool:
        """Whether to stop now; to be called between calls, by all processes alike."""
        if not hosts.several():
            return self._signal is not None
        return multihost_utils.reached_preemption_sync_point(next(_calls))

    def __enter__(self) -> "StopRequest":
        # Only the main thread may handle signals; elsewhere, as in a notebook's, they stay as is.
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
            # Of several processes, the runtime listens to SIGTERM itself.
            if not hosts.several():
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        # Asked after the last call of this run: the command may have others.
        if kind is None and self._signal is not None and not hosts.several():
            signal.raise_signal(self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        if number == signal.SIGINT:
            # Not by `print`, in the middle of which the signal may have come.
            os.write(2, b"\nstopping after this call; press Ctrl-C again to end at once\n")
        if hosts.several():
            os.kill(os.getpid(), signal.SIGTERM)
