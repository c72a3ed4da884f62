"""Several processes train what one trains, and end together."""

import itertools
import resource
import signal
import time

import numpy as np
import pytest
from PIL import Image

from tests.train.processes import assert_same, finish, messages, records, run, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images, which is streamed from disk if the limit of memory is 0."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, each in (("train", 40), ("test", 11)):
        for label, number in itertools.product(range(3), range(each)):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 120, (8, 8, 3)) + 40 * label
            Image.fromarray(image.astype(np.uint8)).save(place / f"{number}.png")
    return folder


# Held on the devices with more networks than rows of the mesh, one network whose batches all
# devices of four processes share, streamed, and the three other kinds of loops.
COMMANDS = {
    "supervised": (2, "metrics.jsonl", ("supervised", "smoke", "--seeds", 5, "--mi-weight", 0.1)),
    "one network": (4, "metrics.jsonl", ("supervised", "smoke", "--eval-layers")),
    "streamed": (
        2,
        "metrics.jsonl",
        ("supervised", "smoke", "--memory-limit-mib", 0, "--batch-size", 16, "--seeds", 1),
    ),
    "semi-supervised": (2, "metrics.jsonl", ("semisupervised", "smoke", "--seeds", 2)),
    "grokking": (2, "progress.jsonl", ("grokking", "smoke", "--seeds", 3)),
    "connectivity": (2, "path.jsonl", ("connectivity", "smoke")),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_several_processes_train_as_one(kind, images, tmp_path):
    processes, file, arguments = COMMANDS[kind]
    if kind == "streamed":
        arguments = (*arguments, "--dataset", f"folder:{images}")
    run(*arguments, "--out", tmp_path / "several", processes=processes)
    run(*arguments, "--out", tmp_path / "one", processes=1, devices=1)
    assert_same(tmp_path / "one" / file, tmp_path / "several" / file)
    for place in ("metrics.jsonl", "training/metrics.jsonl"):
        if (tmp_path / "one" / place).exists():
            assert_same(tmp_path / "one" / place, tmp_path / "several" / place)
    # Whatever one process writes, the first of several does.
    files = [
        {str(file.relative_to(tmp_path / kind)) for file in (tmp_path / kind).glob("*")}
        for kind in ("one", "several")
    ]
    assert files[0] == files[1]


def test_what_slurm_says_is_enough(tmp_path):
    def slurm(number, port):
        # JAX makes the port from the number of the job.
        return {
            "SLURM_JOB_ID": str(port),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
        }

    arguments = ("supervised", "smoke", "--seeds", 2, "--eval-every", 20)
    run(*arguments, "--out", tmp_path / "several", environment=slurm, told=False)
    run(*arguments, "--out", tmp_path / "one", processes=1)
    assert_same(tmp_path / "one" / "metrics.jsonl", tmp_path / "several" / "metrics.jsonl")


LONG = ("supervised", "smoke", "--seeds", 3, "--steps", 4000, "--eval-every", 2000)
LONG += ("--steps-per-call", 10)


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


@pytest.mark.parametrize("kind", ["all", "one", "interruption"])
def test_a_signal_saves_the_run(kind, whole, tmp_path):
    def act(processes):
        number = signal.SIGINT if kind == "interruption" else signal.SIGTERM
        for process in processes if kind == "all" else processes[1:]:
            process.send_signal(number)

    statuses, errors = interrupt(tmp_path / "run", act)
    assert set(statuses) <= {128 + signal.SIGTERM, 128 + signal.SIGINT}
    (message,) = messages(errors)
    assert "of which a checkpoint is in" in message
    assert "--resume" in message
    # Between two events.
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert 0 < step < 4000
    run(*LONG, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, whole, tmp_path):
    statuses, errors = interrupt(tmp_path / "run", lambda started: started[victim].kill())
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] != 0
    # Either the runtime says it or, if it has met a broken connection before, the command.
    text = errors[1 - victim]
    assert "another task died" in text or "has ended without a word" in text
    run(*LONG, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()


def test_a_full_disk_on_the_first(whole, tmp_path):
    def full():
        # No file of this process may have more than this.
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    started = start(*LONG, "--out", tmp_path / "run", first=full)
    statuses, errors = finish(started)
    assert statuses == [2, 2]
    (message,) = messages(errors)
    assert "cannot be written" in message or "could not be written" in message
    run(*LONG, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()


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


def test_it_resumes_on_another_number_of_devices(whole, tmp_path):
    def stop(processes):
        processes[0].send_signal(signal.SIGTERM)

    interrupt(tmp_path / "run", stop)
    # Four devices before, two now, in one process.
    run(*LONG, "--out", tmp_path / "run", "--resume", processes=1, devices=2)
    assert_same(whole / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl", tolerance=1e-4)
