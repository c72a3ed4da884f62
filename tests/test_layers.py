import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests.tolerances import assert_near


def activations(seed=0):
    rng = np.random.default_rng(seed)

    def layer(width):
        return jnp.asarray(rng.normal(size=(8, width)).astype(np.float32))

    return {"stem": layer(3), "blocks": [layer(5), layer(5), (layer(3),)], "head": layer(5)}


def test_structure_is_kept_and_values_are_those_of_a_loop():
    layers = activations()
    result = jax.jit(mirjax.layerwise(mirjax.effective_rank))(layers)
    assert jax.tree.structure(result) == jax.tree.structure(layers)
    expected = jax.tree.map(jax.jit(mirjax.effective_rank), layers)
    for actual, right in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert_near(actual, right, 1e-4)


def test_metric_is_traced_once_a_shape():
    shapes = []

    def metric(features):
        shapes.append(features.shape)
        return jnp.sum(features)

    layers = activations()
    jax.jit(mirjax.layerwise(metric))(layers)
    assert sorted(shapes) == [(8, 3), (8, 5)]


def test_layers_of_another_dtype_keep_it():
    layers = [jnp.ones((4, 2)), jnp.ones((4, 2), jnp.bfloat16)]
    result = mirjax.layerwise(lambda x: x[0, 0])(layers)
    assert [value.dtype for value in result] == [jnp.float32, jnp.bfloat16]


def test_shared_arguments_and_results_of_several_fields():
    layers, rows = activations(), activations(1)["stem"]
    result = jax.jit(mirjax.layerwise(mirjax.feature_interplay))(layers, rows)
    assert isinstance(result["head"], mirjax.Interplay)
    expected = jax.jit(mirjax.feature_interplay)(layers["blocks"][1], rows)
    np.testing.assert_allclose(result["blocks"][1], expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_each_layer():
    layers = activations()

    def total(tree):
        return sum(jax.tree.leaves(mirjax.layerwise(mirjax.feature_entropy)(tree)))

    gradient = jax.jit(jax.grad(total))(layers)
    single = jax.jit(jax.grad(mirjax.feature_entropy))
    for actual, layer in zip(jax.tree.leaves(gradient), jax.tree.leaves(layers), strict=True):
        np.testing.assert_allclose(actual, single(layer), rtol=1e-3, atol=1e-5)
        assert np.any(actual != 0)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 3, 2)])
def test_maps_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"activations\['conv'\].*Pool or reshape"):
        mirjax.layerwise(mirjax.effective_rank)({"conv": jnp.ones(shape)})


def test_empty_tree():
    assert mirjax.layerwise(mirjax.effective_rank)({"none": []}) == {"none": []}
