import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.train.experiments import assert_resumes_bit_identical
from train.reporting.summary import read_summary
from train.run.lanes import lanes_of
from train.smoothing import PRESETS, claim, run
from train.supervised import fit, load_data


@pytest.mark.slow
def test_the_sweep_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        PRESETS["smoke"], eval_every=10, augment=True, out=tmp_path / "run"
    )
    summary = run(settings, quiet=True)
    (table,) = summary.tables
    assert [row[0] for row in table.rows] == ["0", "0.2"]
    assert "n = 360" in table.title
    assert "±" in table.rows[0][1]
    assert read_summary(settings.out) == summary
    with Image.open(settings.out / "smoothing.png") as picture:
        assert picture.width > 1000
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch)


def test_epsilon_zero_equals_no_smoothing(tmp_path):
    settings = dataclasses.replace(
        PRESETS["smoke"], seeds=1, steps=5, eval_every=5, eval_train=False, lanes_per_call=1
    )
    data = load_data(settings)
    swept = lanes_of(settings, smoothing=(0.0, 0.2))
    both = fit(dataclasses.replace(settings, out=tmp_path / "both"), data, swept, quiet=True)
    plain = fit(dataclasses.replace(settings, out=tmp_path / "plain"), data, quiet=True)
    first, second = (jax.tree.map(lambda x, i=i: x[i : i + 1], both.states.params) for i in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, plain.states.params)
    leaves = zip(jax.tree.leaves(second), jax.tree.leaves(plain.states.params), strict=True)
    assert not all(np.array_equal(a, b) for a, b in leaves)


def test_little_is_a_tenth_of_what_training_moves():
    def reading(*values):
        records = [{"step": 0, "seed": 0, "smoothing": 0.0, "m": 0.0}]
        for epsilon, own in zip((0.0, 0.1), values, strict=True):
            records += [
                {"step": 9, "seed": seed, "smoothing": epsilon, "m": value}
                for seed, value in enumerate(own)
            ]
        return claim(records, "M", "m").reading.split(":")[0].split(" (")[0]

    assert reading([1.0, 1.0], [1.05, 1.05]) == "agrees"
    assert reading([1.0, 1.0], [1.3, 1.3]) == "disagrees"
    assert reading([0.9, 1.1], [1.0, 1.3]) == "not decided"
    assert reading([1.0], [1.3]) == "not decided"


def test_nothing_is_claimed_of_some_networks_alone():
    records = [
        {"step": step, "seed": seed, "smoothing": epsilon, "m": 1.0}
        for step in (0, 9)
        for seed in (0, 1)
        for epsilon in (0.0, 0.1)
    ]
    records[-1]["m"] = None
    assert claim(records, "M", "m").reading == "not decided: some networks lack a value"
