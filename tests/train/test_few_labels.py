import dataclasses

import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train import few_labels, placement
from train.few_labels import lanes
from train.summary import read_summary


def test_the_terms_are_added_one_at_a_time():
    settings = dataclasses.replace(few_labels.PRESETS["smoke"], seeds=2)
    found = {(x.seed, x.knobs.mi_weight, x.knobs.ed_weight) for x in lanes(settings, (0.1, 0.3))}
    weights = {(0, 0), (0.1, 0), (0.3, 0), (0, 0.1), (0, 0.3)}
    assert found == {(seed, *pair) for seed in (0, 1) for pair in weights}
    assert all(x.knobs.mi_weight or x.knobs.ed_weight for x in lanes(settings, (1,), plain=False))


def test_each_algorithm_gets_the_settings_it_has():
    settings = dataclasses.replace(
        few_labels.PRESETS["smoke"],
        algorithms=("supervised", "fixmatch", "freematch"),
        fairness_weight=0.05,
        threshold=None,
    )
    assert settings.single("freematch", 40).method().fairness_weight == 0.05
    assert settings.single("fixmatch", 250).labels == 250
    assert settings.single("supervised", 40).information_on == ("labelled",)
    for changes in (
        {"algorithms": ("mixmatch",)},
        {"weights": (0.0,)},
        {"mi_weight": 0.1},
        {"label_counts": (40, 40)},
    ):
        with pytest.raises(ValueError, match=r"unknown|positive|weights|different"):
            dataclasses.replace(settings, **changes)


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
        single = dataclasses.replace(settings, variations=(name,)).single(name)
        assert all(getattr(single, option) == value for option, value in variation.items())
