"""How many samples have no direction is said beside every n, which is that of all samples."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import mirjax
from train import (
    bias,
    connectivity,
    demo,
    dynamics,
    few_labels,
    grokking,
    losses,
    placement,
    pruning,
    report,
    semisupervised,
    smoothing,
    supervised,
)
from train.engine.state import TrainState
from train.evaluation.evaluator import Evaluator
from train.evaluation.layers import LayerEvaluator
from train.modular import summary as modular_summary
from train.modular.measure import TableEvaluator
from train.modular.network import ModularNetwork
from train.modular.task import modular_task
from train.run.files import write_jsonl
from train.run.lanes import lanes_of
from train.run.loop import Result
from train.ssl.settings import lanes_with_terms

SETS = ("test_", "train_", "labelled_", "layer_last_", "features_", "")
SAID = "(2 to 3 without a direction)"
# Of a single lane, for networks without parameters.
STATES = TrainState(*[np.zeros(1)] * 8)


# Their names without that of the set.
METRICS = (
    *mirjax.Interplay._fields,
    *mirjax.NeuralCollapse._fields,
    *("accuracy", "loss", "mir_batch", "hdr_batch", "mir_distance", "class_mir", "class_hdr"),
    *("attention_mir", "hidden_mir"),
)


def made(lanes, steps, *more):
    """A record for each lane and step, in which all metrics are a half.

    Of the first seed 2 samples have no direction, of the others 3.
    """
    metrics = {f"{name}{metric}": 0.5 for name in SETS for metric in METRICS}
    metrics |= {f"{name}n": 1000.0 for name in (*SETS, "layer_")}
    metrics |= {"layer_last_effective_rank": 2.0}
    return [
        {**metrics, "step": step, "seed": lane.seed, **lane.tags, **tags}
        | {f"{name}without_direction": 3.0 if lane.seed else 2.0 for name in SETS}
        for step in steps
        for tags in more or ({},)
        for lane in lanes
    ]


def of_smoothing(settings):
    records = made(lanes_of(settings, smoothing=settings.epsilons), (0, 20))
    return smoothing.summarize(settings, "made up", 10, records)


def of_losses(settings):
    return losses.summarize(settings, "made up", 10, made(losses.lanes(settings), (20,)))


def of_pruning(settings):
    lanes = pruning.pruned_lanes(settings)
    records = made(lanes, (0,), *({"stage": stage} for stage in pruning.STAGES))
    return pruning.summarize(settings, "made up", 10, records, made(lanes_of(settings), (20,)))


def of_connectivity(settings):
    lanes = [lane for lane in connectivity.copies(settings) if lane.copy]
    points = ({"statistics": "no batch norm", "point": p} for p in np.linspace(0, 1, 5).tolist())
    records = made(lanes, (20,), *points)
    return connectivity.summarize(settings, "made up", 10, records)


def of_dynamics(settings):
    records = made(lanes_of(settings), (0, 20))
    return dynamics.summarize(settings, "made up", 10, {dynamics.TRUE: records})


def of_semisupervised(settings):
    return semisupervised.summarize(settings, "made up", 10, made(lanes_of(settings), (0, 20)))


def of_few_labels(settings):
    lanes = lanes_with_terms(settings, settings.weights)
    tags = ({"labels": 40, "algorithm": name} for name in settings.algorithms)
    return few_labels.summarize(settings, "made up", 10, made(lanes, (20,), *tags))


def of_placement(settings):
    lanes = lanes_with_terms(settings, settings.weights)
    records = made(lanes, (20,), *({"variation": name} for name in settings.variations))
    return placement.summarize(settings, "made up", records)


def of_grokking(settings):
    return modular_summary.summarize(settings, made(grokking.lanes_of_kinds(settings), (0, 40)), [])


@pytest.mark.parametrize(
    ("command", "summarize", "places"),
    [
        (smoothing, of_smoothing, 2),
        (losses, of_losses, 2),
        (pruning, of_pruning, 2),
        (connectivity, of_connectivity, 2),
        (dynamics, of_dynamics, 8),
        (semisupervised, of_semisupervised, 4),
        (few_labels, of_few_labels, 2),
        (placement, of_placement, 4),
        (grokking, of_grokking, 4),
    ],
)
def test_beside_the_n_of_summaries(command, summarize, places, tmp_path, monkeypatch):
    titles = []
    drawn_by = modular_summary if command is grokking else command
    monkeypatch.setattr(drawn_by, "draw", lambda *_, title, **__: titles.append(title))
    settings = dataclasses.replace(command.PRESETS["smoke"], seeds=2, out=tmp_path)
    summary = summarize(settings)
    titles += [summary.title, *(table.title for table in summary.tables)]
    text = "\n".join(titles)
    assert text.count(SAID) == places
    assert text.count("n = 1,000") == text.count(f"n = 1,000 {SAID}")


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """A folder of a supervised run with made-up records, and the titles of what is drawn."""
    titles = []

    def fit(settings, data, **_):
        records = made(lanes_of(settings), (0, settings.steps))
        settings.out.mkdir(parents=True)
        write_jsonl(settings.out / "metrics.jsonl", records)
        saved = {"settings": settings.as_json()}
        (settings.out / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
        return Result(settings.out, data.name, records, [], None)

    monkeypatch.setattr(supervised, "fit", fit)
    for module in (supervised, demo):
        monkeypatch.setattr(module, "plot_runs", lambda *_, title: titles.append(title))
    return tmp_path / "run", titles


def test_beside_the_n_of_single_runs(fitted, monkeypatch, capsys):
    folder, titles = fitted
    options = ["smoke", "--seeds", "2", "--out", str(folder)]
    monkeypatch.setattr("sys.argv", ["supervised", *options])
    supervised.main()
    assert f"n = 1,000 {SAID}" in titles[0]
    assert f"n = 1,000 {SAID}" in " ".join(capsys.readouterr().out.split())
    (table,) = report.summary_of(folder).tables
    assert f"n = 1,000 {SAID}" in table.title


def test_beside_the_n_of_the_demonstration(fitted, monkeypatch, capsys):
    folder, titles = fitted
    monkeypatch.setattr("sys.argv", ["demo", "--seeds", "2", "--out", str(folder)])
    demo.main()
    said = f"metrics on the 1000 test samples {SAID}"
    assert said in titles[-1]
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("memory", [2048, 0])
def test_they_are_counted_among_the_samples(tiny, blackened, pixels, settings, memory):
    own = dataclasses.replace(settings, memory_limit_mib=memory)
    # The last batch is filled up with black images, which do not count at all.
    (values,), (others,) = (
        Evaluator(pixels, data.test, 3, own)(STATES) for data in (blackened, tiny)
    )
    assert values["n"] == others["n"] == 25
    assert values["without_direction"] == 3
    assert "without_direction" not in others
    logits = pixels.apply(None, None, blackened.test.images).logits
    accuracy = np.mean(np.argmax(logits, 1) == blackened.test.labels)
    assert values["accuracy"] == pytest.approx(accuracy)


def test_they_are_counted_in_each_layer(blackened, pixels, settings):
    (values,) = LayerEvaluator(pixels, blackened.test, 3, settings)(STATES)
    assert values["n"] == 25
    counts = {k: v for k, v in values.items() if k.endswith("without_direction")}
    assert counts == {"last_without_direction": 3}


def test_they_are_counted_over_batch_sizes(
    blackened, pixels, settings, tmp_path, monkeypatch, capsys
):
    finished = SimpleNamespace(settings=settings, data=blackened, network=pixels, step=8)
    finished.states = finished.untrained = STATES
    monkeypatch.setattr(bias, "read_run", lambda *_: finished)
    measured = bias.measure(bias.Bias(settings.out))
    assert measured.about["n"] == 25
    bias.write(measured, tmp_path / "bias")
    shown = capsys.readouterr().out
    assert shown.count("of all 25 samples (3 without a direction) at the end") == 2
    assert bias._title(measured.about) == (
        "tiny, mlp, step 8, test set: n = 25 (3 without a direction)"
    )


def test_they_are_counted_between_two_representations():
    before, after = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)
    after[[2, 3]] = 0
    before[3:5] = 0
    assert pruning._compared(before, after, 4)["features_without_direction"] == 3
    assert "features_without_direction" not in pruning._compared(*[np.eye(8)] * 2, 4)


def test_they_are_counted_in_tables_modulo_p(tmp_path):
    evaluate = TableEvaluator(ModularNetwork(5, 8, 2), [], [], tmp_path)
    task = modular_task(5, 0.5)
    rng = np.random.default_rng(0)
    stream, hidden = (rng.normal(size=(25, 8)).astype(np.float32) for _ in range(2))
    stream[[0, 1, 20]] = hidden[[24]] = 0
    activations = {"stream": stream, "attention": stream, "hidden": hidden}
    activations |= {"logits": stream[:, :5], "head": rng.normal(size=(5, 8)).astype(np.float32)}
    values = evaluate._of_lane(task, activations, {})
    assert [values[f"{split}_n"] for split in ("train", "test", "all")] == [12, 13, 25]
    counts = {k: v for k, v in values.items() if k.endswith("without_direction")}
    of_stream = {"train": 2, "test": 1, "all": 3}
    assert counts == {
        **{f"{split}_without_direction": count for split, count in of_stream.items()},
        "train_attention_without_direction": 2,
        "test_attention_without_direction": 1,
        "test_hidden_without_direction": 1,
    }
