"""Runs of grokking that are summed up together."""

import dataclasses
import json
from pathlib import Path

import pytest

from train.grokking import PRESETS, lanes_of_kinds
from train.grokking_summary import sum_up
from train.run.errors import RunError
from train.run.files import read_jsonl, write_jsonl

STORED = Path(__file__).parents[2] / "results" / "grokking-113"


def folder(out, *, until=40, missing=0, **changes):
    """A run as its folder shows it, so far as it is looked at before it is summed up."""
    settings = dataclasses.replace(PRESETS["smoke"], out=out, **changes)
    out.mkdir(exist_ok=True)
    lanes = [lane.as_json() for lane in lanes_of_kinds(settings)]
    about = {"settings": settings.as_json(), "kind": "Grokking", "lanes": lanes}
    (out / "settings.json").write_text(json.dumps(about), encoding="utf-8")
    records = [
        {"step": step, "seed": lane["seed"]} for step in (0, until) for lane in lanes[missing:]
    ]
    write_jsonl(out / "metrics.jsonl", records)
    write_jsonl(out / "progress.jsonl", [])
    return out


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"first_seed": 2, "width": 32}, "width is 16 and 32"),
        ({"first_seed": 2, "fractions": (0.6,)}, r"fractions is \[0.5\] and \[0.6\]"),
        ({"first_seed": 1, "controls": False}, "the same network, .*seed1"),
        ({"first_seed": 2, "until": 20}, "at step 20 of 40"),
        ({"first_seed": 2, "missing": 1}, "lists 6 networks .* has 5 of them at step 40"),
        ({"first_seed": 2}, "lack what is summed up here .KeyError"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, second, message):
    runs = [folder(tmp_path / "a", seeds=2), folder(tmp_path / "b", **second)]
    with pytest.raises(RunError, match=message):
        sum_up(runs, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_folders_are_asked_for_and_never_overwritten(tmp_path):
    with pytest.raises(RunError, match="at least one folder"):
        sum_up([], tmp_path / "sum")
    run = folder(tmp_path / "run")
    with pytest.raises(RunError, match="exists"):
        sum_up([run], run)


def test_settings_of_a_sum_tell_what_is_in_it(tmp_path):
    # The first of the stored runs has no controls.
    sum_up([STORED / "fraction-0.3", STORED / "controls"], tmp_path / "sum")
    found = json.loads((tmp_path / "sum" / "settings.json").read_text(encoding="utf-8"))["settings"]
    assert (found["seeds"], found["first_seed"]) == (7, 0)
    assert (found["controls"], found["interventions"]) == (True, False)
    assert found["kinds"] == ["random-labels", "no-decay"]


def halves(run):
    """A finished run of two seeds as two runs of one."""
    about = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    made = []
    for seed in (0, 1):
        out = run.with_name(f"half-{seed}")
        out.mkdir()
        own = {**about["settings"], "seeds": 1, "first_seed": seed}
        lanes = [lane for lane in about["lanes"] if lane["seed"] == seed]
        text = json.dumps({**about, "settings": own, "lanes": lanes})
        (out / "settings.json").write_text(text, encoding="utf-8")
        for name in ("metrics.jsonl", "progress.jsonl"):
            write_jsonl(out / name, [r for r in read_jsonl(run / name) if r["seed"] == seed])
        made.append(out)
    return made
