import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import collapse as reference
from tests.tolerances import assert_near

N, D, C = 24, 6, 4


def case(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    features, head = rng.normal(size=(N, D)), rng.normal(size=(C, D))
    labels = rng.choice(C, N, p=[0.5, 0.25, 0.15, 0.1]).astype(np.int32)
    return features.astype(dtype), labels, head.astype(dtype)


def compare(arguments, bound=1e-10, **options):
    result = compiled.neural_collapse(*arguments, num_classes=C, **options)
    expected = reference.neural_collapse(*arguments, **options)
    for name, value in expected.items():
        assert_near(getattr(result, name), value, bound * max(1.0, abs(value)))


def test_imbalanced_classes(x64):
    compare(case())


def test_float32():
    compare(case("float32"), bound=1e-4)


def test_empty_class(x64):
    features, labels, head = case()
    compare((features, np.where(labels == 2, 0, labels), head))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_bias(scale, x64):
    compare(case(), bias=scale * np.random.default_rng(1).normal(size=C))


def test_weights(x64):
    compare(case(), weights=np.random.default_rng(1).uniform(0, 2, N))


def test_mask_drops_rows_whatever_they_hold(x64):
    features, labels, head = case()
    mask = (np.arange(N) % 3 > 0).astype(np.float64)
    expected = reference.neural_collapse(features, labels, head, weights=mask)
    features[mask == 0], labels[mask == 0] = np.nan, -1
    result = compiled.neural_collapse(features, labels, head, num_classes=C, weights=mask)
    np.testing.assert_allclose(result, list(expected.values()), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_exact_collapse(scale):
    head = cases.simplex(C, D).astype(np.float32)
    labels = np.arange(N) % C
    features = np.float32(scale) * head[labels]
    result = compiled.neural_collapse(features, labels.astype(np.int32), head, num_classes=C)
    for name, value in result._asdict().items():
        assert_near(value, 1.0 if name == "nc4" else 0.0, 1e-6)


def test_a_shift_of_the_features_changes_only_nc4(x64):
    features, labels, head = case()
    moved = compiled.neural_collapse(features + 3.0, labels, head, num_classes=C)
    still = compiled.neural_collapse(features, labels, head, num_classes=C)
    assert moved.nc4 != still.nc4
    moved, still = moved._replace(nc4=0.0), still._replace(nc4=0.0)
    np.testing.assert_allclose(moved, still, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_feature_is_no_direction_of_the_means(dtype, x64):
    # Balanced, so that the rank of the means is C - 1 and rounding could make it C.
    features, head, _ = cases.cast(cases.make("constant column", 60, 8, 4), dtype)
    labels = (np.arange(60) % 4).astype(np.int32)
    whole = compiled.neural_collapse(features, labels, head, num_classes=4)
    without = compiled.neural_collapse(features[:, 1:], labels, head[:, 1:], num_classes=4)
    bound = 1e-3 if dtype == "float32" else 1e-9
    assert_near(whole.nc1, without.nc1, float(without.nc1) * bound)


def test_equal_class_means_have_infinite_nc1():
    _, labels, head = case("float32")
    for same in (np.zeros((N, D), np.float32), np.full((N, D), 0.3, np.float32)):
        assert compiled.neural_collapse(same, labels, head, num_classes=C).nc1 == np.inf


@pytest.mark.parametrize("fault", ["negative weight", "label", "no weight"])
def test_meaningless_values_give_nan(fault):
    features, labels, head = case("float32")
    weights = np.ones(N, np.float32)
    match fault:
        case "negative weight":
            weights[3] = -1
        case "label":
            labels[3] = C
        case "no weight":
            weights[:] = 0
    result = compiled.neural_collapse(features, labels, head, num_classes=C, weights=weights)
    assert np.all(np.isnan(result))


def test_nan_sample_gives_nan():
    features, labels, head = case("float32")
    features[3, 1] = np.nan
    result = compiled.neural_collapse(features, labels, head, num_classes=C)
    assert np.isnan([result.nc1, result.nc2_equinorm, result.nc2_equiangle, result.nc3]).all()


SMOOTH = [name for name in mirjax.NeuralCollapse._fields if name != "nc4"]


@jax.jit
def smooth(features, labels, head, mix):
    result = mirjax.neural_collapse(features, labels, head, num_classes=C)
    return jnp.dot(mix, jnp.stack([getattr(result, name) for name in SMOOTH]))


smooth_gradient = jax.jit(jax.grad(smooth, argnums=(0, 2)))


@pytest.mark.parametrize("index", range(len(SMOOTH)))
def test_gradient_is_that_of_the_definition(index, x64):
    features, labels, head = case()
    step = np.random.default_rng(2).normal(size=(N + C, D))

    def value(s):
        moved = features + s * step[:N], labels, head + s * step[N:]
        return reference.neural_collapse(*moved)[SMOOTH[index]]

    mix = np.eye(len(SMOOTH))[index]
    parts = smooth_gradient(features, labels, head, mix)
    actual = np.sum(np.concatenate(parts) * step)
    assert_near(actual, (value(1e-5) - value(-1e-5)) / 2e-5, 1e-6 * max(1.0, abs(actual)))


@pytest.mark.parametrize("degeneracy", ["collapse", "low rank", "empty classes", "constant column"])
def test_gradient_is_finite(degeneracy):
    features, head, labels = cases.cast(cases.make(degeneracy, N, D, C), "float32")
    mix = np.ones(len(SMOOTH), np.float32)
    for part in smooth_gradient(features, labels, head, mix):
        assert np.all(np.isfinite(part))


def test_nc4_has_no_derivative():
    features, labels, head = case("float32")
    gradient = jax.grad(lambda z: mirjax.neural_collapse(z, labels, head, num_classes=C).nc4)
    assert np.all(gradient(jnp.asarray(features)) == 0)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("classes", [3, 10])
def test_the_sum_of_centred_means_is_no_direction(streamed, classes):
    # A few strong directions that all classes share, and many samples: what rounding leaves of the
    # sum of the centred means must not count as a direction between classes.
    rng = np.random.default_rng(0)
    n, width = 20_000, 24
    labels = (np.arange(n) % classes).astype(np.int32)
    shared = rng.normal(size=(n, 2)) @ rng.normal(size=(2, width)) + 3
    own = 0.03 * rng.normal(size=(classes, width))[labels]
    features = (shared + own + 0.05 * rng.normal(size=(n, width))).astype(np.float32)
    head = rng.normal(size=(classes, width)).astype(np.float32)
    if streamed:
        moments = mirjax.ClassMoments.zeros(classes, width)
        for start in range(0, n, 4000):
            part = slice(start, start + 4000)
            moments = compiled.update(moments, features[part], labels[part])
        found = compiled.collapse_of_moments(moments, head)
    else:
        found = compiled.neural_collapse(features, labels, head, num_classes=classes)
    exact = features.astype(np.float64)
    means = np.stack([exact[labels == c].mean(0) for c in range(classes)])
    offsets = means - exact.mean(0)
    within = exact - means[labels]
    _, values, right = np.linalg.svd(offsets, full_matrices=False)
    values, right = values[:-1], right[:-1]
    expected = np.sum(((within @ right.T) / values) ** 2) / n
    assert float(found.nc1) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("n", [1000, 100_000])
def test_one_class_alone_is_not_collapsed(n):
    features = 5 + np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    head = np.eye(3, 6, dtype=np.float32)
    found = compiled.neural_collapse(features, np.zeros(n, np.int32), head, num_classes=3)
    assert np.isinf(found.nc1)


@pytest.mark.parametrize("classes", [40, 3000])
def test_more_classes_than_samples(classes, x64):
    # Labels far apart; with 3,000 classes scores are formed in tiles, too.
    rng = np.random.default_rng(0)
    head = rng.normal(size=(classes, D))
    head /= np.linalg.norm(head, axis=1, keepdims=True)
    labels = rng.choice(classes, 6, replace=False)[rng.integers(0, 6, N)].astype(np.int32)
    features = head[labels] + 0.1 * rng.normal(size=(N, D))
    result = compiled.neural_collapse(features, labels, head, num_classes=classes)
    expected = reference.neural_collapse(features, labels, head)
    assert 0 < expected["nc4"] < 1
    np.testing.assert_allclose(result, list(expected.values()), rtol=1e-9, atol=1e-12)


def test_tiles_change_nothing(monkeypatch, x64):
    features, labels, head = case()
    weights = np.random.default_rng(1).uniform(0, 2, N)

    @jax.jit
    def values_and_gradient(features, labels, head):
        def smooth_sum(z, w):
            result = mirjax.neural_collapse(z, labels, w, num_classes=C, weights=weights)
            return sum(getattr(result, name) for name in SMOOTH), result

        gradient, result = jax.grad(smooth_sum, argnums=(0, 1), has_aux=True)(features, head)
        return gradient, result

    whole = values_and_gradient(features, labels, head)
    monkeypatch.setattr(mirjax._batch.collapse, "_TILE", C * 3)
    monkeypatch.setattr(mirjax._batch.classes, "_ONE_HOT", 1)
    jax.clear_caches()
    chex.assert_trees_all_close(values_and_gradient(features, labels, head), whole, rtol=1e-9)


def of_rank(rank=6, classes=12, n=1200, width=32, seed=0):
    """Features of low rank, made in float64, with more classes than directions."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % classes).astype(np.int32)
    inside = rng.normal(size=(classes, rank))[labels] + 0.5 * rng.normal(size=(n, rank))
    features = inside @ rng.normal(size=(rank, width))
    return features, labels, rng.normal(size=(classes, width))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("made_in", ["float32", "bfloat16", "float16"])
def test_rounding_of_the_data_is_no_direction_of_the_means(made_in, streamed, x64):
    features, labels, head = of_rank()
    expected = reference.neural_collapse(features, labels, head)["nc1"]
    made = jnp.asarray(features).astype(made_in)
    slack = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}[made_in]
    # Cast up by the user, as they are, and scaled since, so that only the caller knows.
    cases_of = [(made.astype(jnp.float64), None), (made, None)]
    cases_of.append((made.astype(jnp.float64) / 3, made_in))
    if made_in != "float32":
        cases_of.append((made.astype(jnp.float32), None))
    for given, precision in cases_of:
        if streamed:
            moments = mirjax.ClassMoments.zeros(12, 32, dtype=jnp.float64)
            moments = compiled.update(moments, given, labels, precision=precision)
            found = compiled.collapse_of_moments(moments, head)
        else:
            found = compiled.neural_collapse(
                given, labels, head.astype(given.dtype), num_classes=12, precision=precision
            )
        assert_near(found.nc1, expected, slack * expected)


def test_exact_values_of_few_bits_are_not_taken_for_rounded_ones(x64):
    # Pixels, counts and signs fit half precision because they are exact.
    rng = np.random.default_rng(0)
    labels = (np.arange(90) % 3).astype(np.int32)
    pixels = rng.integers(0, 200, (90, 5)) + 50 * (labels[:, None] == np.arange(5))
    for features in (pixels, pixels % 2 + labels[:, None], np.sign(pixels - 100)):
        head = rng.normal(size=(3, 5))
        found = compiled.neural_collapse(features.astype(float), labels, head, num_classes=3)
        expected = reference.neural_collapse(features, labels, head)["nc1"]
        assert_near(found.nc1, expected, 1e-9 * expected)


def test_means_that_differ_by_rounding_alone_coincide(x64):
    # The same mean in all classes, but for the rounding of float32.
    features, labels, head = of_rank()
    for c in range(12):
        features[labels == c] -= features[labels == c].mean(0)
    features = (3 + features).astype(np.float32).astype(np.float64)
    for c in range(12):
        features[labels == c] += 3 - features[labels == c].mean(0)
    found = compiled.neural_collapse(features, labels, head, num_classes=12, precision="float32")
    assert np.isinf(found.nc1)


@pytest.mark.parametrize("precision", ["int8", "tiny", 3, jnp.int32])
def test_unknown_precision(precision):
    features, labels, head = case("float32")
    with pytest.raises(ValueError, match="precision must be bfloat16, float16, float32 or float64"):
        mirjax.neural_collapse(features, labels, head, num_classes=C, precision=precision)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("offset", [1e4, -3e3])
def test_a_common_offset_costs_no_digits(streamed, offset):
    features, labels, head = case("float32")
    features = (offset + features).astype(np.float32)
    if streamed:
        moments = mirjax.ClassMoments.zeros(C, D)
        for part in (slice(0, 10), slice(10, N)):
            moments = compiled.update(moments, features[part], labels[part])
        found = compiled.collapse_of_moments(moments, head)
    else:
        found = compiled.neural_collapse(features, labels, head, num_classes=C)
    expected = reference.neural_collapse(features, labels, head)
    for name in SMOOTH:
        assert_near(getattr(found, name), expected[name], 2e-5 * max(expected[name], 1.0))
