import dataclasses
import json
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from tests.train.experiments import assert_resumes_bit_identical
from train.data.load import load
from train.data.types import DataError
from train.engine.sharding import mesh_of
from train.engine.state import Network
from train.labelled import Config, write_splits
from train.reporting.records import final_records, mean_and_spread
from train.reporting.summary import read_summary
from train.run.command import from_command_line, run_command
from train.run.lanes import lanes_of
from train.semisupervised import PRESETS, fit, run
from train.ssl.pool import PoolLoader, load_pool, pool_of


@pytest.fixture
def smoke(tmp_path):
    return dataclasses.replace(PRESETS["smoke"], out=tmp_path / "run")


@pytest.mark.slow
def test_forty_labels_and_unlabelled_images_beat_forty_labels(smoke):
    def accuracy(name):
        settings = dataclasses.replace(
            smoke,
            algorithm=name,
            information_on=("labelled",),
            steps=400,
            eval_every=400,
            average_momentum=0.98,
            statistics_momentum=0.99,
            eval_train=False,
            seeds=3,
            out=smoke.out / name,
        )
        last = final_records(fit(settings, load_pool(settings, 40), quiet=True).records)
        assert all(r["labelled_n"] == 40 for r in last)
        return mean_and_spread([r["test_accuracy"] for r in last])[0]

    assert accuracy("freematch") > accuracy("supervised") + 0.03


@pytest.mark.slow
def test_a_run_end_to_end_and_resumed(smoke, monkeypatch):
    # FreeMatch keeps statistics, and every random draw is of the step.
    settings = dataclasses.replace(smoke, seeds=2, mi_weight=0.1, ed_weight=0.1)
    summary = run(settings, quiet=True)
    assert read_summary(settings.out) == summary
    assert (settings.out / "curves.png").exists()
    lists = json.loads((settings.out / "labelled.json").read_text(encoding="utf-8"))
    digits = load("digits").train.labels
    assert lists.keys() == {"0", "1"}
    assert all(np.bincount(digits[own]).tolist() == [4] * 10 for own in lists.values())
    lines = (settings.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 2 * 3
    for name in ("test_nc4", "unlabelled_mir", "labelled_hdr", "threshold_class9", "threshold_max"):
        assert np.isfinite(records[-1][name]), name
    assert 0 < records[-1]["step_coverage"] <= 1
    assert 0 <= records[-1]["step_pseudo_accuracy"] <= 1
    assert_resumes_bit_identical(run, settings, settings.out, monkeypatch)


def test_hidden_labels_are_those_that_training_is_not_told(tiny, smoke):
    pool = pool_of(smoke, tiny, 6)
    hidden = pool.hidden(0)
    assert hidden.sum() == 54
    assert not hidden[pool.labelled[0]].any()
    split = pool.hidden_split(0)
    assert np.array_equal(split.images, tiny.train.images[hidden])
    assert np.array_equal(split.labels, tiny.train.labels[hidden])
    # And of a batch only those are judged.
    loader = PoolLoader(pool, 6, 12, mesh_of(1, 6))
    sources, found = loader.batches(lanes_of(smoke))(0, 2)
    one = jax.tree.map(lambda x: x[0], found)
    *_, truth, places = loader.take(sources, one)
    expected = np.where(hidden[places], tiny.train.labels[places], -1)
    assert np.array_equal(truth, expected)
    assert np.any(expected < 0)


def test_index_files_are_of_published_data(tmp_path, smoke):
    # A user's folder of that name has other images.
    folder_of_images(tmp_path / "digits")
    settings = dataclasses.replace(smoke, dataset=f"folder:{tmp_path / 'digits'}")
    assert np.bincount(load_pool(settings, 4).labelled_split(0).labels).tolist() == [2, 2]
    with pytest.raises(DataError, match="index files are of published data sets"):
        write_splits(Config(settings.dataset))


def folder_of_images(root, *, unlabelled=5, classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for number, name in enumerate(classes):
            for i in range(count):
                place = root / split / name / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * number
                Image.fromarray(pixels.astype(np.uint8)).save(place)
    for i in range(unlabelled):
        place = root / "unlabelled" / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 250, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place)


@pytest.mark.slow
def test_a_users_folder_with_unlabelled_images(tmp_path, smoke):
    folder_of_images(tmp_path / "data")
    settings = dataclasses.replace(
        smoke,
        dataset=f"folder:{tmp_path / 'data'}",
        labels=None,
        batch_size=4,
        unlabelled_ratio=2,
        steps=2,
        eval_every=2,
    )
    pool = load_pool(settings, settings.labels)
    assert pool.truth.tolist() == [0] * 4 + [1] * 4 + [-1] * 5
    assert pool.labelled[0].tolist() == list(range(8))
    assert len(pool.labelled_split(0)) == 8
    assert not pool.hidden(0).any()
    result = fit(settings, pool, quiet=True)
    assert result.records[-1]["labelled_n"] == 8
    assert "threshold_class1" in result.records[-1]
    # Nobody knows the labels of the others: nothing is said of them.
    assert not any(k.startswith("unlabelled_") for k in result.records[-1])
    assert "step_pseudo_accuracy" not in result.records[-1]
    # What is evaluated is the average of the weights.
    one = jax.tree.map(lambda x: x[0], result.states)
    network, test = Network.of(settings, pool.data), pool.data.test
    logits = network.apply(one.ema_params, one.rest, test.images, train=False).logits
    each = optax.softmax_cross_entropy_with_integer_labels(logits, test.labels)
    assert result.records[-1]["test_loss"] == pytest.approx(float(each.mean()), rel=1e-5)


def test_a_class_without_a_label(tmp_path, smoke, tiny):
    folder_of_images(tmp_path / "data")
    (tmp_path / "data" / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="the class bird has no labelled image in"):
        load_pool(dataclasses.replace(smoke, dataset=f"folder:{tmp_path / 'data'}"), None)
    train = dataclasses.replace(tiny.train, labels=np.minimum(tiny.train.labels, 1))
    with pytest.raises(DataError, match="no labelled image of the class 2"):
        pool_of(smoke, dataclasses.replace(tiny, train=train), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm", "mixmatch"], "mixmatch"),
        (
            ["--algorithm", "freematch", "--threshold", "0.9"],
            "threshold is no setting of freematch",
        ),
        (["--algorithm", "uda", "--temperature", "0"], "temperature must be positive, got 0"),
        (["--algorithm", "fixmatch", "--threshold", "1.5"], "threshold must be in (0, 1], got 1.5"),
        (["--unlabelled-weight", "-1"], "unlabelled_weight must not be negative"),
        (["--train-size", "100"], "train_size is for supervised training"),
        (["--model", "nonsense"], "model 'nonsense' is unknown"),
        (["--labels", "45"], "labels 45 must be a multiple of the number of classes, 10"),
        (["--labels", "2000"], "class 0 has"),
        (["--average-momentum", "1"], "average_momentum must be in [0, 1), got 1"),
        (["--unlabelled-ratio", "100"], "unlabelled_ratio 100 times batch_size 16 is more than"),
        (
            ["--algorithm", "supervised", "--mi-weight", "0.1"],
            "information_on must be of labelled with supervised, got labelled, weak",
        ),
        (["--dataset", "stl10", "--data-dir", "nowhere"], "train.prepare stl10 --from"),
    ],
)
def test_what_cannot_run_says_why(arguments, message, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["semisupervised", "smoke", *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        run_command(PRESETS, run)
    printed = capsys.readouterr()
    text = " ".join(f"{stopped.value} {printed.out} {printed.err}".split())
    assert stopped.value.code not in (0, None)
    assert message in text
    assert not out.exists()


def test_options():
    found = from_command_line(
        PRESETS, ["smoke", "--labels", "None", "--information-on", "strong", "weak"]
    )
    assert found.labels is None
    assert found.information_on == ("strong", "weak")
    paper = PRESETS["paper"]
    assert (paper.batch_size, paper.unlabelled_ratio, paper.steps) == (64, 7, 2**20)
    assert (paper.average_momentum, paper.statistics_momentum) == (0.999, 0.999)
    assert paper.batch_norm_momentum == 0.999
