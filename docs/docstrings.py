"""Reads the docstrings of this project: `Example:` stands for a section of examples."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """The parser knows the plural only, and would take the singular for a note in a box."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Writes the plural."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
