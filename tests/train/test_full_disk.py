"""A full disk ends a run with one line, and the run goes on when there is room."""

import dataclasses
import errno
from types import SimpleNamespace

import pytest

from train.run import checkpoint, command
from train.run.checkpoint import CheckpointError
from train.run.trackers import JsonLines
from train.supervised import fit


@pytest.mark.slow
def test_a_full_disk_before_a_checkpoint(tiny, settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
        with pytest.raises(CheckpointError, match=r"No space left.*4,096 bytes are free.*--resume"):
            fit(settings, tiny, quiet=True)
    assert (
        fit(dataclasses.replace(settings, resume=True), tiny, quiet=True).records[-1]["step"] == 8
    )


def test_a_full_disk_within_a_checkpoint(tiny, settings, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: a long story: No space left on device [28]")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(CheckpointError, match=r"\(No space left on device\)\. Look for room"):
        fit(settings, tiny, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4])
def test_a_full_disk_within_the_metrics(step, tiny, settings, monkeypatch, capsys):
    write = JsonLines.write

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    def fills(self, at, *more):
        if at == step:
            self._file.close()
            self._file = Full()
        write(self, at, *more)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "write", fills)
        with pytest.raises(SystemExit, match="2"), command.exit_on_user_error():
            fit(settings, tiny, quiet=True)
    told = capsys.readouterr().err
    assert f"{settings.out}/metrics.jsonl could not be written: No space left on device" in told
    assert (
        fit(dataclasses.replace(settings, resume=True), tiny, quiet=True).records[-1]["step"] == 8
    )


@pytest.mark.slow
def test_a_folder_that_could_not_be_begun_can_be_begun_again(tiny, settings, monkeypatch):
    def full(place, text, **_):
        place.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="No space"):
            fit(settings, tiny, quiet=True)
    assert fit(settings, tiny, quiet=True).records[-1]["step"] == 8
