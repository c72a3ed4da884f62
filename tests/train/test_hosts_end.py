"""Several processes end together, whatever happens to one of them, and resume."""

import signal
import time

import numpy as np
import pytest

from tests.train.processes import assert_same, finish, messages, records, run, start

pytestmark = pytest.mark.slow

LONG = ("supervised", "smoke", "--seeds", 3, "--steps", 4000, "--eval-every", 2000)
LONG += ("--steps-per-call", 10, "--no-eval-train")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that the interrupted ones must come to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(*LONG, "--out", out)
    return out


def interrupt(out, act, *, wait=120):
    """Starts a run and acts on its processes in the middle of it; their status and errors."""
    started = start(*LONG, "--out", out)
    deadline = time.monotonic() + wait
    # Step 0 is measured: the training begins.
    while not (out / "metrics.jsonl").exists() or not records(out / "metrics.jsonl"):
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    act(started)
    began = time.monotonic()
    statuses, errors = finish(started, timeout=120)
    # Nobody waits for ever, and none of the tests' machines is so slow that this would be chance.
    assert time.monotonic() - began < 110
    return statuses, errors


def resumes(out, whole):
    """Resumes a run, which comes to what the whole one has come to, bit for bit."""
    run(*LONG, "--out", out, "--resume")
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["all", "one"])
def test_a_signal_saves_the_run(kind, whole, tmp_path):
    def act(processes):
        # The end of a job for all of them, or Ctrl+C on one.
        for process in processes if kind == "all" else processes[1:]:
            process.send_signal(signal.SIGTERM if kind == "all" else signal.SIGINT)

    statuses, errors = interrupt(tmp_path / "run", act)
    assert set(statuses) <= {128 + signal.SIGTERM, 128 + signal.SIGINT}
    (message,) = messages(errors)
    assert "of which a checkpoint is in" in message
    assert "--resume" in message
    # Between two events.
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert 0 < step < 4000
    if kind == "all":
        # Four devices before, two now, in one process.
        run(*LONG, "--out", tmp_path / "run", "--resume", processes=1)
        mine = tmp_path / "run" / "metrics.jsonl"
        assert_same(whole / "metrics.jsonl", mine, tolerance=1e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, whole, tmp_path):
    statuses, errors = interrupt(tmp_path / "run", lambda started: started[victim].kill())
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] != 0
    # Either the runtime says it or, if it has met a broken connection before, the command.
    text = errors[1 - victim]
    assert "another task died" in text or "has ended without a word" in text
    if victim == 1:
        resumes(tmp_path / "run", whole)


def test_a_full_disk_on_the_first(tmp_path):
    # No file of this process may have more than this.
    full = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (60_000, 60_000))"

    # Programs that the limit cuts off must not reach the cache of others.
    def alone(number, _):
        return {} if number else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    started = start(*LONG, "--out", tmp_path / "run", first=full, environment=alone)
    statuses, errors = finish(started)
    assert statuses == [2, 2]
    (message,) = messages(errors)
    assert "cannot be written" in message or "could not be written" in message


@pytest.mark.parametrize("missing", [False, True])
def test_an_error_of_another_process_is_told_once(missing, tmp_path):
    for number in range(2):
        rng, place = np.random.default_rng(number), tmp_path / str(number)
        place.mkdir()
        if missing and number:
            continue
        images, labels = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
        parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        np.savez(place / "data.npz", **parts)

    def home(number, _):
        return {"HOME": str(tmp_path / str(number))}

    arguments = ("supervised", "smoke", "--batch-size", 12, "--dataset", "npz:~/data.npz")
    started = start(*arguments, "--out", tmp_path / "run", environment=home)
    statuses, errors = finish(started)
    assert statuses == [2, 2]
    (message,) = messages(errors)
    if missing:
        assert "there is no file" in message
        assert "(process 1)" in message
    else:
        assert "The data of process 1 are not those of process 0" in message
    assert not (tmp_path / "run").exists()
