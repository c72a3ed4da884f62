import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import mirjax
from train.data.types import RecordSplit
from train.engine.state import Network, initial_state
from train.evaluation.closed_forms import closed_forms
from train.evaluation.evaluator import Evaluator
from train.run.checkpoint import Checkpoints
from train.run.command import from_command_line
from train.run.lanes import lanes_of
from train.supervised import PRESETS, Supervised, fit, main, optimizer_of, run

ROOT = Path(__file__).parents[2]


def test_digits_are_learned_and_everything_is_written(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    options = f"smoke --steps 60 --eval-every 30 --seeds 2 --mi-weight 0.1 --out {out}"
    monkeypatch.setattr(sys, "argv", ["supervised", *options.split()])
    main()
    shown = capsys.readouterr().out
    assert "n = 360" in shown
    assert "±" in shown
    records = [
        json.loads(line)
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(r["step"], r["seed"]) for r in records] == [
        (s, i) for s in (0, 30, 60) for i in (0, 1)
    ]
    assert all(r["test_accuracy"] > 0.85 for r in records[-2:])
    assert all(r["test_accuracy"] < 0.5 for r in records[:2])
    last = records[-1]
    assert last["test_n"] == 360
    assert last["train_n"] == 1437
    assert last["train_accuracy"] > 0.85
    assert last["step_mutual_information"] > 0
    assert last["test_mir_lower"] <= last["test_mir"] <= last["test_mir_upper"]
    assert last["test_mir_distance"] == pytest.approx(last["test_mir"] - closed_forms(10)["mir"])
    saved = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert saved["settings"]["mi_weight"] == 0.1
    assert list((out / "events" / "seed1").glob("events*"))
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 1000


def test_evaluation_equals_the_metrics_of_the_features(tiny, settings):
    network = Network.of(settings, tiny)
    states = initial_state(network, optimizer_of(settings), lanes_of(replace(settings, seeds=2)))
    values = Evaluator(network, tiny.test, 3, settings)(states)[1]
    one = jax.tree.map(lambda x: x[1], states)
    outputs = network.apply(one.params, one.rest, tiny.test.images, train=False)
    labels = tiny.test.labels
    expected = mirjax.interplay(outputs.features, outputs.head, labels)
    assert values["mir"] == pytest.approx(float(expected.mir), abs=1e-5)
    assert values["joint_entropy"] == pytest.approx(float(expected.joint_entropy), abs=1e-5)
    assert values["n"] == 25
    accuracy = np.mean(np.argmax(outputs.logits, 1) == labels)
    assert values["accuracy"] == pytest.approx(accuracy)
    batches = [
        mirjax.interplay(outputs.features[i : i + 8], outputs.head, labels[i : i + 8])
        for i in (0, 8, 16)
    ]
    assert values["mir_batch"] == pytest.approx(float(np.mean([b.mir for b in batches])), abs=1e-5)
    debiased = mirjax.debiased_interplay(outputs.features, outputs.head, labels)
    assert values["mir_debiased"] == pytest.approx(float(debiased.mir), abs=1e-4)
    assert values["hdr_debiased"] == pytest.approx(float(debiased.hdr), abs=1e-4)
    assert values["mir_debiased_standard_error"] > 0
    pairs = mirjax.PairMoments.zeros()
    for i in (0, 8, 16):
        rows = outputs.features[i : i + 8], outputs.head, labels[i : i + 8]
        pairs = pairs.update(*rows)
    of_pairs = pairs.interplay()
    assert values["mir_debiased_batch"] == pytest.approx(float(of_pairs.mir), abs=1e-4)
    error = float(of_pairs.standard_error.mir)
    assert values["mir_debiased_batch_standard_error"] == pytest.approx(error, rel=1e-2)
    collapse = mirjax.neural_collapse(
        outputs.features,
        labels,
        outputs.head,
        num_classes=3,
        bias=network.head(one.params, one.rest)[1],
    )
    assert values["nc1"] == pytest.approx(float(collapse.nc1), rel=1e-4)


@pytest.mark.parametrize("seeds", [1, 2])
def test_moments_and_features_give_the_same_metrics(tiny, settings, seeds):
    network = Network.of(settings, tiny)
    states = initial_state(
        network, optimizer_of(settings), lanes_of(replace(settings, seeds=seeds))
    )
    streaming = dataclasses.replace(settings, memory_limit_mib=0)
    held, streamed = (Evaluator(network, tiny.train, 3, s) for s in (settings, streaming))
    for one, other in zip(held(states), streamed(states), strict=True):
        assert one["n"] == 60
        # Sums do not tell how far single samples are from them.
        of_rows = {f"{name}_debiased_standard_error" for name in ("mir", "hdr")}
        of_rows |= {"effective_rank_centred", "participation_ratio_debiased"}
        assert one.keys() - other.keys() == of_rows
        for name in other:
            # Sums in float32 know little of small eigenvalues.
            relative = {"alpha_req": 0.1, "rankme": 5e-3}.get(name, 1e-3)
            assert one[name] == pytest.approx(other[name], rel=relative, abs=2e-4), name


def test_streamed_data_train_and_resume(settings, tiny, monkeypatch):
    class Records:
        def __len__(self):
            return len(tiny.train)

        def __getitem__(self, index):
            return {"image": tiny.train.images[index], "label": int(tiny.train.labels[index])}

    streamed = dataclasses.replace(tiny, train=RecordSplit(Records(), tiny.image_shape))
    regular = dataclasses.replace(settings, seeds=2, checkpoint_every=4)
    whole = fit(regular, streamed, quiet=True)
    assert all(r["test_accuracy"] > 0.9 for r in whole.records[-2:])

    class Killed(Exception):
        pass

    save = Checkpoints.save

    def save_and_die(self, step, *arguments):
        save(self, step, *arguments)
        raise Killed

    stopped = dataclasses.replace(regular, out=settings.out.with_name("stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            fit(stopped, streamed, quiet=True)
    resumed = fit(dataclasses.replace(stopped, resume=True), streamed, quiet=True)
    assert resumed.records == whole.records
    chex.assert_trees_all_equal(resumed.states, whole.states)


def test_presets_and_options():
    assert from_command_line(PRESETS, []) == PRESETS["small"]
    smoke = from_command_line(PRESETS, ["smoke", "--steps", "5", "--eval-every", "5"])
    assert smoke == dataclasses.replace(PRESETS["smoke"], steps=5, eval_every=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge"], "Preset 'huge' is unknown. There are: small, smoke, paper"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--stepz", "3"], "stepz"),
        (["--smoothing", "1.5"], "smoothing must be in [0, 1), got 1.5"),
        (["--batch-norm-momentum", "1"], "batch_norm_momentum must be in [0, 1)"),
        (["--devices", "3"], "devices is 3, but JAX sees 1"),
        (["--train-size", "5000"], "train_size 5000 is more than there are: 1437"),
        (["--dataset", "svhn"], "svhn"),
        (["--model", "vit"], "model 'vit' is unknown"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "train.prepare cifar10 --from"),
        (["--eval-every", "3", "--checkpoint-every", "4"], "multiple of eval_every = 3"),
    ],
)
def test_what_cannot_run_says_why(arguments, message, tmp_path, monkeypatch, capsys):
    out = [] if arguments[0] == "huge" else ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["supervised", *arguments, *out])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    text = " ".join(f"{stopped.value} {printed.out} {printed.err}".split())
    assert stopped.value.code not in (0, None)
    assert message in text


def test_help_tells_all():
    done = subprocess.run(
        [sys.executable, "-m", "train.supervised", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for field in dataclasses.fields(Supervised):
        assert f"--{field.name.replace('_', '-')}" in done.stdout


def test_run_names_data_and_n_in_its_picture(tmp_path):
    settings = dataclasses.replace(PRESETS["smoke"], steps=2, eval_every=1, out=tmp_path / "run")
    result = run(settings, quiet=True)
    assert [r["step"] for r in result.records] == [0, 1, 2]
