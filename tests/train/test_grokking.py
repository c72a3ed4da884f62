import dataclasses
import math

import jax
import numpy as np
import pytest

import mirjax
from tests.train.experiments import assert_resumes_bit_identical
from tests.train.test_grokking_summary import halves
from train.grokking import PRESETS, lanes_of_kinds, run
from train.grokking_summary import sum_up
from train.modular.course import first_step, halfway, leads
from train.modular.summary import claims, interventions_table, kind_panels, seed_panels
from train.reporting.records import select
from train.reporting.summary import read_summary
from train.run.files import read_jsonl


def kinds(records):
    return {r["kind"] for r in records}


@pytest.mark.slow
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
    assert [r["step"] for r in select(progress, seed=1, kind="grokking")] == [0, 1, 6, 20, 40]
    # The terms are on in their window alone.
    terms = {
        r["step"]: r["step_mutual_information"]
        for r in select(records, kind="+MI", seed=0)
        if r["step"]
    }
    assert terms[1] == 0
    assert terms[6] > 0
    assert terms[20] > 0
    assert 0 < terms[40] < terms[20]
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
    # The seeds in two folders are summed up to what they are in one, and so is the sum.
    together = sum_up(halves(settings.out), tmp_path / "sum")
    assert dataclasses.replace(together, folder=settings.out) == summary
    again = sum_up([together.folder], tmp_path / "again")
    assert dataclasses.replace(again, folder=settings.out) == summary
    # A lane among others is what it is alone.
    alone = dataclasses.replace(
        settings, seeds=1, first_seed=1, controls=False, interventions=False, out=tmp_path / "alone"
    )
    run(alone, quiet=True)
    own = read_jsonl(alone.out / "metrics.jsonl")
    theirs = select(records, kind="grokking", seed=1)
    for mine, other in zip(own, theirs, strict=True):
        for name in (
            "train_loss",
            "test_loss",
            "all_mir",
            "weight_norm",
            "train_hidden_hdr",
            "test_attention_nc1",
        ):
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def test_lanes_of_a_kind_differ_in_their_seed_alone():
    found = lanes_of_kinds(
        dataclasses.replace(PRESETS["small"], fractions=(0.5, 0.4), weight_decays=(1.0, 0.5))
    )
    main = [lane for lane in found if lane.tags["kind"] == "grokking"]
    assert len(main) == 4 * 5
    assert {(lane.tags["fraction"], lane.knobs.weight_decay) for lane in main} == {
        (f, d) for f in (0.5, 0.4) for d in (1.0, 0.5)
    }
    assert len(found) == (4 + 3 + 2) * 5
    assert len({lane.name for lane in found}) == len(found)


def test_kinds_and_their_seeds_are_chosen():
    chosen = {"kinds": ("random-labels", "no-decay"), "kind_seeds": 2}
    found = lanes_of_kinds(dataclasses.replace(PRESETS["small"], **chosen))
    kinds = [(lane.tags["kind"], lane.seed) for lane in found]
    assert sorted(kinds) == sorted(
        [("grokking", s) for s in range(5)]
        + [(kind, s) for kind in ("random-labels", "no-decay") for s in range(2)]
    )
    assert all(lane.tags["fraction"] == 0.7 for lane in found)


def test_means_over_batches_are_those_of_full_batches():
    from train.modular.measure import means_over_batches

    rng = np.random.default_rng(0)
    features, head = (rng.normal(size=s).astype(np.float32) for s in ((150, 8), (5, 8)))
    labels = rng.integers(0, 5, 150).astype(np.int32)
    found = means_over_batches(features, head, labels)
    parts = [mirjax.interplay(features[i : i + 64], head, labels[i : i + 64]) for i in (0, 64)]
    for name in ("mir", "hdr"):
        assert float(found[name]) == pytest.approx(np.mean([getattr(p, name) for p in parts]))


def course(accuracies, norms, seed=0):
    return [
        {
            "step": 100 * i, "seed": seed, "train_accuracy": float(i > 0), "test_accuracy": a, "weight_norm": w,
        }
        for i, (a, w) in enumerate(zip(accuracies, norms, strict=True))
    ]  # fmt: skip


def test_what_was_not_measured_has_no_panel():
    records = course([0.0, 0.1, 0.9], [3.0, 2.0, 1.0])
    assert [p.title for p in seed_panels(records)] == ["test accuracy"]
    found = [p.title for p in kind_panels({"grokking": records}, {})]
    assert found == ["test accuracy", "weight norm"]


def test_half_way_is_the_move_that_leads_to_the_end():
    accuracy = [0, 0, 0, 0.1, 0.2, 0.9, 1.0, 1.0, 1.0]
    records = course(accuracy, [9, 10, 7, 4, 2, 2, 2, 2, 2])
    assert first_step(records, "train_accuracy", 0.99) == 100
    assert halfway(records, "test_accuracy") == 500
    # From 10 to 2: 6 and below, for good, from step 300 on.
    assert halfway(records, "weight_norm") == 300
    assert leads(records) == {"weight_norm": [200.0]}
    # An early rise that is taken back does not count: what counts is the later fall.
    hump = course(accuracy, [0.5, 0.47, 0.62, 0.62, 0.6, 0.36, 0.36, 0.36, 0.36])
    assert halfway(hump, "weight_norm") == 500
    assert math.isnan(halfway(course(accuracy, [1] * 9), "weight_norm"))
    never = course([0] * 9, [9, 10, 7, 4, 2, 2, 2, 2, 2])
    assert leads(never) == {}
    assert math.isinf(first_step(never, "test_accuracy", 0.9))


def with_information(records, memorised, generalised):
    for r, m, h in zip(records, memorised, generalised, strict=True):
        r |= dict.fromkeys(("train_mir", "test_mir"), m) | dict.fromkeys(
            ("train_hdr", "test_hdr"), h
        )
    return records


def readings(*seeds):
    records = [r for i, own in enumerate(seeds) for r in [{**r, "seed": i} for r in own]]
    return [claim.reading.split(":")[0] for claim in claims(records)]


def test_claims():
    accuracy = [0, 0, 0.5, 0.95]
    course_of = lambda mir, hdr, a=accuracy: with_information(course(a, [1] * 4), mir, hdr)  # noqa: E731
    published = course_of([0.5, 0.5, 0.4, 0.3], [0.1, 0.1, 0.3, 0.5])
    opposite = course_of([0.5, 0.3, 0.4, 0.5], [0.1, 0.5, 0.3, 0.1])
    still = course_of([0.5] * 4, [0.1] * 4)
    assert readings(published, published) == ["agrees"] * 4
    assert readings(opposite, opposite) == ["disagrees"] * 4
    assert readings(published, opposite) == ["not decided"] * 4
    assert readings(still, still) == ["not decided"] * 4
    assert readings(published) == ["not decided"] * 4  # one seed
    # Never memorised, or generalised at once: no course to speak of.
    at_once = course_of([0.5, 0.5, 0.4, 0.3], [0.1, 0.1, 0.3, 0.5], [0, 0.95, 1, 1])
    unmemorised = [r | {"train_accuracy": 0.9} for r in published]
    assert readings(at_once, unmemorised, published) == ["not decided"] * 4


def test_interventions_are_paired_and_never_is_later():
    settings = PRESETS["smoke"]
    fast, slow, never = [0, 0.95, 1, 1], [0, 0, 0, 0.95], [0, 0, 0, 0]
    main = [r for s, a in enumerate((slow, slow, fast)) for r in course(a, [1] * 4, seed=s)]
    informed = [
        r | {"kind": "+MI"}
        for s, a in enumerate((fast, never, fast))
        for r in course(a, [1] * 4, seed=s)
    ]
    (row,) = interventions_table(settings, main, informed).rows
    assert row == ("+MI", "1", "1", "1", "-100 (2)", "1.000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (1.0,)}, "leaves none"),
        ({"fractions": (0.5, 0.5)}, "fractions must be different"),
        ({"information_steps": (5, 5)}, "information_steps must be FIRST < LAST"),
        ({"information_steps": (40, 50)}, "with FIRST below steps = 40"),
        ({"kinds": ("+ED",), "interventions": False}, "kinds names .ED, which --no-interventions"),
        ({"kinds": ("foo",)}, "kinds must be of random-labels, .*, got foo"),
        ({"kind_seeds": 2}, "kind_seeds must be at most seeds = 1, got 2"),
        ({"exact_side": 0}, "exact_side must be at least 1"),
        ({"weight_decays": (-1.0,)}, "weight_decays must not be negative"),
        ({"modulus": 0}, "modulus must be at least 1"),
        ({"heads": 3}, "heads = 3 must divide width"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["smoke"], **change)


def test_metrics_are_those_of_the_features(tmp_path):
    from train.engine.optimizers import adamw_with_warmup
    from train.engine.state import initial_state
    from train.engine.trainer import Group
    from train.modular.measure import TableEvaluator
    from train.modular.network import ModularNetwork
    from train.modular.task import modular_task

    settings = dataclasses.replace(PRESETS["smoke"], controls=False, interventions=False)
    network, own = (
        ModularNetwork(settings.modulus, settings.width, settings.heads),
        lanes_of_kinds(settings),
    )
    states = initial_state(network, adamw_with_warmup(warmup_steps=10), own)
    pairs = modular_task(7, 0.5)
    (values,) = TableEvaluator(network, own, [pairs], tmp_path)([Group(states, own)])
    params = jax.tree.map(lambda x: x[0], states.params)
    logits, features, head = network.forward(params, pairs.pairs)
    test = slice(pairs.train_size, None)
    expected = mirjax.interplay(features[test], head[:7], pairs.labels[test])
    assert values["test_mir"] == pytest.approx(float(expected.mir), abs=1e-5)
    assert values["test_hdr"] == pytest.approx(float(expected.hdr), abs=1e-5)
    low, high = np.sort(pairs.pairs[test], axis=1).T
    debiased = mirjax.debiased_interplay(
        features[test], head[:7], pairs.labels[test], groups=(7 * low + high).astype(np.int32)
    )
    assert values["test_mir_debiased"] == pytest.approx(float(debiased.mir), abs=1e-4)
    accuracy = np.mean(np.argmax(logits, 1)[test] == pairs.labels[test])
    assert values["test_accuracy"] == pytest.approx(accuracy)
    squares = sum(float((x**2).sum()) for x in jax.tree.leaves(params))
    assert values["weight_norm"] == pytest.approx(squares**0.5, rel=1e-5)
