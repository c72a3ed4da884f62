import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from train import bias
from train.evaluation.evaluator import Extractor
from train.evaluation.finished import read_run
from train.run.errors import RunError
from train.supervised import PRESETS, Supervised, load_data, optimizer_of, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = dataclasses.replace(
        PRESETS["smoke"], steps=40, eval_every=40, seeds=2, out=folder, eval_train=False
    )
    return folder, run(settings, quiet=True)


@pytest.mark.slow
def test_a_run_is_opened_as_it_ended(finished):
    folder, result = finished
    opened = read_run(folder, Supervised, load_data, optimizer_of)
    assert opened.step == 40
    assert opened.settings.seeds == 2
    jax.tree.map(np.testing.assert_array_equal, opened.states, result.states)
    assert list(opened.untrained.step) == [0, 0]
    one = jax.tree.map(lambda x: x[1], opened.states)
    features, labels = Extractor(opened.network, opened.data.test, batch_size=100)(one)
    assert features.shape == (360, 64)
    np.testing.assert_array_equal(labels, opened.data.test.labels)
    whole = opened.network.apply(one.params, one.rest, opened.data.test.images, train=False)
    np.testing.assert_allclose(features, whole.features, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_command_writes_numbers_and_a_picture(finished, monkeypatch, capsys):
    folder, result = finished
    monkeypatch.setattr(
        sys, "argv", ["bias", "--run", str(folder), "--max-batches", "4", "--seed", "1"]
    )
    bias.main()
    assert "adjusted for chance by batch size, of all 360 samples" in capsys.readouterr().out
    found = json.loads((folder / "bias-test" / "bias.json").read_text(encoding="utf-8"))
    assert found["n"] == 360
    trained, untrained = found["curves"]["trained"], found["curves"]["untrained"]
    assert trained["batches"][0] == 4
    last = next(r for r in result.records if r["step"] == 40 and r["seed"] == 1)
    first = next(r for r in result.records if r["step"] == 0 and r["seed"] == 1)
    assert trained["mir_whole"] == pytest.approx(last["test_mir"], abs=1e-4)
    assert untrained["mir_whole"] == pytest.approx(first["test_mir"], abs=1e-4)
    for curve, record in ((trained, last), (untrained, first)):
        of_set = curve["mir_debiased_whole"]
        assert of_set == pytest.approx(record["test_mir_debiased"], abs=1e-4)
        # Of batches of 16 as of the set.
        spread = curve["mir_debiased_spread"][0]
        assert abs(curve["mir_debiased_mean"][0] - of_set) < 2 * spread < 0.5
        assert curve["mir_mean"][0] - curve["mir_whole"] > spread
    with Image.open(folder / "bias-test" / "bias.png") as picture:
        assert picture.width == 1300
    with Image.open(folder / "bias-test" / "spectra.png") as picture:
        assert picture.width == 600
    with pytest.raises(SystemExit):
        bias.main()
    assert "bias-test exists; name another place" in capsys.readouterr().err


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        read_run(tmp_path, Supervised, load_data, optimizer_of)
    (tmp_path / "settings.json").write_text('{"settings": {"spam": 1}}', encoding="utf-8")
    with pytest.raises(RunError, match=r"another command or version: .*spam"):
        read_run(tmp_path, Supervised, load_data, optimizer_of)
    (tmp_path / "settings.json").write_text('{"settings": {}}', encoding="utf-8")
    with pytest.raises(RunError, match="has no checkpoint"):
        read_run(tmp_path, Supervised, load_data, optimizer_of)
