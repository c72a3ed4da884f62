"""Text files are UTF-8 and consoles take all that is printed, whatever the locale says."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.run.files import replacing, write_text

ROOT = Path(__file__).parents[2]
FOLDERS = ("mirjax", "train", "tests", "benchmarks", "docs", "notebooks")
# An ASCII locale, in which Python neither chooses UTF-8 by itself nor is told to.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def unnamed(tree):
    """The lines of calls that read or write text and do not say in which encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        # Methods of a path, or the function `open`; those of archives and images read no text.
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [a for a in call.args if isinstance(a, ast.Constant) and str(a.value) in _MODES]
        texts = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
        texts |= name in ("open", "fdopen", "TextIOWrapper") and bool(modes)
        texts |= isinstance(call.func, ast.Name) and name == "open" and len(call.args) == 1
        if texts and "encoding" not in {keyword.arg for keyword in call.keywords}:
            yield call.lineno


_MODES = {"r", "w", "a", "x", "r+", "w+", "a+"}


def test_everything_that_reads_or_writes_text_names_its_encoding():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    calls = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in unnamed(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert calls == []


def test_calls_without_an_encoding_are_found():
    text = "a.read_text()\nb.write_text(c)\nopen(d)\ne.open('a')\nwith f.open(mode) as g: pass\n"
    assert list(unnamed(ast.parse(text))) == [1, 2, 3, 4]
    assert not list(
        unnamed(ast.parse("a.read_text(encoding='utf-8')\nopen(d, 'rb')\ne.open('wb')"))
    )


def in_ascii(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **ASCII},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode("ascii"), done.stderr.decode("ascii")


def test_a_summary_is_written_and_printed_in_an_ascii_locale(tmp_path):
    code = f"""
from pathlib import Path
from train.reporting.summary import Summary, Table
from train.run.console import escape_what_cannot_be_printed
from train.run.files import read_jsonl, write_text

escape_what_cannot_be_printed()
table = Table("n = 5; mean \\xb1 1", ("\\u03b5", "MIR"), (("0", "0.5 \\xb1 0.1"),))
Summary(Path({str(tmp_path)!r}), "Smoothing: \\xfc", (table,), {{}}).write().show()
write_text(Path({str(tmp_path / "a.jsonl")!r}), '{{"a": "\\u03b5"}}\\n')
assert read_jsonl(Path({str(tmp_path / "a.jsonl")!r})) == [{{"a": "\\u03b5"}}]
"""
    status, shown, told = in_ascii("-c", code)
    assert (status, told) == (0, "")
    assert "Smoothing: \\xfc" in shown
    assert "0.5 \\xb1 0.1" in shown
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# Smoothing: ü\n\nn = 5; mean ± 1\n\n| ε | MIR |\n")


def test_a_command_prints_on_an_ascii_console():
    status, shown, told = in_ascii("-m", "train.smoothing", "smoke", "--help")
    assert (status, told) == (0, "")
    assert "\\u03b5" in shown


@pytest.mark.parametrize(
    "error", [UnicodeEncodeError("ascii", "ε", 0, 1, "no"), KeyboardInterrupt(), OSError("full")]
)
def test_nothing_is_left_of_a_text_that_could_not_be_written(error, tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("old", encoding="utf-8")
    write = Path.write_text

    def fails(path, text, **options):
        write(path, text[:2], **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails)
        with pytest.raises(type(error)):
            write_text(tmp_path / "a.md", "a new text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "old"


def test_nothing_is_left_of_arrays_that_could_not_be_written(tmp_path):
    class NoArray:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("no array")

    def save():
        with replacing(tmp_path / "a.npz") as place, place.open("wb") as file:
            np.savez(file, np.zeros(3), NoArray())

    with pytest.raises(TypeError, match="no array"):
        save()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_over_an_odd_folder_in_an_ascii_locale(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    data = tmp_path / "a$b$ [x] 5% ü"
    for label in ("cat", "dog"):
        (data / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(data / label / f"{number}.png")
    out = tmp_path / "run"
    options = ["--steps", "2", "--eval-every", "2", "--batch-size", "8", "--out", str(out)]
    command = ["-m", "train.smoothing", "smoke", "--dataset", f"folder:{data}", *options]
    status, shown, told = in_ascii(*command)
    assert (status, told) == (0, "")
    assert "Label smoothing: a$b$ [x] 5% \\xfc (no published split" in " ".join(shown.split())
    title = (out / "summary.md").read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith(r"# Label smoothing: a\$b\$ \[x\] 5% ü (no published split")
    assert not list(out.rglob("*.part"))
