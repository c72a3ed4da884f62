"""Errors as the users of the commands meet them: one line, status 2, nothing left behind."""

import dataclasses
import errno
import importlib
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from train.run import checkpoint, command
from train.run.checkpoint import CheckpointError
from train.run.command import run_command
from train.supervised import PRESETS, run

RUNS = (
    "supervised",
    "dynamics",
    "smoothing",
    "connectivity",
    "pruning",
    "losses",
    "grokking",
    "semisupervised",
    "few_labels",
    "placement",
)
ON_IMAGES = tuple(name for name in RUNS if name != "grokking")
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture
def stop(monkeypatch, capsys):
    """Runs a command that must end with status 2; what it printed, and that is one line if `line`."""

    def stopped(name, *arguments, line=True, status=2):
        module = importlib.import_module(f"train.{name}")
        monkeypatch.setattr(sys, "argv", [f"train/{name}.py", *map(str, arguments)])
        main = getattr(module, "main", None) or (lambda: run_command(module.PRESETS, module.run))
        with pytest.raises(SystemExit) as found:
            raise SystemExit(main())
        assert found.value.code == status
        told = capsys.readouterr().err
        assert "Traceback" not in told
        if line:
            assert told.startswith("error: ")
            assert len(told.strip().splitlines()) == 1
        return " ".join(told.split())

    return stopped


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two steps; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(dataclasses.replace(PRESETS["smoke"], steps=2, eval_every=2, out=folder), quiet=True)
    return folder


@pytest.fixture
def made(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "made")


@every_run
def test_what_a_command_does_not_know(name, stop, tmp_path):
    out = tmp_path / "run"
    assert "Preset 'huge' is unknown. There are: small" in stop(name, "huge")
    assert "--stepz" in stop(name, "smoke", "--stepz", 3, line=False)
    assert "--steps" in stop(name, "smoke", "--steps", "many", line=False)
    assert stop(name, "smoke", "--steps", 0, "--out", out) == (
        "error: steps must be at least 1, got 0."
    )
    assert not out.exists()


@every_run
@pytest.mark.parametrize("seed", [-1, 2**31, 2**70])
def test_seeds_that_cannot_be_used(name, seed, stop, tmp_path):
    out = tmp_path / "run"
    assert stop(name, "smoke", "--first-seed", seed, "--out", out) == (
        f"error: first_seed must be at least 0, and first_seed + seeds at most 2147483648, got {seed}."
    )
    assert not out.exists()


def test_the_last_seed_is_one_that_the_device_can_hold():
    last = dataclasses.replace(PRESETS["smoke"], first_seed=2**31 - 3, seeds=3).seed_range()[-1]
    assert jax.numpy.asarray([last]).tolist() == [2**31 - 1]
    with pytest.raises(ValueError, match="got 2147483645"):
        dataclasses.replace(PRESETS["smoke"], first_seed=2**31 - 3, seeds=4)


def test_options_of_another_command_are_refused_in_a_line(stop):
    assert "give --epsilons instead" in stop("smoothing", "smoke", "--smoothing", 0.1)
    assert "give --labels instead" in stop("semisupervised", "smoke", "--train-size=5")


@pytest.mark.parametrize("name", ON_IMAGES)
def test_data_of_a_single_class(name, stop, tmp_path):
    for number in range(10):
        (tmp_path / "pets" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pets" / "cat" / f"{number}.png")
    images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.zeros(10, int)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "zeros.npz", **arrays)
    out = tmp_path / "run"
    for dataset, told in (
        (f"folder:{tmp_path / 'pets'}", "error: pets has a single class, cat, and"),
        (f"npz:{tmp_path / 'zeros.npz'}", "error: zeros has a single class, 0, and"),
    ):
        assert told in stop(name, "smoke", "--dataset", dataset, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("name", ON_IMAGES)
def test_data_and_networks_that_are_not_there(name, stop, tmp_path):
    out = "--out", tmp_path / "run"
    assert "no data set 'svhn'; choose from digits" in stop(
        name, "smoke", "--dataset", "svhn", *out
    )
    nowhere = "--data-dir", tmp_path / "nowhere"
    told = stop(name, "smoke", "--dataset", "cifar10", *nowhere, *out)
    assert "python -m train.prepare cifar10 --from" in told
    assert "'vit' is unknown. There are: mlp" in stop(name, "smoke", "--model", "vit", *out)
    assert not (tmp_path / "run").exists()


@every_run
def test_places_that_cannot_be(name, stop, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    told = stop(name, "smoke", "--out", tmp_path / "file" / "below")
    assert f"{tmp_path}/file is a file. Name another place with --out" in told
    monkeypatch.setattr("train.run.folder.os.access", lambda *_: False)
    told = stop(name, "smoke", "--out", tmp_path / "a" / "b")
    assert f"no permission to write in {tmp_path}. Name another place" in told
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@every_run
def test_a_run_of_another_command_is_named(name, stop, made):
    settings = json.loads((made / "settings.json").read_text(encoding="utf-8"))
    settings["kind"] = "Another"
    (made / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    told = stop(name, "smoke", "--resume", "--out", made)
    assert "holds a run of another command (its settings are Another" in told


def test_commands_that_take_runs(stop, made, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "none", tmp_path / "empty"):
        assert "holds no run" in stop("bias", "--run", wrong)
        assert "holds no run" in stop("report", wrong, "--out", tmp_path / "page.html")
    assert "Name at least one run" in stop("report", "--out", tmp_path / "page.html")
    below = made / "settings.json" / "below"
    assert "settings.json is a file" in stop("bias", "--run", made, "--out", below)
    assert "settings.json is a file" in stop("report", made, "--out", below)
    assert "exists; name another place" in stop("report", made, "--out", made)
    for seed in (5, -1):
        told = stop("bias", "--run", made, "--seed", seed)
        assert f"seed must be at least 0 and below 1, the number of seeds of {made}" in told
    assert "--runz" in stop("bias", "--runz", 1, line=False)
    assert "--runz" in stop("report", "--runz", line=False)


def test_commands_on_data(stop, tmp_path):
    assert "no data set 'svhn'" in stop("labelled", "svhn")
    assert "seeds must be at least 1, got 0" in stop("labelled", "digits", "--seeds", 0)
    assert "labels 7 must be a multiple" in stop("labelled", "digits", "--labels", 7)
    told = stop("labelled", "cifar10", "--data-dir", tmp_path)
    assert "python -m train.prepare cifar10 --from" in told
    assert "'svhn'" in stop("prepare", "svhn", "--from", tmp_path, line=False)
    assert "cifar-10-binary.tar.gz" in stop("prepare", "cifar10", "--from", tmp_path / "none")
    assert "steps must be at least 1" in stop("demo", "--steps", 0, "--out", tmp_path / "run")
    assert "--stepz" in stop("demo", "--stepz", 1, line=False)


def edit(change):
    def apply(folder):
        content = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "settings.json").write_text(json.dumps(content), encoding="utf-8")

    return apply


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


RESUME = ("supervised", "smoke", "--steps", "2", "--eval-every", "2", "--resume", "--out")


@pytest.mark.parametrize(
    ("change", "command", "message"),
    [
        (write("settings.json", '{"settings": {"st'), RESUME, "holds no run"),
        (write("settings.json", "[1]"), ("report",), "holds no run"),
        (edit(lambda s: s["settings"].update(colour=1)), RESUME, "colour was 1, is None"),
        (edit(lambda s: s["settings"].update(colour=1)), ("bias", "--run"), "the settings colour"),
        (
            edit(lambda s: s["settings"].update(steps="x")),
            ("bias", "--run"),
            "Use the version that",
        ),
        (edit(lambda s: s["settings"].update(steps=0)), ("bias", "--run"), "Use the version that"),
        (edit(lambda s: s["settings"].pop("model")), ("report",), "it lacks ['model']"),
        (edit(lambda s: s["lanes"][0].update(colour=1)), ("bias", "--run"), "'colour'"),
        (edit(lambda s: s["lanes"][0]["knobs"].update(a=1)), ("bias", "--run"), "does not know"),
        (edit(lambda s: s.update(lanes="x")), ("report",), "Leave it out"),
        (edit(lambda s: s.update(classes="x")), ("report",), "Leave it out"),
        (write("metrics.jsonl", ""), RESUME, "metrics.jsonl is missing or empty"),
        (write("metrics.jsonl", ""), ("report",), "has no metrics yet"),
        (write("metrics.jsonl", '{"step": 0}\n{broken\n'), RESUME, "metrics.jsonl, line 2"),
        (write("metrics.jsonl", '{"seed": 0}\n'), RESUME, "line 1: this is no record"),
        (write("metrics.jsonl", "[1]\n"), ("report",), "line 1: this is no record"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), ("report",), "cannot be read"),
        (write("checkpoints/2/about/metadata", "{"), RESUME, "checkpoints/2 cannot be read"),
        (write("checkpoints/2/about/metadata", "{"), ("bias", "--run"), "2 cannot be read"),
        (
            lambda folder: shutil.rmtree(folder / "checkpoints"),
            ("bias", "--run"),
            "has no checkpoint",
        ),
        (write("summary.json", "{}"), ("report",), "summary.json cannot be read"),
    ],
)
def test_what_was_changed_or_cut(change, command, message, made, stop, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    change(made)
    assert message in stop(*command, made)


def test_an_odd_list_of_digests_does_no_harm(made):
    (made / "checkpoints.sha256.json").write_text('{"2": 3}', encoding="utf-8")
    checkpoints = checkpoint.Checkpoints(made / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.restore(2, {"other": jax.numpy.zeros(3)})
    checkpoints.close()


def told_of(error, **options):
    with pytest.raises(SystemExit) as found, command.exit_on_user_error(**options):
        raise error
    return found.value.code


def test_each_kind_of_error(capsys):
    cases = [
        (KeyboardInterrupt(), {"resumable": True}, 130, "interrupted. --resume continues from"),
        (KeyboardInterrupt(), {}, 130, "interrupted."),
        (ModuleNotFoundError(name="optax"), {}, 2, "optax is not installed. Run `make`"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            {},
            2,
            "x cannot be opened: Perm",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "x"),
            {},
            2,
            "x cannot be opened: Read-only",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
            {},
            2,
            "x cannot be made: Not a",
        ),
        (ValueError("two\nlines"), {}, 2, "error: two lines"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of memory"), {}, 2, "--lanes-per-call"),
    ]
    for error, options, status, message in cases:
        assert told_of(error, **options) == status
        told = capsys.readouterr().err.strip()
        assert message in told
        assert len(told.splitlines()) == 1


def test_what_no_user_can_mend_keeps_its_traceback():
    with pytest.raises(AssertionError, match="bug"), command.exit_on_user_error():
        raise AssertionError("bug")
    with pytest.raises(jax.errors.JaxRuntimeError), command.exit_on_user_error():
        raise jax.errors.JaxRuntimeError("INTERNAL: bug")
