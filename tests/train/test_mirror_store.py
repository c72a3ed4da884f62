"""Mirrors in Google's store, or rather in an emulator of it, and processes that are really killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.emulator import gs_bucket
from tests.train.mirrored import brought_back, check_every_cut, started, stored, tree, write_run
from train.run.errors import RunError
from train.run.mirror import Mirror
from train.run.store import StoreError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket():
    with gs_bucket() as url:
        yield url


def test_a_run_is_found_elsewhere_as_it_was(bucket, tmp_path):
    url, out = f"{bucket}/runs/first", tmp_path / "out"
    mirror = Mirror(url, out)
    assert not mirror.bring_back()
    mirror.claim(resume=False)
    for step in (4, 8):
        state = write_run(out, step)
        mirror.copy()
    assert mirror.close() is None
    assert stored(mirror) == state
    assert brought_back(url, tmp_path / "elsewhere") == state
    with pytest.raises(RunError, match="holds a run already"):
        started(url, tmp_path / "other")
    with pytest.raises(
        StoreError, match=r"gs://missing/run/mirror\.json cannot be written .*bucket"
    ):
        started("gs://missing/run", out)


@pytest.mark.parametrize("how", ["before", "after"])
def test_killed_at_every_stage_of_a_copy(how, bucket, tmp_path):
    check_every_cut(f"{bucket}/cut", tmp_path, how, below=None)


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_killed_at_every_stage_with_a_run_in_a_folder_below(how, tmp_path):
    check_every_cut(f"file://{tmp_path}/store", tmp_path, how, below="training")


WRITER = """
import sys
import time
from pathlib import Path
from tests.train.mirrored import write_run
from train.run.mirror import Mirror

url, out = sys.argv[1], Path(sys.argv[2])
mirror = Mirror(url, out, background=sys.argv[3] == "thread")
mirror.claim(resume=False)
for step in range(1, int(sys.argv[4])):
    write_run(out, step)
    mirror.copy()
    print(step, flush=True)
    time.sleep(0.02 * (sys.argv[3] == "thread"))
if sys.argv[3] != "abandoned":
    assert mirror.close() is None
"""


def writer(url, out, how, steps):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(out), how, str(steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("place", ["file", "gs"])
@pytest.mark.parametrize("how", ["thread", "waiting"])
def test_a_killed_process_leaves_a_whole_state(place, how, bucket, tmp_path):
    expected = {n: write_run(tmp_path / "expected" / str(n), n) for n in range(1, 100)}
    found = set()
    # Once more and later, where a slow machine has copied one state only.
    for case in range(20):
        if case >= 6 and len(found) > 1:
            break
        url = f"file://{tmp_path}/store/{case}" if place == "file" else f"{bucket}/{how}/{case}"
        process = writer(url, tmp_path / "out" / str(case), how, 10**6)
        for _ in range(case + 1):
            assert process.stdout.readline()
        # Not right after a step, but at some moment of the next copies.
        time.sleep((0.15 if how == "thread" else 0.003) * case)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        elsewhere = tmp_path / "elsewhere" / str(case)
        if Mirror(url, elsewhere).bring_back():
            step = int(next((elsewhere / "checkpoints").iterdir()).name)
            assert tree(elsewhere) == expected[step]
            found.add(step)
    assert len(found) > 1


@pytest.mark.parametrize("how", ["thread", "abandoned"])
def test_the_process_ends(how, bucket, tmp_path):
    process = writer(f"{bucket}/ends/{how}", tmp_path / "out", how, 4)
    assert process.communicate(timeout=60)[0].split() == ["1", "2", "3"]
    assert process.returncode == 0


def test_a_forked_child_ends_and_the_mirror_goes_on(bucket, tmp_path):
    url, out = f"{bucket}/fork", tmp_path / "out"
    script = WRITER.replace(
        "    mirror.copy()",
        "    import os\n    child = os.fork()\n    if not child:\n        sys.exit()\n"
        "    mirror.copy()\n    assert os.waitpid(child, 0)[1] == 0",
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            script,
            url,
            str(out),
            "thread",
            "4",
        ],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert brought_back(url, tmp_path / "elsewhere") == tree(out)
