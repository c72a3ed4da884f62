"""Helpers of the experiments' tests."""

import dataclasses

import pytest

from train.run.checkpoint import Checkpoints

# Pictures carry the version of the library that drew them, and events the time.
_COMPARED = ("*.jsonl", "summary.json", "summary.md")


class Killed(Exception):
    pass


def assert_resumes_bit_identical(run, settings, whole, monkeypatch, *, saves=1):
    """Stops a run after so many checkpoints, resumes it, and compares its files with those of `whole`."""
    save, left = Checkpoints.save, [saves]

    def save_and_die(self, *arguments):
        save(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise Killed

    out = settings.out.with_name("killed")
    stopped = dataclasses.replace(settings, out=out)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            run(stopped, quiet=True)
    assert not (out / "summary.json").exists()
    run(dataclasses.replace(stopped, resume=True), quiet=True)
    compared = 0
    for pattern in _COMPARED:
        for file in whole.rglob(pattern):
            assert (out / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
            compared += 1
    assert compared >= 3
