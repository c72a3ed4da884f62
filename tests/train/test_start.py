"""What a command does before its modules are imported, and when it is interrupted."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from train.data.batches import stream
from train.data.tfds import read
from train.data.types import DataError, RecordSplit
from train.prepare import prepare

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "train").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)


def start(name, *arguments, without=None, folder):
    """A command in a process in which a module cannot be imported."""
    if without:
        (folder / "sitecustomize.py").write_text(
            f"import sys; sys.modules[{without!r}] = None", encoding="utf-8"
        )
    return subprocess.Popen(
        [sys.executable, "-m", f"train.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_commands_are_found():
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_package_is_named(name, tmp_path):
    # Each command meets another one of them first; all are asked for before any is imported.
    process = start(name, without="optax" if name < "l" else "tyro", folder=tmp_path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("error: optax" if name < "l" else "error: tyro")
    assert "is not installed for" in told
    assert "make" in told
    assert len(told.splitlines()) == 1


def test_a_package_that_only_some_data_need(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(
        DataError, match="a data set that does not fit in memory needs the module grain"
    ):
        stream(RecordSplit([0], (2, 2, 1)), batch_size=1, seed=0)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"needs the module tensorflow_datasets.*Run `make`"):
        prepare("cifar10", tmp_path, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("platform", "todo"),
    [
        ("linux", r"not installed\. Run `make`"),
        ("win32", r"not exist for Windows\. Run this under Linux .*folder:PATH"),
    ],
)
def test_files_that_windows_cannot_read(platform, todo, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "array_record", None)
    monkeypatch.setattr(sys, "platform", platform)
    message = f"data in the layout of TFDS needs the .* array.record, which (is|does) {todo}"
    with pytest.raises(DataError, match=message):
        prepare("cifar10", tmp_path, data_dir=tmp_path)
    with pytest.raises(DataError, match=message):
        read("cifar10", "3.0.2", tmp_path, memory_limit_mib=1)


def test_the_extra_asks_for_no_package_that_windows_lacks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = [Requirement(text) for text in project["optional-dependencies"]["train"]]
    (marker,) = (need.marker for need in extra if need.name == "array-record")
    for platform, needed in (("win32", False), ("linux", True), ("darwin", True)):
        assert marker.evaluate({"sys_platform": platform}) == needed


def test_an_interruption_of_the_imports_has_no_traceback(tmp_path):
    code = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "optax":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
"""
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    process = start("supervised", folder=tmp_path)
    _, told = process.communicate(timeout=60)
    # What a shell calls 130.
    assert process.returncode == -signal.SIGINT
    assert told == "interrupted.\n"


@pytest.fixture
def heeds_interruptions():
    # What a shell runs in the background ignores SIGINT, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["once", "twice", "SIGTERM"])
def test_an_interrupted_run_says_how_to_go_on(kind, tmp_path, heeds_interruptions):
    out = tmp_path / "run"
    process = start("supervised", "smoke", "--steps", "100000", "--out", str(out), folder=tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not (out / "checkpoints" / "10").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGINT)
        told = "" if kind == "SIGTERM" else process.stderr.readline() + process.stderr.readline()
        assert told.strip() in ("", "stopping after this call; press Ctrl-C again to end at once")
        if kind == "twice":
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == (143 if kind == "SIGTERM" else 130)
    (line,) = told.strip().splitlines()
    # A second interruption may come when the run has ended by itself.
    if kind != "twice" or "at step" in line:
        assert line.startswith("interrupted at step ")
        assert line.endswith("Continue with the same command and --resume.")
    else:
        assert line == "interrupted. --resume continues from the last checkpoint."
