import dataclasses

import jax
import numpy as np
import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train.connectivity import PRESETS, claims, copies, paths, run
from train.evaluation.evaluator import Evaluator
from train.reporting.records import select
from train.reporting.summary import read_summary
from train.run.files import read_jsonl
from train.run.lanes import lanes_of
from train.supervised import fit, load_data


@pytest.mark.slow
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


@pytest.mark.slow
def test_branching_at_the_end_is_the_same_network(tmp_path):
    settings = dataclasses.replace(
        PRESETS["smoke"],
        steps=6,
        eval_every=6,
        branch_steps=(0,),
        eval_train=False,
        out=tmp_path / "run",
    )
    lane = lanes_of(settings, learning_rate=(0.03,))[0]
    late = dataclasses.replace(lane, copy=1, branch_step=6, tags={"copy": 1})
    early = dataclasses.replace(lane, copy=1, branch_step=5, tags={"copy": 2})
    states = fit(settings, load_data(settings), [lane, late, early], quiet=True).states
    kernels = np.asarray(jax.tree.leaves(states.params)[-1])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


@pytest.mark.slow
def test_batch_statistics_are_interpolated_and_recomputed(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        PRESETS["smoke"],
        model="conv",
        augment=True,
        steps=4,
        eval_every=4,
        eval_train=False,
        learning_rates=(0.03,),
        branch_steps=(0,),
        points=5,
        path_samples=60,
        statistics_batches=2,
        out=tmp_path / "run",
    )
    run(settings, quiet=True)
    records = read_jsonl(settings.out / "path.jsonl")
    assert [(r["statistics"], r["point"]) for r in records] == [
        (kind, point)
        for kind in ("interpolated", "recomputed")
        for point in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert all(r["n"] == 60 for r in records)
    for first, second in zip(records[:5], records[5:], strict=True):
        assert first["loss"] != second["loss"]

    # Ended after the first path, the command goes on with the second.
    file = settings.out / "path.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    calls, evaluate = [], Evaluator.__call__

    def counted(self, states, **options):
        calls.append(states)
        return evaluate(self, states, **options)

    monkeypatch.setattr(Evaluator, "__call__", counted)
    run(dataclasses.replace(settings, resume=True), quiet=True)
    # A convolutional network is measured point by point.
    assert len(calls) == 5
    assert file.read_bytes() == whole


def path(accuracies, *, seed=0, rate=0.03, mir=(0.4, 0.6, 0.4), hdr=(0.3, 0.1, 0.2, 0.3, 0.3)):
    """Records at ω 0, 0.1, 0.5, 0.9, 1."""
    tags = {"learning_rate": rate, "branch_step": 0, "statistics": "recomputed", "seed": seed}
    ends, middle, _ = mir
    return [
        {"point": point, **tags, "accuracy": a, "loss": 1 - a, "hdr": h, "hdr_batch": h}
        | dict.fromkeys(("mir", "mir_batch"), middle if point == 0.5 else ends)
        for point, a, h in zip((0, 0.1, 0.5, 0.9, 1), accuracies, hdr, strict=True)
    ]


def readings(records, **changes):
    settings = dataclasses.replace(PRESETS["small"], **changes)
    return [claim.reading.split(":")[0] for claim in claims(settings, 10, records)]


THROUGH_CHANCE, LOWER, FLAT = (0.9, 0.6, 0.1, 0.6, 0.9), (0.9, 0.8, 0.5, 0.8, 0.9), (0.9,) * 5


def test_the_published_course_agrees_and_another_does_not():
    as_published = {0.03: THROUGH_CHANCE, 0.003: LOWER, 0.0003: FLAT}
    records = [r for k, v in as_published.items() for s in (0, 1) for r in path(v, rate=k, seed=s)]
    assert readings(records) == ["agrees"] * 5
    each = select(paths(records), learning_rate=0.03)
    assert [r["barrier"] for r in each] == [pytest.approx(0.8)] * 2
    flat = [r for k in as_published for s in (0, 1) for r in path(FLAT, rate=k, seed=s)]
    assert readings(flat) == ["disagrees", "disagrees", "agrees", "not decided", "not decided"]
    # On CIFAR-100 the paper reports flat paths.
    assert readings(flat, dataset="cifar100") == ["agrees"] * 3
    assert all(r.startswith("not published") for r in readings(flat, dataset="digits"))


def test_networks_that_learned_nothing_decide_nothing():
    records = path((0.11, 0.1, 0.1, 0.1, 0.11))
    assert readings(records, learning_rates=(0.03,)) == ["not decided"] * 3


def test_a_hump_in_one_seed_of_two_is_not_decided():
    records = path(THROUGH_CHANCE) + path(THROUGH_CHANCE, seed=1, mir=(0.4, 0.3, 0.4))
    assert readings(records, learning_rates=(0.03,))[1] == "not decided"


def test_copies_that_part_late_are_held_against_nothing():
    records = [r | {"branch_step": 200} for r in path(FLAT)]
    assert claims(PRESETS["small"], 10, records) == []
