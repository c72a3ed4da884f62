import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests.reference import definition
from tests.tolerances import assert_near


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_gram_is_the_definition():
    features = rows(9, 4)
    kernel = mirjax.gram(features)
    assert_near(kernel, definition.gram(features), 1e-6)
    assert_near(jnp.diagonal(kernel), 1.0, 1e-6)


def test_rows_keep_direction_at_any_scale():
    features = rows(6, 4)
    scales = np.array([1e-36, 1e-20, 1.0, 1e10, 1e20, 1e38], np.float32)[:, None] / 4
    normalized = mirjax.normalize_rows(features * scales)
    assert_near(normalized, definition.unit_rows(features), 1e-5)


def test_zero_row_stays_zero_with_zero_derivative():
    features = rows(3, 4)
    features[1] = 0
    assert np.all(mirjax.normalize_rows(features)[1] == 0)
    for function in (mirjax.normalize_rows, mirjax.gram):
        gradient = jax.grad(lambda x, f=function: jnp.sum(jnp.sin(1 + f(x))))(jnp.asarray(features))
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[1] == 0)


def test_normalization_has_no_derivative_along_the_row():
    features = jnp.asarray(rows(3, 4))
    tangent = jax.jvp(mirjax.normalize_rows, (features,), (features,))[1]
    assert_near(tangent, 0.0, 1e-6)


def test_nan_row_reaches_its_own_row_and_column_only():
    features = rows(4, 3)
    features[2, 0] = np.nan
    missing = np.isnan(mirjax.gram(features))
    expected = np.zeros((4, 4), bool)
    expected[2], expected[:, 2] = True, True
    np.testing.assert_array_equal(missing, expected)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 1, 5, 3)])
def test_batch_axes_are_a_loop(shape):
    features = rows(*shape)
    single = [mirjax.gram(x) for x in features.reshape(-1, 5, 3)]
    np.testing.assert_allclose(
        mirjax.gram(features), np.stack(single).reshape(*shape[:-1], 5), rtol=1e-6, atol=1e-6
    )
