"""Values that have no meaning: zero rows, NaN, labels out of range; and what is refused outright."""

import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_interplay

N, D, C = 12, 4, 3


def arrays():
    return cases.cast(cases.make("random", N, D, C), "float32")


def test_zero_rows_count_as_weight_zero():
    features, head, labels = arrays()
    features[[1, 5]], head[2] = 0, 0
    result = compiled.interplay(features, head, labels)
    weights = ((labels != 2) & (np.arange(N) != 1) & (np.arange(N) != 5)).astype(np.float32)
    assert_interplay(result, definition.interplay(features, head, labels, weights))
    filled = np.where(features == 0, np.float32(1), features)
    np.testing.assert_allclose(
        result, compiled.interplay(filled, head, labels, weights=weights), rtol=1e-5, atol=1e-6
    )


def test_only_zero_rows_are_zero():
    features, head, labels = arrays()
    np.testing.assert_array_equal(compiled.interplay(0 * features, head, labels), 0)
    np.testing.assert_array_equal(compiled.interplay(features, 0 * head, labels), 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["features", "head"])
def test_non_finite_gives_nan(value, where):
    features, head, labels = arrays()
    (features if where == "features" else head)[1, 2] = value
    result = compiled.interplay(features, head, labels)
    assert np.isnan(result.mutual_information)
    assert np.isnan(result.mir)
    assert np.isnan(result.hdr)


@pytest.mark.parametrize("label", [-1, C, 2**30])
def test_label_out_of_range_gives_nan(label):
    features, head, labels = arrays()
    labels[3] = label
    assert np.all(np.isnan(compiled.interplay(features, head, labels)))


Z, W, Y = jnp.ones((N, D)), jnp.ones((C, D)), jnp.zeros(N, jnp.int32)
REFUSED = {
    "transposed Flax kernel": (
        lambda: mirjax.interplay(Z, W.T, Y),
        ValueError,
        r"features of shape \(12, 4\) and head of shape \(4, 3\).*pass its transpose, kernel\.T",
    ),
    "width": (
        lambda: mirjax.interplay(Z, jnp.ones((C, 5)), Y),
        ValueError,
        r"features of shape \(12, 4\) and head of shape \(3, 5\) disagree in d: 4 against 5",
    ),
    "number of samples": (
        lambda: mirjax.interplay(Z, W, Y[:7]),
        ValueError,
        r"features of shape \(12, 4\) and labels of shape \(7,\) disagree .* 12 against 7",
    ),
    "weights": (
        lambda: mirjax.interplay(Z, W, Y, weights=jnp.ones(5)),
        ValueError,
        r"features of shape \(12, 4\) and weights of shape \(5,\).*12 against 5",
    ),
    "vector": (
        lambda: mirjax.feature_entropy(jnp.ones(4)),
        ValueError,
        r"features must have shape \[\.\.\., n, d\], got \(4,\)",
    ),
    "empty": (
        lambda: mirjax.gram(jnp.ones((0, 4))),
        ValueError,
        r"features of shape \(0, 4\) is empty along n",
    ),
    "not square": (
        lambda: mirjax.matrix_entropy(Z),
        ValueError,
        r"kernel must be square.*\(12, 4\).*gram\(kernel\)",
    ),
    "two kernels": (
        lambda: mirjax.mutual_information(jnp.eye(3), jnp.eye(4)),
        ValueError,
        r"kernel1 of shape \(3, 3\) and kernel2 of shape \(4, 4\).*3 against 4",
    ),
    "two representations": (
        lambda: mirjax.feature_interplay(Z, jnp.ones((7, 2))),
        ValueError,
        r"features1 of shape \(12, 4\) and features2 of shape \(7, 2\).*12 against 7",
    ),
    "class means": (
        lambda: mirjax.class_interplay(W, jnp.ones((5, D))),
        ValueError,
        r"class_means of shape \(3, 4\) and head of shape \(5, 4\).*3 against 5",
    ),
    "global mean": (
        lambda: mirjax.class_interplay(W, W, global_mean=jnp.ones(7)),
        ValueError,
        r"class_means of shape \(3, 4\) and global_mean of shape \(7,\).*4 against 7",
    ),
    "number of classes": (
        lambda: mirjax.neural_collapse(Z, Y, W, num_classes=5),
        ValueError,
        r"head of shape \(3, 4\) has 3 rows, but num_classes is 5",
    ),
    "no class": (
        lambda: mirjax.class_means(Z, Y, num_classes=0),
        ValueError,
        "num_classes must be positive, got 0",
    ),
    "classes as an array": (
        lambda: mirjax.class_means(Z, Y, num_classes=jnp.int32(C)),
        TypeError,
        "num_classes must be a Python integer",
    ),
    "labels of other samples": (
        lambda: mirjax.class_means(Z, Y[:5], num_classes=C),
        ValueError,
        r"features of shape \(12, 4\) and labels of shape \(5,\).*12 against 5",
    ),
    "bias": (
        lambda: mirjax.neural_collapse(Z, Y, W, num_classes=C, bias=jnp.ones(5)),
        ValueError,
        r"head of shape \(3, 4\) and bias of shape \(5,\).*3 against 5",
    ),
    "integer features": (
        lambda: mirjax.gram(jnp.ones((3, 3), jnp.int32)),
        TypeError,
        r"features must have dtype .*got int32 of shape \(3, 3\)",
    ),
    "complex features": (
        lambda: mirjax.gram(jnp.ones((3, 3), jnp.complex64)),
        TypeError,
        r"features must have dtype .*got complex64",
    ),
    "float labels": (
        lambda: mirjax.interplay(Z, W, jnp.zeros(N)),
        TypeError,
        r"labels must be integers.*float32 of shape \(12,\).*feature_interplay",
    ),
    "complex weights": (
        lambda: mirjax.feature_entropy(Z, weights=jnp.ones(N, jnp.complex64)),
        TypeError,
        r"weights must be real",
    ),
    "a list": (
        lambda: mirjax.gram([[1.0, 2.0]]),
        TypeError,
        r"features must be an array of shape \[\.\.\., n, d\], got list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_names_argument_and_shapes(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
