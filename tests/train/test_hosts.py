"""Several processes train what one trains."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tests.train.processes import assert_same, records, run, start

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
SHORT = ("smoke", "--no-eval-train")
COMMANDS = {
    "supervised": (2, "metrics.jsonl", ("supervised", *SHORT, "--seeds", 5, "--mi-weight", 0.1)),
    "one network": (4, "metrics.jsonl", ("supervised", *SHORT)),
    "streamed": (
        2,
        "metrics.jsonl",
        ("supervised", *SHORT, "--memory-limit-mib", 0, "--batch-size", 16),
    ),
    "semi-supervised": (2, "metrics.jsonl", ("semisupervised", *SHORT, "--seeds", 2)),
    "grokking": (
        2,
        "progress.jsonl",
        ("grokking", "smoke", "--seeds", 3, "--no-controls", "--no-interventions"),
    ),
    "connectivity": (2, "path.jsonl", ("connectivity", *SHORT)),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_several_processes_train_as_one(kind, images, tmp_path):
    processes, file, arguments = COMMANDS[kind]
    if kind == "streamed":
        arguments = (*arguments, "--dataset", f"folder:{images}")
    run(*arguments, "--out", tmp_path / "several", processes=processes)
    run(*arguments, "--out", tmp_path / "one", processes=1, devices=1)
    # AdamW divides by the size of the gradient, which magnifies the rounding of its first steps.
    tolerance = 1e-5 if kind == "grokking" else 1e-6
    for place in (file, "metrics.jsonl", "training/metrics.jsonl"):
        if (tmp_path / "one" / place).exists():
            mine, theirs = tmp_path / "one" / place, tmp_path / "several" / place
            assert_same(mine, theirs, tolerance=tolerance)
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

    arguments = ("supervised", *SHORT, "--seeds", 2, "--eval-every", 20)
    started = start(*arguments, "--out", tmp_path / "run", environment=slurm, told=False)
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    # The first alone prints, and trains with the devices of both.
    assert "4 devices in 2 processes: 2 networks over 2, each batch over 2" in printed[0]
    assert "devices" not in printed[1]
    assert [r["step"] for r in records(tmp_path / "run" / "metrics.jsonl")] == [0, 0, 20, 20]
