import importlib
import sys

import pytest

from train.run.command import run_command

COMMANDS = ("smoothing", "losses", "connectivity", "pruning", "dynamics")
every_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture
def stop(monkeypatch, capsys):
    def stopped(name, *arguments):
        module = importlib.import_module(f"train.{name}")
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as found:
            run_command(module.PRESETS, module.run)
        printed = capsys.readouterr()
        assert found.value.code not in (0, None)
        return " ".join(f"{found.value} {printed.out} {printed.err}".split())

    return stopped


@every_command
def test_what_cannot_run_says_why(name, stop, tmp_path):
    out = "--out", str(tmp_path / "run")
    assert "Preset 'huge' is unknown. There are: small, smoke, paper" in stop(name, "huge")
    assert "svhn" in stop(name, "smoke", "--dataset", "svhn", *out)
    told = stop(name, "smoke", "--dataset", "cifar10", "--data-dir", "nowhere", *out)
    assert "train.prepare cifar10 --from" in told
    assert not (tmp_path / "run").exists()


@every_command
def test_nothing_is_overwritten_unasked(name, stop, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "holds something else than a run" in stop(name, "smoke", "--out", str(tmp_path))
    (tmp_path / "settings.json").write_text('{"settings": {"steps": 7}}', encoding="utf-8")
    assert "holds a run already" in stop(name, "smoke", "--out", str(tmp_path))
    told = stop(name, "smoke", "--resume", "--out", str(tmp_path))
    assert "was made with other settings" in told
    assert "steps was 7, is 20" in told
    assert sorted(f.name for f in tmp_path.iterdir()) == ["settings.json", "thesis.txt"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("smoothing", ["--epsilons", "0", "1"], "epsilons must be in [0, 1)"),
        ("smoothing", ["--epsilons", "0.1", "0.1"], "epsilons must be different"),
        ("smoothing", ["--smoothing", "0.1"], "give --epsilons instead"),
        ("losses", ["--weights", "0"], "weights must be positive"),
        ("losses", ["--weights", "0.3", "0.3"], "weights must be different numbers"),
        (
            "losses",
            ["--batch-size", "5000"],
            "batch_size 5000 is larger than the training split, 1437",
        ),
        ("losses", ["--mi-weight", "0.1"], "give --weights instead"),
        ("connectivity", ["--points", "4"], "points must be odd and at least 5"),
        ("connectivity", ["--branch-steps", "20"], "branch_steps must be in [0"),
        ("connectivity", ["--learning-rates", "0"], "learning_rates must be positive"),
        (
            "connectivity",
            ["--learning-rates", "1", "1"],
            "learning_rates must be different numbers",
        ),
        ("connectivity", ["--learning-rate", "0.1"], "give --learning-rates"),
        ("connectivity", ["--path-samples", "900"], "path_samples 900 is more than there are: 360"),
        ("few_labels", ["--mi-weight", "0.1"], "give --weights instead"),
        ("few_labels", ["--labels", "250"], "give --label-counts and --algorithms instead"),
        ("placement", ["--ed-weight=0.1"], "give --weights instead"),
        ("semisupervised", ["--train-size", "100"], "train_size is for supervised training"),
        ("pruning", ["--sparsities", "1"], "sparsities must be in [0, 1)"),
        ("pruning", ["--finetune-steps", "0"], "finetune_steps and finetune_learning_rate"),
    ],
)
def test_wrong_values_name_the_option(name, arguments, message, stop, tmp_path):
    assert message in stop(name, "smoke", *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_command_prints_its_tables(monkeypatch, capsys, tmp_path):
    smoothing = importlib.import_module("train.smoothing")
    options = ["smoke", "--steps", "2", "--eval-every", "2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["smoothing", *options])
    run_command(smoothing.PRESETS, smoothing.run)
    shown = capsys.readouterr().out
    assert "Label smoothing: digits" in shown
    assert "What the paper reports" in shown
