"""What is printed: text as it is, on consoles of every encoding."""

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def escape_what_cannot_be_printed() -> None:
    """Makes `print` escape letters that the console lacks, where it would raise an error.

    A table has an ε or a ±, which an ASCII console or one of Windows cannot encode: they would end
    a run after all of its training. Python itself does so for the stream of errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def plain_console() -> "Console":
    """A console of Rich that takes no part of a text for markup, as in the name `a [red] :x:`."""
    from rich.console import Console

    return Console(markup=False, emoji=False)
