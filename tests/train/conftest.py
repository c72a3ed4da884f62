import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.types import from_arrays
from train.engine.state import Outputs
from train.supervised import Supervised


@pytest.fixture(autouse=True, scope="module")
def users_promotion():
    """Optax and Flax are not written for strict promotion, which the library's tests run under."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session")
def tiny():
    """Three classes of noisy 4 × 4 images: 60 to train, 25 to test."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(60, 200, (3, 4, 4, 1))

    def split(n):
        labels = np.arange(n) % 3
        images = centres[labels] + rng.normal(0, 20, (n, 4, 4, 1))
        return images.clip(0, 255).astype(np.uint8), labels.astype(np.int32)

    return from_arrays("tiny", *split(60), *split(25))


@pytest.fixture
def blackened(tiny):
    """The same data with three black images in the test split."""
    images = tiny.test.images.copy()
    images[[1, 5, 24]] = 0
    return dataclasses.replace(tiny, test=dataclasses.replace(tiny.test, images=images))


@pytest.fixture
def pixels():
    """A network whose features are the pixels: those of black images have no direction."""
    weights = jax.random.normal(jax.random.key(0), (3, 16))

    def flat(images):
        return jnp.reshape(images, (len(images), -1)).astype(jnp.float32)

    def apply(_, rest, images, **__):
        features = flat(images)
        return Outputs(features @ weights.T, features, weights, rest)

    return SimpleNamespace(
        width=16,
        apply=apply,
        head=lambda *_: (weights, jnp.zeros(3)),
        layers=lambda *arguments: {"first": flat(arguments[-1]) + 1, "last": flat(arguments[-1])},
    )


@pytest.fixture
def settings(tmp_path):
    """A run of a few steps."""
    return dataclasses.replace(
        Supervised(),
        steps=8,
        eval_every=4,
        batch_size=16,
        metric_batch=8,
        eval_batch=10,
        steps_per_call=3,
        mi_weight=0.2,
        ed_weight=0.1,
        out=tmp_path / "run",
    )
