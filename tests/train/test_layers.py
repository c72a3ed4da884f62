import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from train.data.types import from_arrays
from train.engine.state import Network, initial_state
from train.evaluation.layers import LayerEvaluator, head_coordinates
from train.run.lanes import lanes_of
from train.supervised import optimizer_of


def test_coordinates_have_the_gram_matrix_of_the_head():
    head = jax.random.normal(jax.random.key(0), (5, 8))
    for rows in (head, head[:, :3]):
        found = head_coordinates(rows)
        assert found.shape == (5, min(rows.shape))
        np.testing.assert_allclose(mirjax.gram(found), mirjax.gram(rows), atol=1e-5)


def test_layers_are_measured_as_the_metrics_of_their_activations(tiny, settings):
    two = dataclasses.replace(settings, seeds=2)
    network = Network.of(two, tiny)
    states = initial_state(network, optimizer_of(two), lanes_of(two))
    values = LayerEvaluator(network, tiny.test, 3, two)(states)[1]
    one = jax.tree.map(lambda x: x[1], states)
    activations = network.layers(one.params, one.rest, tiny.test.images)
    assert list(activations) == ["layer1", "layer2"]
    head, _ = network.head(one.params, one.rest)
    labels = tiny.test.labels
    assert values["n"] == 25
    for name, features in activations.items():
        expected = mirjax.feature_interplay(features, head[labels])
        assert values[f"{name}_mir"] == pytest.approx(float(expected.mir), abs=1e-5)
        assert values[f"{name}_hdr"] == pytest.approx(float(expected.hdr), abs=1e-5)
        assert values[f"{name}_entropy"] == pytest.approx(float(expected.entropy1), abs=1e-5)
        rank = float(mirjax.effective_rank(features))
        assert values[f"{name}_effective_rank"] == pytest.approx(rank, rel=1e-4)
        parts = [
            mirjax.feature_interplay(features[i : i + 8], head[labels][i : i + 8])
            for i in (0, 8, 16)
        ]
        mean = float(np.mean([part.mir for part in parts]))
        assert values[f"{name}_mir_batch"] == pytest.approx(mean, abs=1e-5)
    # The last layer is the features'.
    outputs = network.apply(one.params, one.rest, tiny.test.images, train=False)
    assert jnp.allclose(outputs.features, activations["layer2"], atol=1e-6)
    collapse = mirjax.neural_collapse(outputs.features, labels, head, num_classes=3)
    assert values["layer2_nc1"] == pytest.approx(float(collapse.nc1), rel=1e-4)


def test_layers_keep_their_order(settings):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    data = from_arrays("noise", images, np.arange(12) % 3, images, np.arange(12) % 3)
    own = dataclasses.replace(settings, model="wrn-10-1")
    network = Network.of(own, data)
    states = initial_state(network, optimizer_of(own), lanes_of(own))
    (values,) = LayerEvaluator(network, data.test, 3, own)(states)
    suffix = "_effective_rank"
    names = [name.removesuffix(suffix) for name in values if name.endswith(suffix)]
    assert names == ["stem", "block1", "block2", "block3", "last"]
