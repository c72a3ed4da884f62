"""The lines of `docs/howto/report.md` that write files, where their libraries are installed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirjax.report import report

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "report.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```py\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def block(mark):
    (found,) = (code for code in BLOCKS if mark in code)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_block_is_run_by_a_test():
    marks = ("model.fc", "get_classifier", "attention_mask", "network.head", "classifier.coefs_")
    assert len(BLOCKS) == len({block(mark) for mark in marks}) == 5


def test_pytorch():
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc = torch.nn.Linear(12, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.first(x)))

    images = torch.rand(60, 12)
    model = Model().eval()
    exec(block("model.fc"), {"model": model, "loader": images.split(16)})
    expected = torch.relu(model.first(images)).detach().numpy()
    np.testing.assert_allclose(np.load("features.npy"), expected, atol=1e-3)
    found = report("features.npy", labels=np.arange(60) % 3, head="head.npy")
    assert found.n == 60
    assert np.isfinite(found["mir"].value)


def test_timm():
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    names = {"timm": timm, "torch": torch, "np": np, "name": "resnet10t", "pretrained": False}
    exec(block("get_classifier"), names | {"loader": [torch.rand(4, 3, 64, 64)] * 2})
    found = report("features.npy", labels=np.arange(8), head="head.npy")
    assert found.n == 8


def test_hugging_face():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    settings = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.BertModel(settings).eval()
    ids, mask = torch.randint(0, 50, (9, 7)), torch.ones(9, 7, dtype=torch.long)
    mask[3, 4:] = 0

    def tokenizer(*_, **__):
        return {"input_ids": ids, "attention_mask": mask}

    names = {"model": model, "tokenizer": tokenizer, "sentences": None, "torch": torch, "np": np}
    exec(block("attention_mask"), names)
    found = report("hidden.npy", mask="mask.npy", layers=True)
    assert len(found.layers) == 3


def test_flax():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.head = nnx.Linear(12, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            features = nnx.relu(self.first(x))
            return self.head(features), features

    loader = [jnp.ones((10, 12)) * jnp.arange(10.0)[:, None], jnp.ones((10, 12))]
    names = {"network": Network(nnx.Rngs(0)), "loader": loader, "jax": jax, "np": np}
    exec(block("network.head"), names)
    assert report("features.npy", labels=np.arange(20) % 3, head="head.npy").n == 20


def test_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.neural_network import MLPClassifier

    x, y = datasets.load_iris(return_X_y=True)
    classifier = MLPClassifier((8,), max_iter=2000, random_state=0).fit(x, y)
    exec(block("classifier.coefs_"), {"classifier": classifier, "x": x, "y": y, "np": np})
    found = report("features.npy", labels="labels.npy", head="head.npy", bias="bias.npy")
    assert found["accuracy"].value == pytest.approx(classifier.score(x, y))
