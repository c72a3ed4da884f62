import dataclasses
import json
import os
import sys
import threading
import time

import chex
import pytest
from fsspec.registry import _registry

from tests.train.mirrored import (
    brought_back,
    check_every_cut,
    started,
    stored,
    tree,
    write_run,
)
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.files import read_jsonl
from train.run.mirror import Mirror
from train.run.store import StoreError
from train.supervised import fit


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/store/run"
    return f"memory://{tmp_path}/run"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_a_run_is_found_elsewhere_as_it_was(url, out, tmp_path):
    mirror = started(url, out)
    for step in (4, 8):
        state = write_run(out, step)
        mirror.copy()
        # A human finds the same files, and nothing of the older checkpoint.
        assert stored(mirror) == state
    assert mirror.close() is None
    assert tree(out) == state
    assert not (out / ".mirror").exists()
    assert brought_back(url, tmp_path / "elsewhere") == state
    listed = json.loads(mirror.store.read("mirror.json"))["steps"]
    assert listed == {"checkpoints": [8], "training/checkpoints": [8]}


def test_an_empty_mirror_gives_nothing_and_a_folder_with_something_is_left_alone(url, out):
    assert not Mirror(url, out).bring_back()
    assert not out.exists()
    write_run(out, 4)
    mirror = started(url, out)
    assert not Mirror(url, out).bring_back()
    mirror.copy()
    (out / "metrics.jsonl").write_text("newer", encoding="utf-8")
    assert not Mirror(url, out).bring_back()
    assert (out / "metrics.jsonl").read_text(encoding="utf-8") == "newer"


def test_an_empty_folder_or_a_link_to_one_is_filled(url, out, tmp_path):
    state = write_run(out, 4)
    started(url, out).copy()
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    assert brought_back(url, tmp_path / "link") == state
    assert (tmp_path / "link").is_symlink()


def test_only_what_is_complete_is_copied(url, out, tmp_path):
    state = write_run(out, 4)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("private", encoding="utf-8")
    (out / "link").symlink_to(tmp_path / "secret")
    (out / "key").symlink_to(tmp_path / "secret" / "key")
    (out / "metrics.jsonl.part").write_text("half", encoding="utf-8")
    for name in ("8", "12.orbax-checkpoint-tmp-0"):
        (out / "checkpoints" / name).mkdir()
        (out / "checkpoints" / name / "half").write_text("half", encoding="utf-8")
    mirror = started(url, out)
    mirror.copy()
    assert mirror.close() is None
    assert stored(mirror) == state


def test_a_checkpoint_reached_through_a_link_is_not_copied(url, out, tmp_path):
    write_run(out, 4, below=None)
    (out / "checkpoints" / "4").rename(tmp_path / "moved")
    (out / "checkpoints" / "4").symlink_to(tmp_path / "moved")
    mirror = started(url, out)
    mirror.copy()
    assert sorted(stored(mirror)) == [
        "events/seed0/events.tfevents",
        "metrics.jsonl",
        "settings.json",
    ]


@pytest.mark.parametrize("harm", ["damaged", "not noted"])
def test_without_a_complete_checkpoint_the_mirror_keeps_its_own(harm, url, out, tmp_path):
    old = write_run(out, 4, below=None)
    mirror = started(url, out)
    mirror.copy()
    new = write_run(out, 8, below=None)
    if harm == "damaged":
        (out / "checkpoints" / "8" / "state" / "d" / "array").write_bytes(b"half")
    else:
        (out / "checkpoints.sha256.json").write_bytes(old["checkpoints.sha256.json"])
    told = mirror.close()
    assert (told is None) == (harm == "not noted")
    assert told is None or "checkpoints/8/state/d/array is not what was written" in told
    found = brought_back(url, tmp_path / "elsewhere")
    assert found == {k: v for k, v in old.items() if "checkpoints" in k} | {
        k: v for k, v in new.items() if "checkpoints" not in k
    }


def test_unchanged_files_are_not_copied_again(url, out, monkeypatch):
    write_run(out, 4)
    first = started(url, out)
    first.copy()
    put, copied = type(first.store).put, []
    monkeypatch.setattr(
        "train.run.store.Store.put",
        lambda self, path, name: copied.append(name) or put(self, path, name),
    )
    first.copy()
    again = started(url, out, resume=True)
    again.copy()
    assert copied == []
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5}\n')
    again.copy()
    assert [name.rpartition(".")[0] for name in copied] == [".incoming/metrics.jsonl"]
    assert stored(again) == tree(out)


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_killed_at_every_stage_of_a_copy(how, url, tmp_path):
    check_every_cut(url, tmp_path, how, below=None)


def test_a_crash_while_bringing_back_leaves_nothing_like_a_run(url, out, tmp_path, monkeypatch):
    state = write_run(out, 4)
    started(url, out).copy()
    left = iter(range(5))

    def get(self, name, path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return kept(self, name, path)

    with monkeypatch.context() as patch:
        kept = Mirror(url, out).store.get.__func__
        patch.setattr("train.run.store.Store.get", get)
        with pytest.raises(KeyboardInterrupt):
            Mirror(url, tmp_path / "elsewhere").bring_back()
    assert not (tmp_path / "elsewhere").exists()
    # What a kill leaves, which cannot tidy up.
    (tmp_path / "elsewhere.mirror.part").mkdir()
    (tmp_path / "elsewhere.mirror.part" / "half").write_text("half", encoding="utf-8")
    assert brought_back(url, tmp_path / "elsewhere") == state


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_damaged_copy_is_named(harm, url, out, tmp_path):
    write_run(out, 4)
    mirror = started(url, out)
    mirror.copy()
    name = "training/checkpoints/4/state/d/array"
    if harm == "missing":
        mirror.store.remove(name)
    else:
        mirror.store.write(b"else", name)
    with pytest.raises(RunError, match=f"{url}/{name} is missing or not what was copied"):
        Mirror(url, tmp_path / "elsewhere").bring_back()
    assert sorted(place.name for place in tmp_path.iterdir() if place.name != "store") == ["out"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"format": "mirjax-mirror 99"}',
        b'{"format": "mirjax-mirror 1", "writer": "a", "files": {"../x": {"size": 1, "sha256": "0"}}}',
        b'{"format": "mirjax-mirror 1", "writer": "a", "files": {"/x": {"size": 1, "sha256": "0"}}}',
    ],
)
def test_a_damaged_list_is_named(content, url, out):
    Mirror(url, out).store.write(content, "mirror.json")
    for use in (Mirror(url, out).bring_back, lambda: Mirror(url, out).claim(resume=True)):
        with pytest.raises(RunError, match=f"{url}/mirror.json cannot be used"):
            use()
    assert not out.exists()


def test_another_run_is_not_overwritten(url, out, tmp_path):
    write_run(out, 4)
    mirror = started(url, out)
    mirror.copy()
    content = stored(mirror)
    with pytest.raises(RunError, match=f"{url} holds a run already.*--resume.*--mirror"):
        started(url, tmp_path / "other")
    write_run(tmp_path / "other", 8)
    (tmp_path / "other" / "settings.json").write_text(
        '{"settings": {"steps": 10}}', encoding="utf-8"
    )
    with pytest.raises(RunError, match=f"{url} holds another run than .*other"):
        started(url, tmp_path / "other", resume=True)
    assert stored(mirror) == content
    mirror.copy()
    assert mirror.close() is None


def test_something_else_is_not_overwritten(url, out):
    Mirror(url, out).store.write(b"mine", "thesis.txt")
    for resume in (False, True):
        with pytest.raises(RunError, match="holds something else than the copy of a run"):
            started(url, out, resume=resume)


def test_a_run_that_was_continued_elsewhere_is_not_set_back(url, out, tmp_path):
    write_run(out, 4)
    started(url, out).copy()
    brought_back(url, tmp_path / "elsewhere")
    other = started(url, tmp_path / "elsewhere", resume=True)
    new = write_run(tmp_path / "elsewhere", 8)
    other.copy()
    with pytest.raises(RunError, match=r"later checkpoint \(step 8\) than .*out"):
        started(url, out, resume=True)
    assert stored(other) == new


def test_a_process_that_was_thought_dead_writes_no_more(url, out, tmp_path):
    write_run(out, 4)
    first = started(url, out)
    first.copy()
    brought_back(url, tmp_path / "elsewhere")
    other = started(url, tmp_path / "elsewhere", resume=True)
    write_run(out, 8)
    first.copy()
    assert "another process continues this run there" in first.close()
    new = write_run(tmp_path / "elsewhere", 12)
    assert other.close() is None
    assert stored(other) == new


class Failing:
    """A file system of which each operation fails some times before it works."""

    def __init__(self, inner, times):
        self.inner, self.times, self.failed = inner, times, 0

    def __getattr__(self, name):
        operation = getattr(self.inner, name)
        if not callable(operation) or name.startswith("_"):
            return operation

        def called(*arguments, **options):
            self.failed += 1
            if self.failed <= self.times:
                raise OSError("the network is down")
            self.failed = 0
            return operation(*arguments, **options)

        return called


def test_failures_that_pass_are_waited_for(url, out, tmp_path):
    waits = []
    mirror = Mirror(url, out, background=False, sleep=waits.append)
    mirror.claim(resume=False)
    state = write_run(out, 4)
    mirror.store.fs = Failing(mirror.store.fs, 4)
    mirror.copy()
    assert mirror.close() is None
    assert brought_back(url, tmp_path / "elsewhere") == state
    for wait, expected in zip(waits, [1, 2, 4, 8] * 100, strict=False):
        assert expected / 2 <= wait <= expected * 3 / 2
    assert len({wait % 1 for wait in waits[:8]}) == 8


def test_a_store_that_stays_away_does_not_stop_training_and_is_reported(url, out, tmp_path):
    mirror = started(url, out)
    old = write_run(out, 4)
    mirror.copy()
    working = mirror.store.fs
    mirror.store.fs = Failing(working, 10**9)
    write_run(out, 8)
    mirror.copy()
    told = mirror.close()
    assert f"The copy in {url} is behind {out}: {url}/mirror.json cannot be read" in told
    assert "the network is down" in told
    assert told.endswith("with --resume to copy the rest.")
    assert brought_back(url, tmp_path / "elsewhere") == old
    mirror.store.fs = working
    new = write_run(out, 12)
    assert mirror.close() is None
    assert brought_back(url, tmp_path / "third") == new


def test_a_store_that_fails_at_the_start_is_reported_at_once(url, out):
    mirror = Mirror(url, out, sleep=lambda _: None)
    mirror.store.fs = Failing(mirror.store.fs, 10**9)
    for use in (mirror.bring_back, lambda: mirror.claim(resume=False)):
        with pytest.raises(StoreError, match=r"mirror\.json cannot be read"):
            use()
    # It was never claimed: there is nothing to say about a copy.
    assert mirror.close() is None


class Slow:
    """A file system that waits at its first file for a checkpoint to be removed."""

    def __init__(self, inner):
        self.inner, self.reached, self.go = inner, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put_file(self, *arguments):
        self.reached.set()
        self.go.wait(10)
        return self.inner.put_file(*arguments)


def test_training_goes_on_while_a_checkpoint_is_copied(url, out, tmp_path):
    mirror = Mirror(url, out)
    mirror.claim(resume=False)
    slow = mirror.store.fs = Slow(mirror.store.fs)
    first = write_run(out, 4)
    mirror.copy()
    assert slow.reached.wait(10)
    for step in (8, 12, 16):  # of these, only the last is copied
        last = write_run(out, step)
        mirror.copy()
    assert tree(out / ".mirror" / "1") == first
    slow.go.set()
    assert mirror.close() is None
    assert tree(out) == last
    assert brought_back(url, tmp_path / "elsewhere") == last
    assert not (out / ".mirror").exists()


def test_the_end_does_not_wait_forever(url, out):
    mirror = Mirror(url, out, limit=0.1)
    mirror.claim(resume=False)
    slow = mirror.store.fs = Slow(mirror.store.fs)
    write_run(out, 4)
    mirror.copy()
    begin = time.monotonic()
    assert "not finished within 0.1 seconds" in mirror.close()
    assert time.monotonic() - begin < 5
    slow.go.set()
    assert mirror._wait(time.monotonic() + 10)


def test_what_cannot_be_held_is_reported(out, url, monkeypatch):
    mirror = started(url, out)
    write_run(out, 4)
    with monkeypatch.context() as patch:
        patch.setattr(
            "shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space", "x"))
        )
        mirror.copy()
        assert "x could not be written: No space" in mirror.close()
    assert mirror.close() is None
    assert stored(mirror) == tree(out)


def test_disks_without_links_get_copies(out, url, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    mirror = started(url, out)
    state = write_run(out, 4)
    mirror.copy()
    assert stored(mirror) == state


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("bucket/run", "is no URL like gs://bucket/path"),
        ("nowhere://bucket/run", "nowhere://bucket/run cannot be used .*nowhere"),
        ("s3://bucket/run", r"Install s3fs to access S3.*pip install s3fs"),
        ("gs://bucket/run", r"gcsfs.*pip install -e \"\.\[mirror\]\""),
    ],
)
def test_urls_that_cannot_be_used(url, told, out, monkeypatch):
    for package, protocol in (("gcsfs", "gs"), ("s3fs", "s3")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(StoreError, match=told):
        Mirror(url, out)


@pytest.mark.slow
def test_a_run_continued_elsewhere_is_bit_identical(tiny, settings, tmp_path, monkeypatch):
    settings = dataclasses.replace(settings, checkpoint_every=4)
    url = f"file://{tmp_path}/store"
    mirror, elsewhere = started(url, settings.out), tmp_path / "elsewhere"
    save = Checkpoints.save

    def save_and_copy(self, step, *arguments):
        save(self, step, *arguments)
        mirror.copy()
        if step == 4:
            assert Mirror(url, elsewhere).bring_back()

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_copy)
        whole = fit(settings, tiny, quiet=True)
    assert mirror.close() is None
    again = fit(dataclasses.replace(settings, out=elsewhere, resume=True), tiny, quiet=True)
    chex.assert_trees_all_equal(whole.states, again.states)
    assert whole.records == again.records
    assert read_jsonl(elsewhere / "metrics.jsonl") == read_jsonl(settings.out / "metrics.jsonl")
