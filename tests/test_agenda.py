"""The agenda does what fits, goes on where an earlier call ended, and stays small."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import agenda, pieces

ROOT = Path(__file__).parents[1]
CALL = "from benchmarks.agenda import main; import sys; main(sys.argv[1:], 'tests.tiny_pieces')"


def call(*arguments):
    return [sys.executable, "-c", CALL, *map(str, arguments)]


def state(folder):
    saved = json.loads((folder / "agenda.json").read_text(encoding="utf-8"))
    return {name: about["state"] for name, about in saved.items()}


def test_names_are_different_and_pieces_fit_into_a_loan():
    names = [piece.name for piece in pieces.PIECES]
    assert len(set(names)) == len(names)
    assert all(0 < piece.minutes <= 25 for piece in pieces.PIECES)


def test_the_plan(tmp_path, capsys):
    agenda.main(["--dry-run", "--folder", str(tmp_path / "none"), "--only", "rows", "grokking"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["open", "open"]
    assert "grokking: modulus 113" in lines[0]
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit):
        agenda.main(["--only", "nothing"])
    assert "there is no piece nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_what_fits_is_done_and_the_next_call_goes_on(tmp_path):
    folder = tmp_path / "agenda"
    done = subprocess.run(
        call("--folder", folder, "--minutes", 0.5, "--only", "first", "fails", "long", "reader"),
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert state(folder) == {"first": "done", "fails": "failed"}
    assert "long: needs 60 of" in done.stdout
    assert "reader: needs --images, left out" in done.stdout
    log = (folder / "logs" / "fails.txt").read_text(encoding="utf-8")
    assert log.strip().splitlines()[-1] == "error: this piece cannot be done"
    (folder / "first.txt").unlink()
    # Killed within a piece, together with it.
    process = subprocess.Popen(
        call("--folder", folder, "--minutes", 1, "--only", "first", "last"), cwd=ROOT
    )
    while state(folder).get("last") != "begun":
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert not (folder / "last.txt").exists()
    (folder / "go.txt").touch()
    subprocess.run(
        call("--folder", folder, "--minutes", 1, "--only", "first", "last"), cwd=ROOT, check=True
    )
    assert state(folder)["last"] == "done"
    # What was done is not done again.
    assert not (folder / "first.txt").exists()


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on(tmp_path):
    folder = tmp_path / "agenda"
    arguments = call("--folder", folder, "--only", "train", "--minutes")
    steps = []
    for _ in range(2):
        # The piece takes what there is: a run is cut, and has saved its state.
        subprocess.run([*arguments, "0.35"], cwd=ROOT, check=True)
        if state(folder)["train"] == "done":
            break
        assert state(folder)["train"] == "cut"
        (step,) = (int(p.name) for p in (folder / "runs/digits/checkpoints").iterdir())
        steps.append(step)
        # The estimate was too low, as the next call knows; here it begins all the same.
        agenda.Agenda(folder, (), "", {}).note("train", took=0)
    assert steps == sorted(set(steps))
    assert any((folder / "cache").rglob("*"))


def test_what_is_too_large_to_be_carried_goes(tmp_path):
    sizes = {"cache/a/big": 40, "cache/a/small": 10, "runs/x/checkpoints/5/d/1": 3,
             "runs/y/checkpoints/5/d/1": 20, "runs/x/metrics.jsonl": 5}  # fmt: skip
    for name, size in sizes.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * size * 2**10)
    # In KiB: files of 15, and 30 in all.
    removed = agenda.slim(tmp_path, limit_mib=30 / 2**10, file_mib=15 / 2**10)
    assert removed == ["runs/y/checkpoints", "cache/a/big"]
    assert agenda.slim(tmp_path, limit_mib=7 / 2**10, file_mib=15 / 2**10) == [
        "cache/a/small",
        "runs/x/checkpoints",
    ]
    assert (tmp_path / "runs/x/metrics.jsonl").exists()
