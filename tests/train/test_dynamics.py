import dataclasses

import numpy as np
import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train.dynamics import PRESETS, RANDOM, TRUE, claims, run
from train.experiment import load_data, with_random_labels
from train.records import final_records
from train.summary import read_summary
from train.trackers import read_jsonl


def test_dynamics_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(PRESETS["smoke"], seeds=2, out=tmp_path / "run")
    summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    table, layers = summary.tables
    assert "test n = 360, training n = 1,437" in table.title
    assert [row[0] for row in table.rows] == [
        f"{kind}, {split} set"
        for split in ("test", "train")
        for kind in ("untrained", TRUE, RANDOM)
    ]
    assert [row[0] for row in layers.rows][:4] == [
        "layer1, untrained",
        f"layer1, {TRUE}",
        f"layer1, {RANDOM}",
        "layer2, untrained",
    ]
    true, random = (
        final_records(read_jsonl(settings.out / kind / "metrics.jsonl"))
        for kind in ("true-labels", "random-labels")
    )
    assert all(r["test_accuracy"] > 0.8 for r in true)
    assert all(r["test_accuracy"] < 0.3 for r in random)
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch, saves=2)


def test_random_labels_keep_images_classes_and_the_test_set():
    data = load_data(PRESETS["smoke"])
    random = with_random_labels(data)
    assert random.test is data.test
    np.testing.assert_array_equal(random.train.images, data.train.images)
    np.testing.assert_array_equal(np.sort(random.train.labels), np.sort(data.train.labels))
    assert np.mean(random.train.labels == data.train.labels) < 0.15
    assert "random labels" in random.source_note


def test_a_balanced_part_of_the_training_set():
    data = load_data(dataclasses.replace(PRESETS["smoke"], train_size=200))
    assert len(data.train) == 200
    assert set(np.bincount(data.train.labels)) <= {19, 20, 21}
    assert "200 of 1,437 training images" in data.source_note


@pytest.mark.parametrize(("sign", "reading"), [(1, "agrees"), (-1, "disagrees")])
def test_rising_with_accuracy_is_a_rank_correlation(sign, reading):
    records = [
        {"step": i, "test_accuracy": i / 10}
        | {
            f"test_{k}": 0.5 + direction * sign * i / 10
            for k, direction in (("mir", 1), ("mir_batch", 1), ("hdr", -1), ("hdr_batch", -1))
        }
        for i in range(5)
    ]
    assert {claim.reading.split(":")[0] for claim in claims(records)} == {reading}
