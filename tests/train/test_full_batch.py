import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.full_batch import precise_cross_entropy

GAPS = [0.0, 1.0, 10.0, 18.0, 30.0, 80.0, -50.0]


def in_float64(logits, labels):
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    others = np.exp(logits - own).sum(1) - 1
    return np.log1p(others)


@pytest.mark.parametrize("gap", GAPS)
def test_small_losses_keep_their_digits(gap):
    logits = np.zeros((3, 5), np.float32)
    labels = np.array([0, 2, 4])
    logits[np.arange(3), labels] = gap
    loss = precise_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    expected = np.log1p(4 * np.exp(-np.float64(gap)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    usual = jax.nn.logsumexp(jnp.asarray(logits), axis=1) - logits[np.arange(3), labels]
    if gap in (18.0, 30.0):  # what this form is for
        assert abs(float(usual[0]) / expected - 1) > 0.01


@pytest.mark.parametrize("gap", GAPS)
def test_gradients_keep_their_digits_too(gap):
    logits = jnp.zeros((1, 5)).at[0, 2].set(gap)
    labels = jnp.array([2])
    gradient = jax.grad(lambda x: precise_cross_entropy(x, labels)[0])(logits)[0]
    small = np.exp(-np.float64(gap))
    each = small / (1 + 4 * small)
    np.testing.assert_allclose(gradient, [each, each, -4 * each, each, each], rtol=1e-4, atol=1e-38)


def test_random_logits():
    logits = 5 * jax.random.normal(jax.random.key(0), (50, 7))
    labels = np.arange(50) % 7
    loss = precise_cross_entropy(logits, jnp.asarray(labels))
    np.testing.assert_allclose(loss, in_float64(logits, labels), rtol=1e-4)
