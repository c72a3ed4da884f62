"""Values of features against head, class means and second representations, by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_interplay, assert_near
from tests.versions import enable_x64

DTYPES = ("float32", "float64")
compiled_pair = jax.jit(mirjax.feature_interplay)


def compare(case, dtype):
    arguments = cases.cast(case, dtype)
    with enable_x64(dtype == "float64"):
        result = compiled.interplay(*arguments)
    assert result.mir.dtype == dtype
    assert_interplay(result, definition.interplay(*arguments))


@pytest.mark.parametrize("path", cases.SHAPES)
@pytest.mark.parametrize("degeneracy", cases.DEGENERACIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_interplay_is_the_definition(path, degeneracy, dtype):
    compare(cases.make(degeneracy, *cases.SHAPES[path]), dtype)


@pytest.mark.parametrize("shape", cases.SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_interplay_at_every_size(shape, dtype):
    compare(cases.make("random", *shape), dtype)


@pytest.mark.parametrize("degeneracy", ["low rank", "collapse"])
def test_interplay_of_many_samples_of_low_rank(degeneracy):
    # Hundreds of zero eigenvalues: each must be far below the rounding error of the largest.
    compare(cases.make(degeneracy, 600, 64, 10), "float32")


@pytest.mark.parametrize("degeneracy", ["random", "identical samples", "zero rows", "collapse"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20, 6, 4), (20, 3, 4)])
def test_two_representations(degeneracy, dtype, shape):
    n, d1, d2 = shape  # n <= d1 d2, and n > d1 d2
    first, head, labels = cases.make(degeneracy, n, d1, 4 if d1 > 3 else 2)
    second = np.random.default_rng(1).normal(size=(n, d2))
    if degeneracy == "collapse":
        second = np.pad(head, ((0, 0), (0, 6)))[labels, :d2] + 0.1
    first, second = first.astype(dtype), second.astype(dtype)
    with enable_x64(dtype == "float64"):
        result = compiled_pair(first, second)
    assert_interplay(result, definition.feature_interplay(first, second))


def test_soft_labels_that_are_hard_give_the_interplay():
    features, head, labels = cases.cast(cases.make("random", 64, 16, 8), "float32")
    soft = compiled_pair(features, jax.nn.one_hot(labels, 8) @ head)
    np.testing.assert_allclose(soft, compiled.interplay(features, head, labels), atol=2e-5)


def class_case(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(5, 7)).astype(np.float32)


def test_class_interplay_centres_the_means():
    means, head = class_case()
    expected = definition.class_interplay(means, head)
    assert_interplay(compiled.class_interplay(means, head), expected)
    shifted = compiled.class_interplay(means + np.float32(3), head)
    np.testing.assert_allclose(shifted, expected, atol=1e-5)


def test_class_interplay_of_means_near_the_largest_number():
    means, head = class_case()
    means = means / np.abs(means).max()
    large = compiled.class_interplay((3e38 * means).astype(np.float32), head)
    assert_interplay(large, definition.class_interplay(means, head))


def test_class_interplay_with_a_global_mean():
    means, head = class_case()
    centre = np.linspace(-1, 1, 7).astype(np.float32)
    result = compiled.class_interplay(means, head, global_mean=centre)
    assert_interplay(result, definition.class_interplay(means, head, centre))
    own = compiled.class_interplay(means, head, global_mean=means.mean(0))
    np.testing.assert_allclose(own, compiled.class_interplay(means, head), atol=1e-5)


@pytest.mark.parametrize("classes", [3, 10])
def test_class_interplay_at_collapse(classes):
    etf = cases.simplex(classes, classes + 1).astype(np.float32)
    result = compiled.class_interplay(4 * etf + np.float32(2), etf)
    assert_near(result.mir, mirjax.theory.collapsed_mir(classes), 1e-5)
    assert_near(result.hdr, 0.0, 1e-5)
    assert_near(result.entropy1, mirjax.theory.collapsed_entropy(classes), 2e-5)


@pytest.mark.parametrize("shift", [0.0, 0.1, 1e6])
def test_equal_class_means_have_no_direction(shift):
    _, head = class_case()
    result = compiled.class_interplay(np.full((5, 7), shift, np.float32), head)
    np.testing.assert_array_equal(result, 0.0)


def test_one_class_at_the_global_mean_drops_out():
    means, head = class_case()
    centre = means[2]
    result = compiled.class_interplay(means, head, global_mean=centre)
    rest = np.array([0, 1, 3, 4])
    assert_interplay(result, definition.class_interplay(means[rest], head[rest], centre))


@pytest.mark.parametrize("made_in", ["float32", "bfloat16"])
def test_a_class_that_lies_at_the_global_mean_but_for_rounding_drops_out(made_in, x64):
    means, head = (part.astype(float) for part in class_case())
    centre = means[2] * (1 + 0.4 * float(jnp.finfo(made_in).eps))
    rest = np.array([0, 1, 3, 4])
    expected = definition.class_interplay(means[rest], head[rest], centre)
    found = mirjax.class_interplay(means, head, global_mean=centre, precision=made_in)
    assert_interplay(found, expected)
    if made_in == "bfloat16":  # which a bfloat16 array says itself
        made = jnp.asarray(means).astype(made_in)
        found = mirjax.class_interplay(made, head, global_mean=centre)
        assert_near(found.entropy1, expected.entropy1, 1e-2)


def test_broadcast_of_a_batch_of_class_means():
    means, head = class_case()
    batch = compiled.class_interplay(np.stack([means, 2 * means]), np.stack([head, head]))
    assert batch.mir.shape == (2,)
    np.testing.assert_allclose(batch.mir[0], batch.mir[1], rtol=1e-5)
    assert_near(batch.mir[0], definition.class_interplay(means, head).mir, 2e-5)
    assert jnp.all(batch.hdr >= 0)
