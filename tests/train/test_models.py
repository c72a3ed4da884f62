import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from train.models import builder


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("name", "shape", "classes", "width"),
    [("mlp", (8, 8, 1), 10, 64), ("conv", (16, 16, 3), 7, 128), ("wrn-10-1", (16, 16, 3), 10, 64)],
)
def test_models_return_logits_and_features_of_a_named_head(name, shape, classes, width):
    model = builder(name, image_shape=shape, num_classes=classes)(nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (4, *shape))
    logits, features = jax.jit(lambda m, x: m(x, train=False))(model, images)
    assert features.shape == (4, width)
    kernel, bias = model.head.kernel[...], model.head.bias[...]
    assert kernel.shape == (width, classes)
    assert jnp.allclose(logits, features @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp", ["layer1", "layer2"]),
        ("conv", ["conv1", "conv2", "conv3"]),
        ("wrn-10-1", ["stem", "block1", "block2", "block3", "last"]),
    ],
)
def test_bfloat16_computes_in_halves_and_keeps_the_rest_in_float32(name, layers):
    shape = (8, 8, 3)
    build = builder(name, image_shape=shape, num_classes=10, dtype=jnp.bfloat16)
    model, full = build(nnx.Rngs(0)), builder(name, image_shape=shape, num_classes=10)(nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (16, *shape))
    activations = model.activations(images, train=False)
    assert list(activations) == layers
    assert {x.dtype for x in activations.values()} == {jnp.dtype("bfloat16")}
    logits, features = model(images, train=True)
    assert logits.dtype == features.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    expected = full(images, train=True)[1]
    error = jnp.linalg.norm(features - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < error < 0.03


def test_wide_resnet_28_2_has_the_published_size():
    model = nnx.eval_shape(
        lambda: builder("wrn-28-2", image_shape=(32, 32, 3), num_classes=10)(nnx.Rngs(0))
    )
    # Convolutions 432 + 1,460,736, batch norm 5,152 and head 1,290: summed by hand from the paper.
    assert count(model) == 1_467_610
    assert model.head.in_features == 128


def test_batch_norm_moves_in_training_only():
    model = builder("conv", image_shape=(8, 8, 1), num_classes=3)(nnx.Rngs(0))
    before = model.norms[0].mean[...].copy()
    images = 2 + jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    model(images, train=False)
    assert jnp.array_equal(model.norms[0].mean[...], before)
    model(images, train=True)
    assert not jnp.array_equal(model.norms[0].mean[...], before)


@pytest.mark.parametrize("name", ["conv", "wrn-10-1"])
def test_batch_norm_momentum_is_the_weight_of_the_old_statistics(name):
    images = 2 + jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    moved = []
    for momentum in (0.9, 0.99):
        build = builder(name, image_shape=(8, 8, 1), num_classes=3, batch_norm_momentum=momentum)
        model = build(nnx.Rngs(0))
        norm = model.norms[0] if name == "conv" else model.blocks[0].norm1
        model(images, train=True)
        moved.append(norm.mean[...])
    assert jnp.allclose(moved[0], 10 * moved[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["resnet", "wrn-28", "wrn-a-b"])
def test_unknown_model_lists_what_there_is(name):
    with pytest.raises(ValueError, match=r"unknown.*mlp, conv, wrn"):
        builder(name, image_shape=(8, 8, 1), num_classes=3)


def test_impossible_depth():
    build = builder("wrn-27-2", image_shape=(8, 8, 1), num_classes=3)
    with pytest.raises(ValueError, match="depth must be 6 k \\+ 4"):
        build(nnx.Rngs(0))
