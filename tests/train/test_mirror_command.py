"""Runs with `--mirror`: what commands copy, bring back, and say about it."""

import dataclasses
import json

import pytest

from train.run import mirrored as module
from train.run.command import exit_on_user_error
from train.run.errors import RunError
from train.run.mirrored import mirrored
from train.run.stopping import Interrupted, StopRequest
from train.supervised import fit

pytest.importorskip("fsspec")


@pytest.fixture
def copied(settings, tmp_path):
    """Settings of a run with a mirror."""
    return dataclasses.replace(settings, mirror=f"file://{tmp_path}/store")


def listed(tmp_path):
    return json.loads((tmp_path / "store" / "mirror.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_elsewhere(tiny, settings, copied, monkeypatch, tmp_path):
    whole = fit(settings, tiny, quiet=True)
    first = dataclasses.replace(copied, out=tmp_path / "lost", resume=True)
    answers = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "asked", lambda _: next(answers))
        with pytest.raises(Interrupted, match="interrupted at step 3"):
            fit(first, tiny, quiet=True)
    assert listed(tmp_path)["steps"] == {"checkpoints": [3]}
    again = dataclasses.replace(copied, out=tmp_path / "new", resume=True)
    assert fit(again, tiny, quiet=True).records == whole.records
    # Anything else does not take its place.
    with pytest.raises(RunError, match="holds a run already"):
        fit(dataclasses.replace(copied, out=tmp_path / "other"), tiny, quiet=True)
    other = dataclasses.replace(settings, out=tmp_path / "other", learning_rate=0.5)
    fit(other, tiny, quiet=True)
    with pytest.raises(RunError, match="holds another run than"):
        mirrored_fit(dataclasses.replace(other, mirror=copied.mirror, resume=True), tiny)


def mirrored_fit(settings, data):
    with mirrored(settings):
        return fit(settings, data, quiet=True)


@pytest.mark.slow
def test_the_runs_of_a_command_have_one_mirror(tiny, copied, tmp_path):
    with mirrored(copied):
        for name in ("first", "second"):
            fit(dataclasses.replace(copied, out=copied.out / name), tiny, quiet=True)
        (copied.out / "summary.md").write_text("all of it", encoding="utf-8")
    assert listed(tmp_path)["steps"] == {"first/checkpoints": [8], "second/checkpoints": [8]}
    # What is written after the last checkpoint, too.
    assert (tmp_path / "store" / "summary.md").read_text(encoding="utf-8") == "all of it"
    assert not module._open


def test_a_store_that_fails_is_told_at_the_end(tiny, copied, monkeypatch, capsys, tmp_path):
    from train.run.store import Store, StoreError

    def gone(self, path, name):
        raise StoreError(f"{self.url}/{name} cannot be written (no route)")

    monkeypatch.setattr(Store, "put", gone)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        mirrored_fit(copied, tiny)
    told = capsys.readouterr().err
    assert told.startswith("error: The copy in file://")
    assert "cannot be written (no route)" in told
    assert len(told.splitlines()) == 1
    # The run itself is complete.
    last = (copied.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["step"] == 8


def test_what_is_no_run_is_not_copied(tiny, copied, tmp_path):
    copied.out.mkdir()
    (copied.out / "letter.txt").write_text("private", encoding="utf-8")
    with pytest.raises(RunError, match="holds something else than a run"):
        mirrored_fit(copied, tiny)
    assert [place.name for place in (tmp_path / "store").iterdir()] == ["mirror.json"]
    assert [place.name for place in copied.out.iterdir()] == ["letter.txt"]
