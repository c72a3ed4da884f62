import dataclasses

import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train.losses import PLAIN, PRESETS, lanes, run
from train.reporting.summary import read_summary


def test_every_loss_and_weight_has_every_seed():
    found = lanes(dataclasses.replace(PRESETS["smoke"], weights=(0.1, 0.3), seeds=2))
    knobs = {(x.seed, x.tags["loss"], x.knobs.mi_weight, x.knobs.ed_weight) for x in found}
    one = {(PLAIN, 0, 0)} | {
        pair for w in (0.1, 0.3) for pair in (("+MI", w, 0), ("+ED", 0, w), ("+MI+ED", w, w))
    }
    assert knobs == {(seed, *rest) for seed in (0, 1) for rest in one}


@pytest.mark.slow
def test_the_comparison_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(PRESETS["smoke"], eval_every=10, out=tmp_path / "run")
    summary = run(settings, quiet=True)
    values, pairs = summary.tables
    assert values.rows[0][0] == PLAIN
    assert len(values.rows) == 4
    assert len(pairs.rows) == 3
    assert read_summary(settings.out) == summary
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch)
