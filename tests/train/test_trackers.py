"""Weights & Biases, by a stand-in for its package that notes what it is told."""

import dataclasses
import json
import math
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from train.evaluation.finished import read_settings
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.files import read_jsonl
from train.run.lanes import Knobs, Lane
from train.run.settings import RunSettings
from train.run.trackers import TensorBoard, TrackerError, WandB
from train.supervised import Supervised, fit


class Run:
    def __init__(self, options):
        self.options, self.logged, self.ended = options, [], None

    def log(self, values, *, step):
        assert self.ended is None
        self.logged.append((step, values))

    def finish(self, *, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.runs = []
    module.Error = type("Error", (Exception,), {})

    def init(**options):
        module.runs.append(Run(options))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def logged(settings):
    return dataclasses.replace(settings, wandb="project", seeds=2)


def test_each_lane_is_a_run_with_the_metrics_of_the_file(tiny, logged, wandb):
    fit(logged, tiny, quiet=True)
    saved = json.loads((logged.out / "wandb.json").read_text(encoding="utf-8"))["id"]
    assert [run.options["id"] for run in wandb.runs] == [f"{saved}-seed0", f"{saved}-seed1"]
    records = read_jsonl(logged.out / "metrics.jsonl")
    for seed, run in enumerate(wandb.runs):
        assert run.options["project"] == "project"
        assert run.options["dir"] == str(logged.out)
        assert run.options["group"] == f"run-{saved}"
        assert run.options["resume"] == "allow"
        config = run.options["config"]
        assert (config["seed"], config["learning_rate"], config["data"]) == (seed, 0.03, "tiny")
        own = [dict(record) for record in records if record["seed"] == seed]
        assert [step for step, _ in run.logged] == [record.pop("step") for record in own]
        for (_, values), record in zip(run.logged, own, strict=True):
            del record["seed"]
            assert values == {k: v for k, v in record.items() if v is not None}
        assert run.ended == 0


def test_a_failed_run_is_ended_as_failed_and_resumed_under_its_id(tiny, logged, wandb, monkeypatch):
    logged = dataclasses.replace(logged, checkpoint_every=4)
    save = Checkpoints.save

    def save_and_fail(self, *arguments):
        save(self, *arguments)
        raise RunError("The machine caught fire.")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_fail)
        with pytest.raises(RunError, match="fire"):
            fit(logged, tiny, quiet=True)
    first = list(wandb.runs)
    assert [run.ended for run in first] == [1, 1]
    wandb.runs.clear()
    fit(dataclasses.replace(logged, resume=True), tiny, quiet=True)
    assert [r.options["id"] for r in wandb.runs] == [r.options["id"] for r in first]
    assert [[step for step, _ in run.logged] for run in wandb.runs] == [[8], [8]]
    assert [run.ended for run in wandb.runs] == [0, 0]


def test_numbers_that_are_not_finite_are_left_out(wandb, tmp_path):
    lane = Lane(3, Knobs(0.1, 0.0), {"epsilon": 0.5})
    tracker = WandB("project", tmp_path, {})
    tracker.write(7, lane, {"loss": math.nan, "mir": 0.25, "nc1": math.inf})
    assert wandb.runs[0].logged == [(7, {"mir": 0.25})]
    assert wandb.runs[0].options["config"] == {"seed": 3, "epsilon": 0.5}


def test_another_run_folder_has_other_ids(wandb, tmp_path):
    lane = Lane(0, Knobs(0.1, 0.0))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        WandB("project", tmp_path / name, {}).write(0, lane, {})
    assert wandb.runs[0].options["id"] != wandb.runs[1].options["id"]


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")], ids=["missing", "a folder"])
def test_without_the_package_no_folder_is_claimed(found, tiny, logged, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", found)
    with pytest.raises(TrackerError, match="pip install wandb"):
        fit(logged, tiny, quiet=True)
    assert not logged.out.exists()


def test_a_refused_login_says_what_to_do(tiny, logged, wandb):
    def refuse(**_):
        raise wandb.Error("No API key configured.")

    wandb.init = refuse
    with pytest.raises(TrackerError, match=r"No API key.*wandb login.*--resume"):
        fit(logged, tiny, quiet=True)


def test_nothing_is_imported_unasked(tiny, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    fit(settings, tiny, quiet=True)
    assert not (settings.out / "wandb.json").exists()


def test_a_run_may_be_logged_later_and_read_without_the_package(tiny, settings, wandb, monkeypatch):
    fit(settings, tiny, quiet=True)
    fit(dataclasses.replace(settings, resume=True, wandb="project"), tiny, quiet=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert read_settings(settings.out, Supervised).steps == settings.steps


def events(folder):
    """The events of a lane: records of length, checksum, bytes, checksum."""
    found = []
    for file in sorted(folder.iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += length + 16
    return found


def test_tensorboard_has_the_finite_values_and_drops_what_a_killed_run_left(tmp_path):
    lane = Lane(3, Knobs(0.1, 0.0), {"epsilon": 0.5})
    for keep_to in (-1, 4):
        folder = tmp_path / str(keep_to)
        tracker = TensorBoard(folder, keep_to=keep_to)
        tracker.write(7, lane, {"loss": math.nan, "mir": 0.25})
        # Before it is closed: a killed run keeps what it wrote.
        version, *starts, last = events(folder / lane.name)
        tracker.close()
        assert version.file_version == "brain.Event:2"
        assert [(e.step, e.session_log.status) for e in starts] == [(5, 1)][: int(keep_to > 0)]
        assert last.step == 7
        assert [(v.tag, v.simple_value) for v in last.summary.value] == [("mir", 0.25)]


def test_every_training_command_has_the_setting():
    assert "wandb" in {field.name for field in dataclasses.fields(RunSettings)}
