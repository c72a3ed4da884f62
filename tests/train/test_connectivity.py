import dataclasses

import jax
import numpy as np
import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train.connectivity import PRESETS, copies, run
from train.experiment import load_data
from train.lanes import lanes_of
from train.path_summary import claims, paths
from train.records import select
from train.summary import read_summary
from train.supervised import fit
from train.trackers import read_jsonl


def test_paths_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        PRESETS["smoke"], learning_rates=(0.03,), eval_every=10, out=tmp_path / "run"
    )
    summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    records = read_jsonl(settings.out / "path.jsonl")
    trained = read_jsonl(settings.out / "training" / "metrics.jsonl")
    assert len(records) == 2 * 5
    # What is measured at the ends is what training logged of the two networks.
    for number, step in enumerate(settings.branch_steps, 1):
        path = select(records, branch_step=step)
        assert [r["point"] for r in path] == [0, 0.25, 0.5, 0.75, 1]
        for end, copy in ((path[0], 0), (path[-1], number)):
            (logged,) = select(trained, step=20, copy=copy)
            for name in ("accuracy", "loss", "mir", "hdr"):
                assert end[name] == pytest.approx(logged[f"test_{name}"], rel=1e-5, abs=1e-6)
        assert path[0]["loss"] != path[-1]["loss"]
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch)


def test_copies_are_one_until_they_branch(tmp_path):
    settings = dataclasses.replace(
        PRESETS["smoke"], learning_rates=(0.03,), branch_steps=(0, 3), eval_train=False
    )
    settings = dataclasses.replace(settings, out=tmp_path / "run")
    lanes = copies(settings)
    assert [(lane.copy, lane.branch_step) for lane in lanes] == [(0, 0), (1, 0), (2, 3)]
    states = fit(settings, load_data(settings), lanes, quiet=True).states
    weights = np.concatenate(
        [np.asarray(x).reshape(3, -1) for x in jax.tree.leaves(states.params)], axis=1
    )
    apart = np.linalg.norm(weights[1:] - weights[0], axis=1)
    # Three common steps of twenty leave the copies closer.
    assert 0 < apart[1] < apart[0]


def test_branching_at_the_end_is_the_same_network(tmp_path):
    settings = dataclasses.replace(
        PRESETS["smoke"],
        steps=6,
        eval_every=6,
        branch_steps=(0,),
        eval_train=False,
        out=tmp_path / "run",
    )
    lane = lanes_of(settings)[0]
    late = dataclasses.replace(lane, copy=1, branch_step=6, tags={"copy": 1})
    early = dataclasses.replace(lane, copy=1, branch_step=5, tags={"copy": 2})
    states = fit(settings, load_data(settings), [lane, late, early], quiet=True).states
    kernels = np.asarray(jax.tree.leaves(states.params)[-1])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def record(point, accuracy, mir, seed=0, rate=0.03):
    tags = {"learning_rate": rate, "branch_step": 0, "statistics": "recomputed", "seed": seed}
    values = {"accuracy": accuracy, "loss": 1 - accuracy, "mir": mir, "hdr": 0.2}
    return {"point": point, **tags, **values}


def test_readings():
    settings = PRESETS["small"]
    records = []
    for rate, middle, mir in ((0.03, 0.1, 0.6), (0.003, 0.5, 0.3), (0.0003, 0.89, 0.3)):
        for seed in (0, 1):
            for point, accuracy, value in ((0, 0.9, 0.4), (0.5, middle, mir), (1, 0.9, 0.4)):
                records.append(record(point, accuracy, value, seed, rate))
    found = claims(settings, 10, records)
    assert [claim.reading.split(":")[0] for claim in found] == ["agrees"] * 4
    each = select(paths(records), learning_rate=0.03)
    assert [path["barrier"] for path in each] == [pytest.approx(0.8)] * 2
