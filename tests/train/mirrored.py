"""Folders that look like those of runs, and a store whose operations are counted and cut off."""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

from train.run.checkpoint import _digests
from train.run.mirror import Mirror

OPERATIONS = ("cat_file", "put_file", "pipe_file", "cp_file", "mv", "rm_file", "rm", "ls", "find")


def write_run(folder, step, *, below="training"):
    """A run at a step, with another one in a folder below it, as they lie after a checkpoint."""
    for place in (folder, folder / below) if below else (folder,):
        new = place / "checkpoints" / str(step)
        (new / "state" / "d").mkdir(parents=True)
        (place / "events" / "seed0").mkdir(parents=True, exist_ok=True)
        (place / "settings.json").write_text(
            json.dumps({"settings": {"steps": 9}}), encoding="utf-8"
        )
        lines = "".join(f'{{"step": {n}}}\n' for n in range(step + 1))
        (place / "metrics.jsonl").write_text(lines, encoding="utf-8")
        (place / "events" / "seed0" / "events.tfevents").write_bytes(bytes(10 * step))
        (new / "state" / "d" / "array").write_bytes(bytes([step]) * 100)
        (new / "metadata").write_text(f"step {step}", encoding="utf-8")
        (place / "checkpoints.sha256.json").write_text(
            json.dumps({str(step): _digests(new)}), encoding="utf-8"
        )
        for old in (place / "checkpoints").iterdir():
            if old != new:
                shutil.rmtree(old)
    return tree(folder)


def tree(folder):
    """The files in a folder, by their paths, without the snapshots that a mirror holds there."""
    found = {}
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".mirror"]
        for path in (Path(at, name) for name in files):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def stored(mirror):
    """The files in a store, without the list of them."""
    names = set(mirror.store.files("")) - {"mirror.json"}
    return {name: mirror.store.read(name) for name in names}


def started(url, folder, *, resume=False):
    """A mirror whose copies are made in this thread, without waits between tries."""
    mirror = Mirror(url, folder, background=False, sleep=lambda _: None)
    mirror.claim(resume=resume)
    return mirror


def brought_back(url, folder):
    """What another machine finds."""
    assert Mirror(url, folder, sleep=lambda _: None).bring_back()
    return tree(folder)


class Killed(BaseException):
    """The process ends here."""


class Cut:
    """A file system on which the process is killed at one of its operations.

    Args:
        inner: the file system.
        at: the number of the operation, from 0.
        how: `before` it, `after` it, or with `half` of it done, as far as the store can do halves.
    """

    def __init__(self, inner, *, at=None, how="before"):
        self.inner, self.at, self.how, self.count = inner, at, how, 0

    def __getattr__(self, name):
        operation = getattr(self.inner, name)
        if name not in OPERATIONS:
            return operation

        def called(*arguments, **options):
            self.count += 1
            if self.count - 1 != self.at:
                return operation(*arguments, **options)
            if self.how == "after":
                with contextlib.suppress(Exception):
                    operation(*arguments, **options)
            if self.how == "half":
                self.half(name, *arguments)
            raise Killed

        return called

    def half(self, name, path, to=None):
        if name == "put_file":
            with open(path, "rb") as file:
                content = file.read()
            self.inner.pipe_file(to, content[: len(content) // 2])
        if name == "pipe_file":
            self.inner.pipe_file(path, to[: len(to) // 2])
        if name == "mv":
            self.inner.cp_file(path, to)
        if name == "rm":
            for file in self.inner.find(path)[:1]:
                self.inner.rm_file(file)


def check_every_cut(url, tmp_path, how, *, below="training"):
    """Kills the second copy at each of its operations, and continues elsewhere."""
    reached = []
    for at in itertools.count():
        place, case = f"{url}/{how}/{at}", tmp_path / how / str(at)
        old = write_run(case / "out", 4, below=below)
        mirror = started(place, case / "out")
        mirror.copy()
        new = write_run(case / "out", 8, below=below)
        cut = mirror.store.fs = Cut(mirror.store.fs, at=at, how=how)
        try:
            mirror.copy()
            break
        except Killed:
            pass
        # Another machine gets the one or the other, continues and copies to the same place.
        found = brought_back(place, case / "elsewhere")
        assert found in (old, new)
        reached.append(found == new)
        other = started(place, case / "elsewhere", resume=True)
        last = write_run(case / "elsewhere", 12, below=below)
        other.copy()
        assert other.close() is None
        assert stored(other) == last
        assert brought_back(place, case / "third") == last
    assert cut.count == at > 10
    # Before the new list is there, it is the earlier state; from then on the newer.
    assert reached == sorted(reached)
    assert set(reached) == {False, True}
