import dataclasses

import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train import few_labels, placement
from train.reporting.summary import read_summary
from train.ssl.settings import lanes_with_terms


def test_the_terms_are_added_one_at_a_time():
    settings = dataclasses.replace(few_labels.PRESETS["smoke"], seeds=2)
    found = {
        (x.seed, x.knobs.mi_weight, x.knobs.ed_weight)
        for x in lanes_with_terms(settings, (0.1, 0.3))
    }
    weights = {(0, 0), (0.1, 0), (0.3, 0), (0, 0.1), (0, 0.3)}
    assert found == {(seed, *pair) for seed in (0, 1) for pair in weights}
    assert all(
        x.knobs.mi_weight or x.knobs.ed_weight
        for x in lanes_with_terms(settings, (1,), plain=False)
    )


def test_each_algorithm_gets_the_settings_it_has():
    settings = dataclasses.replace(
        few_labels.PRESETS["smoke"],
        algorithms=("supervised", "fixmatch", "freematch"),
        fairness_weight=0.05,
        threshold=0.8,
    )
    assert settings.of("freematch", 40).method().fairness_weight == 0.05
    assert settings.of("fixmatch", 250).method().threshold == 0.8
    assert settings.of("fixmatch", 250).labels == 250
    for changes, message in (
        ({"algorithms": ("mixmatch",)}, "algorithms mixmatch are unknown"),
        ({"temperature": 0.3}, "none of supervised, fixmatch, freematch has a temperature"),
        ({"weights": (0.0,)}, "weights must be positive"),
        ({"label_counts": (40, 40)}, "label_counts must be different"),
        (
            {
                "algorithms": ("fixmatch", "pseudo_label"),
                "information_on": ("strong",),
                "fairness_weight": None,
            },
            "labelled, weak",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(settings, **changes)
    with pytest.raises(ValueError, match="information_on must be of labelled with supervised"):
        dataclasses.replace(placement.PRESETS["smoke"], algorithm="supervised")


def test_the_reading_of_the_terms_does_not_depend_on_other_rows(tmp_path):
    settings = dataclasses.replace(
        few_labels.PRESETS["smoke"],
        algorithms=("supervised", "uda", "freematch"),
        seeds=5,
        out=tmp_path,
    )
    gains = {
        ("supervised", ""): (-0.3, -0.301, -0.299, -0.3, -0.302),
        ("uda", ""): (-0.2, -0.201, -0.199, -0.2, -0.202),
        ("freematch", ""): (0.0,) * 5,
        # p is 0.03 by itself: 0.06 with one more term, and 0.04 with two clear baselines.
        ("freematch", "MI"): (0.011, 0.003, 0.012, 0.001, 0.009),
        ("freematch", "ED"): (0.02, -0.03, 0.01, 0.02, -0.01),
    }
    records = [
        {
            "step": 20, "seed": seed, "algorithm": algorithm, "terms": terms, "labels": 40, "labelled_n": 40.0,
            "weight": 0.1 if terms else 0.0, "test_n": 10_000.0, "test_accuracy": 0.6 + gain, "step_coverage": 0.0,
        }
        for (algorithm, terms), row in gains.items()
        for seed, gain in enumerate(row)
    ]  # fmt: skip
    summary = few_labels.summarize(settings, "made up", 10, records)
    rows = {row[0]: row for row in summary.tables[1].rows}
    assert float(rows["freematch + 0.1 MI"][3]) < 0.05
    assert summary.claims[0].reading.startswith("not decided")
    # What is 0 is drawn as 0.
    panels = few_labels.panels(settings, records, {})
    coverage = next(panel for panel in panels if panel.title.startswith("coverage"))
    assert all(set(line.mean) == {0.0} for line in coverage.lines)


@pytest.mark.slow
def test_the_comparison_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        few_labels.PRESETS["smoke"],
        algorithms=("supervised", "freematch"),
        eval_train=False,
        out=tmp_path / "run",
    )
    summary = few_labels.run(settings, quiet=True)
    values, gains = summary.tables
    names = [row[0] for row in values.rows]
    assert names == ["supervised", "freematch", "freematch + 0.1 MI", "freematch + 0.1 ED"]
    assert [row[0] for row in gains.rows] == [name for name in names if name != "freematch"]
    assert len(summary.claims) == 1
    assert "freematch + 0.1 ED" in summary.claims[0].measured
    assert read_summary(settings.out) == summary
    # Killed in the second of its runs.
    assert_resumes_bit_identical(few_labels.run, settings, settings.out, monkeypatch, saves=3)


@pytest.mark.slow
def test_placements_end_to_end(tmp_path):
    settings = dataclasses.replace(
        placement.PRESETS["smoke"], eval_every=20, eval_train=False, out=tmp_path / "run"
    )
    summary = placement.run(settings, quiet=True)
    (gains,) = summary.tables
    assert gains.columns == ("terms on", "0.1 MI", "0.1 ED")
    assert [row[0] for row in gains.rows] == ["as set", "soft rows"]
    assert all(row[1][0] in "+-" for row in gains.rows)
    assert read_summary(settings.out) == summary
    # The first variation is trained without the terms too.
    assert "without the terms: 0." in gains.title
    for name, variation in placement.VARIATIONS.items():
        single = dataclasses.replace(settings, variations=(name,)).of(name)
        assert all(getattr(single, option) == value for option, value in variation.items())
