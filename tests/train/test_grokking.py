import dataclasses
import math

import jax
import numpy as np
import pytest

import mirjax
from tests.train.experiments import assert_resumes_bit_identical
from train.grokking import PRESETS, lanes, run
from train.grokking_summary import first_step, leads, onset
from train.records import select
from train.summary import read_summary
from train.trackers import read_jsonl


def kinds(records):
    return {r["kind"] for r in records}


def test_grokking_end_to_end_resumed_and_alone(tmp_path, monkeypatch):
    settings = dataclasses.replace(PRESETS["smoke"], seeds=2, out=tmp_path / "run")
    summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    records = read_jsonl(settings.out / "metrics.jsonl")
    names = {"grokking", "random-labels", "no-decay", "large-fraction", "+MI", "+ED"}
    assert kinds(records) == names
    first = records[0]
    assert first["train_n"] + first["test_n"] == first["all_n"] == 49
    progress = read_jsonl(settings.out / "progress.jsonl")
    assert [r["step"] for r in select(progress, seed=1)] == [0, 1, 6, 20, 40]
    # The terms are on in their window alone.
    terms = {
        r["step"]: r["step_mutual_information"]
        for r in select(records, kind="+MI", seed=0)
        if r["step"]
    }
    assert terms[1] == 0
    assert terms[6] > 0
    assert terms[20] > 0
    assert terms[40] == 0
    assert all(
        r["step_mutual_information"] == 0 for r in select(records, kind="grokking") if r["step"]
    )
    norms = {
        (r["kind"], r["step"]): r["weight_norm"]
        for r in select(records, seed=1)
        if r["step"] in (0, 40)
    }
    assert norms["grokking", 0] == pytest.approx(norms["no-decay", 0])
    assert norms["grokking", 40] < norms["no-decay", 40]
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch)
    # A lane among others is what it is alone.
    alone = dataclasses.replace(
        settings, seeds=1, first_seed=1, controls=False, interventions=False, out=tmp_path / "alone"
    )
    run(alone, quiet=True)
    own = read_jsonl(alone.out / "metrics.jsonl")
    theirs = select(records, kind="grokking", seed=1)
    for mine, other in zip(own, theirs, strict=True):
        for name in ("train_loss", "test_loss", "all_mir", "weight_norm", "layer_hidden_hdr"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def test_lanes_of_a_kind_differ_in_their_seed_alone():
    found = lanes(
        dataclasses.replace(PRESETS["small"], fractions=(0.5, 0.4), weight_decays=(1.0, 0.5))
    )
    main = [lane for lane in found if lane.tags["kind"] == "grokking"]
    assert len(main) == 4 * 5
    assert {(lane.tags["fraction"], lane.knobs.weight_decay) for lane in main} == {
        (f, d) for f in (0.5, 0.4) for d in (1.0, 0.5)
    }
    assert len(found) == (4 + 3 + 2) * 5
    assert len({lane.name for lane in found}) == len(found)


def course(accuracies, norms, seed=0):
    return [
        {
            "step": 100 * i, "seed": seed, "train_accuracy": float(i > 0), "test_accuracy": a, "weight_norm": w,
        }
        for i, (a, w) in enumerate(zip(accuracies, norms, strict=True))
    ]  # fmt: skip


def test_leads_are_counted_from_memorisation():
    records = course([0, 0, 0, 0.1, 0.9, 1.0], [9, 10, 7, 3, 2, 2])
    assert first_step(records, "train_accuracy", 0.99) == 100
    assert onset(records, "test_accuracy") == 400
    # 10 to 2 is the range after memorisation; 7 is a quarter of it down.
    assert onset(records, "weight_norm") == 200
    assert leads(records) == {"weight_norm": [200.0]}
    never = course([0] * 6, [9, 10, 7, 3, 2, 2])
    assert leads(never) == {}
    assert math.isinf(first_step(never, "test_accuracy", 0.9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (1.0,)}, "leaves none"),
        ({"fractions": (0.5, 0.5)}, "fractions must be different"),
        ({"information_steps": (5, 5)}, "information_steps must be FIRST < LAST"),
        ({"weight_decays": (-1.0,)}, "weight_decays must not be negative"),
        ({"modulus": 0}, "modulus must be at least 1"),
        ({"heads": 3}, "heads = 3 must divide width"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["smoke"], **change)


def test_metrics_are_those_of_the_features(tmp_path):
    from train.grokking import ModularNetwork, initial_states
    from train.grokking_measure import Measure
    from train.modular import table

    settings = dataclasses.replace(PRESETS["smoke"], controls=False, interventions=False)
    network, own = ModularNetwork(settings), lanes(settings)
    import optax

    states = initial_states(network, optax.scale_by_adam(), own)
    pairs = table(7, 0.5)
    (values,) = Measure(network, [pairs], own, tmp_path)(states)
    params = jax.tree.map(lambda x: x[0], states.params)
    logits, features, head = network.forward(params, pairs.pairs)
    test = slice(pairs.train_size, None)
    expected = mirjax.interplay(features[test], head[:7], pairs.labels[test])
    assert values["test_mir"] == pytest.approx(float(expected.mir), abs=1e-5)
    assert values["test_hdr"] == pytest.approx(float(expected.hdr), abs=1e-5)
    accuracy = np.mean(np.argmax(logits, 1)[test] == pairs.labels[test])
    assert values["test_accuracy"] == pytest.approx(accuracy)
    squares = sum(float((x**2).sum()) for x in jax.tree.leaves(params))
    assert values["weight_norm"] == pytest.approx(squares**0.5, rel=1e-5)
