import dataclasses

import numpy as np
import pytest

from tests.train.experiments import assert_resumes_bit_identical
from train import pruning
from train.pruning import PRESETS, claims, run
from train.reporting.records import select
from train.reporting.summary import read_summary
from train.run.files import read_jsonl


@pytest.mark.slow
def test_pruning_end_to_end_and_resumed(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        PRESETS["smoke"], finetune_steps=20, eval_every=10, out=tmp_path / "run"
    )
    tuned = []

    def kept(*arguments, **options):
        tuned.append(fit(*arguments, **options))
        return tuned[-1]

    fit = pruning.fit
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "fit", kept)
        summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    states = tuned[-1].states
    # Dropped weights are exactly zero after fine-tuning, and the others have moved.
    kernels = states.params["layers"][0]["kernel"][...]
    mask = states.masks["layers"][0]["kernel"][...]
    assert mask.shape == (3, 64, 256)
    assert np.all(np.asarray(kernels)[~np.asarray(mask)] == 0)
    kept = np.asarray(mask)
    before_tuning = np.asarray(tuned[0].states.params["layers"][0]["kernel"][...])
    assert tuned[0].folder.name == "dense"
    assert np.mean((np.asarray(kernels) != before_tuning)[kept]) > 0.9
    records = read_jsonl(settings.out / "pruning.jsonl")
    assert len(records) == 3 * 2
    for r in records:
        assert r["zeros"] == pytest.approx(r["sparsity"], abs=1e-4)
    (before,) = select(records, sparsity=0.0, stage="pruned")
    (dense,) = select(read_jsonl(settings.out / "dense" / "metrics.jsonl"), step=20)
    assert before["test_mir"] == pytest.approx(dense["test_mir"], abs=1e-6)
    assert before["features_hdr"] == pytest.approx(0, abs=1e-6)
    (magnitude,) = select(records, sparsity=0.9, method="magnitude", stage="pruned")
    assert magnitude["features_mir"] < before["features_mir"]
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch, saves=3)


def test_the_number_at_90_percent_is_of_90_percent():
    def record(sparsity, method, value):
        shared = {
            "sparsity": sparsity,
            "method": method,
            "stage": "fine-tuned",
            "features_mir": value,
        }
        return {**shared, "features_mir_batch": value}

    def reading(sparsity, value):
        settings = dataclasses.replace(PRESETS["smoke"], sparsities=(sparsity,))
        records = [record(sparsity, "magnitude", value), record(sparsity, "random", 0.1)]
        found = claims(settings, records)
        return [claim.reading.split(":")[0] for claim in found]

    assert reading(0.9, 0.45) == ["agrees", "yes"]
    assert reading(0.9, 0.05) == ["disagrees", "no"]
    assert reading(0.5, 0.45) == ["not measured at 90 %", "yes"]
