"""The README's lines do what they say."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_prints_what_the_readme_says():
    names = {}
    printing = 0
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if promised := re.search(r"^# (.*\d.*)$", code, re.MULTILINE):
            assert printed.getvalue().strip() == promised.group(1)
            printing += 1
    assert printing >= 2


def test_every_public_name_is_in_the_table():
    import mirjax

    for name in mirjax.__all__:
        if name not in (
            "Interplay",
            "NeuralCollapse",
            "normalize_rows",
            "DatasetInterplay",
            "BatchBias",
        ):
            assert re.search(rf"`{name}[.(`]", TEXT), name


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_collapse_value_is_right():
    import mirjax

    assert f"{mirjax.theory.collapsed_mir(10):.3f} for ten classes" in TEXT
