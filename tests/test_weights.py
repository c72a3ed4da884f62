"""Sample weights: masks drop, integers repeat, nothing left is zero, negative is NaN."""

import functools

import jax
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_interplay, assert_near

PATHS = {"samples": (12, 8, 3), "moments, C < d": (12, 3, 2), "moments, C > d": (12, 2, 3)}
every_path = pytest.mark.parametrize("path", PATHS)
pair = jax.jit(mirjax.feature_interplay)


def weighted_case(path, dtype="float32"):
    case = cases.cast(cases.make("random", *PATHS[path]), dtype)
    return *case, np.array([1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1], dtype)


@every_path
def test_mask_drops_rows(path, x64):
    features, head, labels, mask = weighted_case(path, "float64")
    keep = mask > 0
    masked = compiled.interplay(features, head, labels, weights=mask)
    dropped = compiled.interplay(features[keep], head, labels[keep])
    np.testing.assert_allclose(masked, dropped, rtol=1e-11, atol=1e-12)


@every_path
@pytest.mark.parametrize("content", [np.nan, np.inf, 1e30])
def test_masked_rows_are_not_looked_at(path, content):
    features, head, labels, mask = weighted_case(path)
    clean = compiled.interplay(features, head, labels, weights=mask)
    features[mask == 0], labels[mask == 0] = content, -1
    np.testing.assert_array_equal(compiled.interplay(features, head, labels, weights=mask), clean)


@every_path
def test_masked_rows_leave_the_gradient_finite(path):
    features, head, labels, mask = weighted_case(path)
    features[mask == 0], labels[mask == 0] = np.nan, -1
    gradient = compiled.mixed_gradient(features, head, labels, mask, np.ones(3, np.float32))
    assert all(np.all(np.isfinite(part)) for part in gradient)
    assert np.all(gradient[0][mask == 0] == 0)


@every_path
def test_integer_weights_repeat(path, x64):
    features, head, labels, _ = weighted_case(path, "float64")
    counts = np.array([2, 0, 1, 3, 1, 1, 2, 1, 0, 1, 2, 4])
    result = compiled.interplay(features, head, labels, weights=counts.astype(np.float64))
    repeated = definition.interplay(features.repeat(counts, 0), head, labels.repeat(counts))
    assert_interplay(result, repeated)


@every_path
def test_weights_are_those_of_the_definition_at_any_scale(path):
    features, head, labels, _ = weighted_case(path)
    weights = np.random.default_rng(0).uniform(0, 3, 12).astype(np.float32)
    expected = definition.interplay(features, head, labels, weights)
    for scale in (1e-30, 1, 1e30):
        scaled = weights * np.float32(scale)
        assert_interplay(compiled.interplay(features, head, labels, weights=scaled), expected)


@every_path
def test_no_weight_left_is_zero(path):
    features, head, labels, mask = weighted_case(path)
    result = compiled.interplay(features, head, labels, weights=0 * mask)
    np.testing.assert_array_equal(result, 0)
    gradient = compiled.mixed_gradient(features, head, labels, 0 * mask, np.ones(3, np.float32))
    assert all(np.all(part == 0) for part in gradient)


@every_path
def test_negative_weight_is_nan(path):
    features, head, labels, mask = weighted_case(path)
    mask[0] = -1
    assert np.all(np.isnan(compiled.interplay(features, head, labels, weights=mask)))


def test_weights_of_two_representations():
    first, head, labels, mask = weighted_case("samples")
    second = first[:, :3] + head[labels][:, :3]
    expected = definition.feature_interplay(first[mask > 0], second[mask > 0])
    assert_interplay(pair(first, second, weights=mask), expected)
    second[mask == 0] = np.nan
    assert_interplay(pair(first, second, weights=mask), expected)
    np.testing.assert_array_equal(pair(first, second, weights=0 * mask), 0)


@pytest.mark.parametrize("kind", [bool, np.int32, np.float16])
def test_masks_of_any_real_dtype(kind):
    features, head, labels, mask = weighted_case("samples")
    typed = compiled.interplay(features, head, labels, weights=mask.astype(kind))
    np.testing.assert_array_equal(typed, compiled.interplay(features, head, labels, weights=mask))


@pytest.mark.parametrize("function", [mirjax.feature_entropy, mirjax.effective_rank])
def test_weights_of_one_representation(function):
    features, _, _, mask = weighted_case("samples")
    weighted = functools.partial(function, features)
    expected = definition.feature_entropy(features, mask)
    expected = np.exp(expected) if function is mirjax.effective_rank else expected
    assert_near(weighted(weights=mask), expected, 2e-5 * expected)
    assert np.isnan(weighted(weights=-mask))
    assert weighted(weights=0 * mask) == float(function is mirjax.effective_rank)
