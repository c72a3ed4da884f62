import dataclasses
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import mirjax
from train.evaluation.finished import read_run
from train.run.checkpoint import CheckpointError, Checkpoints
from train.run.errors import RunError
from train.run.stopping import Interrupted, StopRequest
from train.smoothing import Smoothing
from train.supervised import Supervised, fit, load_data, optimizer_of

ROOT = Path(__file__).parents[2]


def command(out, *more):
    options = "--steps 50 --eval-every 10 --checkpoint-every 10 --seeds 2 --mi-weight 0.1"
    return [
        sys.executable,
        "-m",
        "train.supervised",
        "smoke",
        "--out",
        str(out),
        *options.split(),
        *more,
    ]


def run_command(out, *more):
    done = subprocess.run(
        command(out, *more), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def final_state(folder):
    run = read_run(folder, Supervised, load_data, optimizer_of)
    assert run.step == 50
    return run.states


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identical(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (killed / "checkpoints" / "10").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoints" / "50").exists()
    # The line that a kill can cut in half.
    with (killed / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3')
    run_command(killed, "--resume")
    run_command(whole)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(final_state(killed), final_state(whole))


def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(tiny, settings, monkeypatch):
    settings = dataclasses.replace(settings, seeds=2, steps_per_call=1, lanes_per_call=1)
    whole = fit(settings, tiny, quiet=True)
    stopped = dataclasses.replace(settings, out=settings.out.with_name("stopped"))
    calls = itertools.count()
    # Between two events; then at once, before the sums of the terms can grow; then after an event.
    for stops_after, step in ((2, 2), (0, 2), (3, 5)):
        first = next(calls)
        monkeypatch.setattr(
            StopRequest, "asked", lambda _, a=first, b=stops_after: next(calls) - a > b
        )
        with pytest.raises(Interrupted, match=f"interrupted at step {step}, .*--resume"):
            fit(stopped, tiny, quiet=True)
        stopped = dataclasses.replace(stopped, resume=True)
        assert [p.name for p in (stopped.out / "checkpoints").iterdir()] == [str(step)]
    monkeypatch.undo()
    resumed = fit(stopped, tiny, quiet=True)
    # The means of the terms over the steps between two events too.
    assert resumed.records == whole.records
    chex.assert_trees_all_equal(resumed.states, whole.states)


def test_resume_of_a_finished_run_changes_nothing(tiny, settings):
    first = fit(settings, tiny, quiet=True)
    again = fit(dataclasses.replace(settings, resume=True), tiny, quiet=True)
    chex.assert_trees_all_equal(first.states, again.states)
    assert first.records == again.records


def test_nothing_is_overwritten_unasked(tiny, settings, tmp_path):
    fit(settings, tiny, quiet=True)
    with pytest.raises(RunError, match="holds a run already"):
        fit(settings, tiny, quiet=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", encoding="utf-8")
    for resume in (False, True):
        elsewhere = dataclasses.replace(settings, out=foreign, resume=resume)
        with pytest.raises(RunError, match="holds something else than a run"):
            fit(elsewhere, tiny, quiet=True)
    assert [f.name for f in foreign.iterdir()] == ["thesis.txt"]


def test_other_settings_are_refused(tiny, settings):
    fit(settings, tiny, quiet=True)
    other = dataclasses.replace(settings, resume=True, learning_rate=0.1)
    with pytest.raises(RunError, match=r"learning_rate was 0\.03, is 0\.1"):
        fit(other, tiny, quiet=True)


def test_a_damaged_checkpoint_is_named_and_left_alone(tiny, settings):
    fit(settings, tiny, quiet=True)
    files = [f for f in (settings.out / "checkpoints" / "8" / "state").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    largest.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoints/8 cannot be read"):
        fit(dataclasses.replace(settings, resume=True), tiny, quiet=True)
    gc.collect()  # a coroutine that the failed read left behind would be reported here, if busy
    assert largest.read_bytes() == bytes(content)


@pytest.mark.parametrize("noted", [True, False])
def test_a_missing_file_is_named_too(tiny, settings, noted):
    fit(settings, tiny, quiet=True)
    (settings.out / "checkpoints" / "8" / "about" / "metadata").unlink()
    if not noted:
        (settings.out / "checkpoints.sha256.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/8 cannot be read"):
        fit(dataclasses.replace(settings, resume=True), tiny, quiet=True)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    with ocp.CheckpointManager(tmp_path / "other") as manager:
        manager.save(3, args=ocp.args.Composite(about=ocp.args.JsonSave({"made by": "others"})))
    checkpoints = Checkpoints(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is no checkpoint of this version"):
        checkpoints.restore(3, {"a": np.zeros(3)})
    checkpoints.close()


def test_a_run_of_an_older_version_is_refused(tiny, tmp_path, monkeypatch):
    settings = Smoothing(
        epsilons=(0.0,),
        steps=4,
        eval_every=4,
        batch_size=16,
        eval_train=False,
        out=tmp_path / "run",
    )
    with monkeypatch.context() as patch:
        patch.setattr("train.run.checkpoint.FORMAT", "mirjax-train 2")
        fit(settings, tiny, quiet=True)
    # Its settings named an option that is refused now: that is not what the user is told.
    place = settings.out / "settings.json"
    saved = json.loads(place.read_text(encoding="utf-8"))
    saved["settings"]["smoothing"] = 0.0
    place.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no checkpoint of this version"):
        fit(dataclasses.replace(settings, resume=True), tiny, quiet=True)


def test_a_kill_while_saving_leaves_the_earlier_checkpoint(tiny, settings):
    regular = dataclasses.replace(settings, checkpoint_every=4)
    first = fit(regular, tiny, quiet=True)
    folder = settings.out / "checkpoints"
    # What a kill leaves: a folder that was not yet renamed to its final name.
    (folder / "12.orbax-checkpoint-tmp-0").mkdir()
    (folder / "12.orbax-checkpoint-tmp-0" / "half").write_bytes(os.urandom(10))
    again = fit(dataclasses.replace(regular, resume=True), tiny, quiet=True)
    chex.assert_trees_all_equal(first.states, again.states)


def test_class_moments_in_mid_stream(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 6)).astype(np.float32)
    labels = (np.arange(40) % 3).astype(np.int32)
    half = mirjax.ClassMoments.zeros(3, 6).update(rows[:25], labels[:25])
    with ocp.CheckpointManager(tmp_path / "moments") as manager:
        manager.save(1, args=ocp.args.StandardSave(half))
    with ocp.CheckpointManager(tmp_path / "moments") as manager:
        empty = mirjax.ClassMoments.zeros(3, 6)
        restored = manager.restore(1, args=ocp.args.StandardRestore(empty))
    # Orbax gives lists in place of named tuples.
    restored = jax.tree.unflatten(jax.tree.structure(empty), jax.tree.leaves(restored))
    whole, resumed = (m.update(rows[25:], labels[25:]) for m in (half, restored))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_stop_that_comes_after_the_last_call_is_not_lost():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stop = StopRequest()
        stop.__enter__()
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            stop.__exit__()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
