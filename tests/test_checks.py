"""`mirjax.check` finds every value without meaning, eagerly and under checkify."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import mirjax


def sound():
    features, head = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)
    labels, weights = np.array([0, 1, 1, 0]), np.ones(4, np.float32)
    options = {"weights": weights, "kernel": np.eye(3, dtype=np.float32)}
    return (features, head, labels), options


def broken(name):
    """Arguments of `check` with one fault, and the message it raises."""
    (features, head, labels), options = sound()
    weights, kernel = options.values()
    match name:
        case "NaN in features":
            features[2, 1] = np.nan
            message = "features: 1 of 4 rows hold NaN or infinity"
        case "infinity in head":
            head[1, 0] = np.inf
            message = "head: 1 of 2 rows hold NaN or infinity"
        case "zero rows of features":
            features[[0, 3]] = 0
            message = "features: 2 of 4 rows are all zero"
        case "zero row of head":
            head[0] = 0
            message = "head: 1 of 2 rows are all zero"
        case "label too large":
            labels[1] = 2
            message = r"labels: 1 of 4 entries lie outside \[0, 2\)"
        case "label negative":
            labels[:3] = -1
            message = r"labels: 3 of 4 entries lie outside \[0, 2\)"
        case "negative weight":
            weights[1] = -1
            message = "weights: 1 of 4 entries are negative"
        case "NaN weight":
            weights[1] = np.nan
            message = "weights: 1 of 4 entries are NaN or infinite"
        case "no weight":
            weights[:] = 0
            message = "weights: 1 of 1 sets are all zero"
        case "NaN in kernel":
            kernel[1, 1] = np.nan
            message = "kernel: 1 of 9 entries are NaN"
        case "skew kernel":
            kernel[0, 1] = 0.5
            message = "kernel: 2 of 9 entries differ from those of the transpose"
        case "indefinite kernel":
            kernel[0, 1] = kernel[1, 0] = 2.0
            message = "kernel: 1 of 3 eigenvalues are negative"
    return (features, head, labels), options, message


FAULTS = (
    "NaN in features",
    "infinity in head",
    "zero rows of features",
    "zero row of head",
    "label too large",
    "label negative",
    "negative weight",
    "NaN weight",
    "no weight",
    "NaN in kernel",
    "skew kernel",
    "indefinite kernel",
)


def inside(arguments, options):
    mirjax.check(*arguments, **options)
    return jnp.sum(arguments[0])


checked = jax.jit(checkify.checkify(inside))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_eagerly(fault):
    arguments, options, message = broken(fault)
    with pytest.raises(ValueError, match=message):
        mirjax.check(*arguments, **options)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_inside_jit(fault):
    arguments, options, message = broken(fault)
    error, _ = checked(arguments, options)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_sound_values_pass():
    arguments, options = sound()
    assert mirjax.check(*arguments, **options) is None
    error, _ = checked(arguments, options)
    error.throw()


def test_samples_of_weight_zero_are_not_looked_at():
    (features, head, labels), options = sound()
    features[1], labels[1], options["weights"][1] = np.nan, -1, 0
    mirjax.check(features, head, labels, **options)


def test_message_says_where():
    features = np.ones((5, 3), np.float32)
    features[3] = 0
    with pytest.raises(ValueError, match="first at row 3"):
        mirjax.check(features)


def test_labels_need_a_head():
    with pytest.raises(ValueError, match="pass head as well"):
        mirjax.check(labels=np.zeros(3, np.int32))


def test_jit_without_checkify_is_an_error():
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(mirjax.check)(jnp.ones((4, 3)))
