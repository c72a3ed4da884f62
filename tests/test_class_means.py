"""Class means against NumPy: weights, absent classes, meaningless values, batch axes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import mirjax
from tests.reference import collapse as reference
from tests.tolerances import assert_near

N, D, C = 20, 5, 4


def case(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(C, N, p=[0.5, 0.25, 0.15, 0.1]).astype(np.int32)
    weights = rng.uniform(0.1, 2, N)
    return rng.normal(size=(N, D)).astype(dtype), labels, weights.astype(dtype)


def class_means(features, labels, weights=None):
    return mirjax.class_means(features, labels, num_classes=C, weights=weights)


compiled = jax.jit(class_means)


def compare(result, expected, bound=1e-6):
    assert isinstance(result, mirjax.ClassMeans)
    for actual, value in zip(result, expected, strict=True):
        assert actual.shape == value.shape
        assert_near(actual, value, bound * max(1.0, np.max(np.abs(value))))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definition(dtype, weighted, x64):
    features, labels, weights = case(dtype)
    weights = weights if weighted else None
    result = compiled(features, labels, weights)
    assert result.means.dtype == result.weight.dtype == dtype
    bound = 1e-6 if dtype == "float32" else 1e-14
    compare(result, reference.class_means(features, labels, C, weights), bound)


def test_without_weights_the_weight_is_the_number_of_samples():
    features, labels, _ = case()
    np.testing.assert_array_equal(compiled(features, labels).weight, np.bincount(labels))


def test_half_precision_is_averaged_in_float32():
    features, labels, _ = case()
    half = jnp.asarray(features, jnp.bfloat16)
    result = compiled(half, labels)
    assert result.means.dtype == jnp.float32
    compare(result, reference.class_means(np.asarray(half, np.float32), labels, C))


def test_an_absent_class_has_mean_and_weight_zero():
    features, labels, weights = case()
    labels = np.where(labels == 2, 0, labels)
    result = compiled(features, labels, weights)
    compare(result, reference.class_means(features, labels, C, weights))
    assert np.all(result.means[2] == 0)
    assert result.weight[2] == 0


def test_weight_zero_drops_a_sample_whatever_it_holds():
    features, labels, weights = case()
    mask = np.where(np.arange(N) % 3 > 0, weights, 0).astype(np.float32)
    expected = reference.class_means(features, labels, C, mask)
    features[mask == 0], labels[mask == 0] = np.nan, -1
    compare(compiled(features, labels, mask), expected)


@pytest.mark.parametrize("fault", ["negative weight", "label too large", "label below zero"])
def test_meaningless_values_give_nan(fault):
    features, labels, weights = case()
    match fault:
        case "negative weight":
            weights[3] = -1
        case "label too large":
            labels[3] = C
        case "label below zero":
            labels[3] = -1
    for part in compiled(features, labels, weights):
        assert np.all(np.isnan(part))


def test_nan_in_a_counted_sample_reaches_its_column():
    features, labels, _ = case()
    features[3, 1] = np.nan
    missing = np.isnan(compiled(features, labels).means)
    np.testing.assert_array_equal(missing, np.arange(D)[None, :] == np.full((C, 1), 1))


def test_order_and_scale_of_the_samples():
    features, labels, weights = case()
    still = compiled(features, labels, weights)
    order = np.random.default_rng(1).permutation(N)
    shuffled = compiled(features[order], labels[order], 8 * weights[order])
    compare(shuffled, (still.means, 8 * still.weight))
    compare(compiled(4 * features, labels, weights), (4 * still.means, still.weight))


def test_global_mean_is_the_weighted_mean_of_the_means():
    features, labels, weights = case()
    means, weight = compiled(features, labels, weights)
    whole = np.average(features, axis=0, weights=weights)
    assert_near(weight @ means / weight.sum(), whole, 1e-6)


def test_means_of_collapsed_features_are_the_head():
    head, labels = mirjax.theory.simplex_etf(C, D), jnp.arange(N) % C
    means = compiled(head[labels], labels).means
    assert_near(means, head, 1e-6)
    assert_near(mirjax.class_interplay(means, head).mir, mirjax.theory.collapsed_mir(C), 1e-5)


@pytest.mark.parametrize("axes", [(3,), (2, 1, 3)])
def test_batch_axes_vmap_jit_and_loop_agree(axes):
    cases = [case(seed=seed) for seed in range(int(np.prod(axes)))]
    stacked = [
        np.stack(parts).reshape(*axes, *parts[0].shape) for parts in zip(*cases, strict=True)
    ]
    loop = [reference.class_means(*c[:2], C, c[2]) for c in cases]
    expected = [
        np.stack(parts).reshape(*axes, *parts[0].shape) for parts in zip(*loop, strict=True)
    ]
    compare(class_means(*stacked), expected)
    compare(compiled(*stacked), expected)
    mapped = functools.reduce(lambda function, _: jax.vmap(function), axes, class_means)
    compare(jax.jit(mapped)(*stacked), expected)


def test_one_trace_for_equal_shapes():
    traced = jax.jit(chex.assert_max_traces(class_means, n=1))
    for seed in range(3):
        traced(*case(seed=seed))


def test_derivatives(x64):
    features, labels, weights = case("float64")
    labels = np.where(labels == 2, 0, labels)
    arguments = jnp.asarray(features), jnp.asarray(weights)
    check_grads(lambda z, w: class_means(z, labels, w), arguments, order=2)


def test_gradient_at_weight_zero_is_finite_and_zero():
    features, labels, weights = case()
    weights[labels == 1], weights[0] = 0, 0
    features[weights == 0] = np.nan

    def total(z, w):
        return sum(jnp.sum(jnp.sin(1 + part)) for part in class_means(z, labels, w))

    gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(features), jnp.asarray(weights))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[weights == 0] == 0)
