import dataclasses

import numpy as np
import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train.data.subsets import with_random_labels
from train.dynamics import PRESETS, RANDOM, TRUE, claims, correlations, run
from train.reporting.records import final_records
from train.reporting.summary import read_summary
from train.run.files import read_jsonl
from train.supervised import load_data


@pytest.mark.slow
def test_dynamics_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(PRESETS["smoke"], seeds=2, out=tmp_path / "run")
    assert settings.steps == 2 * settings.eval_every
    summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    table, spectra, layers = summary.tables
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
    assert [row[0] for row in spectra.rows] == ["untrained", TRUE, RANDOM]
    assert "-" not in [cell for row in spectra.rows for cell in row]
    true, random = (
        final_records(read_jsonl(settings.out / kind / "metrics.jsonl"))
        for kind in ("true-labels", "random-labels")
    )
    assert all(r["test_accuracy"] > 0.8 for r in true)
    assert all(r["test_accuracy"] < 0.3 for r in random)
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch, saves=3)


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


def readings(values):
    """Of MIR values over rising accuracy; HDR falls as they rise."""
    records = [
        {"step": i, "test_accuracy": i / 10}
        | dict.fromkeys(("test_mir", "test_mir_batch"), value)
        | dict.fromkeys(("test_hdr", "test_hdr_batch"), -value)
        for i, value in enumerate(values)
    ]
    return {claim.reading.split(":")[0] for claim in claims(records)}


def test_rising_with_accuracy_is_a_rank_correlation():
    assert readings([1, 2, 3, 4, 5]) == {"agrees"}
    assert readings([5, 4, 3, 2, 1]) == {"disagrees"}
    assert readings([1, 5, 2, 4, 1]) == {"not decided"}
    assert readings([1, 2, 3]) == {"not decided"}  # too few to tell


def test_what_follows_accuracy_over_training():
    def run_of(seed, random):
        for step in range(6):
            follows = step if seed else -step
            yield {"step": step, "seed": seed, "test_rankme": follows, "test_mir": step**2} | (
                {"train_accuracy": -step, "test_accuracy": 0.1}
                if random
                else {"test_accuracy": 1 if step == 0 else step}
            )

    records = {
        kind: [r for seed in range(2) for r in run_of(seed, kind == RANDOM)]
        for kind in (TRUE, RANDOM)
    }
    found = {name: cells for name, *cells in correlations(records, "n = 9").rows}
    assert found["MIR"] == ["0.986 ± 0.000", "1.000 ± 0.000", "-1.000 ± 0.000"]
    assert found["RankMe"] == ["0.000 ± 1.394", "0.000 ± 1.414", "0.000 ± 1.414"]
    # What was not measured, or does not change, has no order.
    assert found["LiDAR"] == ["-", "-", "-"]
    assert correlations({TRUE: records[TRUE][:4]}, "") is None
    del records[RANDOM]
    assert len(correlations(records, "").columns) == 3
