"""First derivatives against finite differences of the NumPy definition, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_derivative, assert_near
from tests.versions import enable_x64

pytestmark = pytest.mark.numerics

MIXES = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
forward = jax.jit(
    lambda arguments, tangents, labels, mix: jax.jvp(
        lambda z, w, m: compiled.mixed_entropies(z, w, labels, m, mix), arguments, tangents
    )[1]
)


def directions(arguments, seed=3):
    """A random step for each argument, of the scale of each row."""
    rng = np.random.default_rng(seed)
    sizes = [np.max(np.abs(a), axis=-1, keepdims=a.ndim > 1) for a in arguments]
    return [rng.normal(size=a.shape) * s for a, s in zip(arguments, sizes, strict=True)]


def difference(case, weights, steps, mix, step=3e-6):
    features, head, labels = case

    def value(s):
        result = definition.interplay(
            features + s * steps[0], head + s * steps[1], labels, weights + s * steps[2]
        )
        return np.dot(mix, result[:3])

    return (value(step) - value(-step)) / (2 * step)


@pytest.mark.parametrize("path", cases.SHAPES)
@pytest.mark.parametrize("degeneracy", [d for d in cases.DEGENERACIES if d != "zero rows"])
def test_gradient_is_that_of_the_definition(path, degeneracy, x64):
    case = cases.make(degeneracy, *cases.SHAPES[path])
    weights = np.random.default_rng(2).uniform(0.5, 2, len(case[2]))
    for mix in MIXES:
        gradient = compiled.mixed_gradient(*case, weights, mix)
        steps = directions((*case[:2], weights))
        pieces = [np.sum(g * s) for g, s in zip(gradient, steps, strict=True)]
        size = sum(np.linalg.norm(g * s) for g, s in zip(gradient, steps, strict=True))
        assert_derivative(sum(pieces), difference(case, weights, steps, mix), size)


@pytest.mark.parametrize("path", cases.SHAPES)
@pytest.mark.parametrize("degeneracy", ["random", "low rank", "extreme scales", "collapse"])
def test_forward_and_reverse_mode_agree(path, degeneracy, x64):
    features, head, labels = cases.make(degeneracy, *cases.SHAPES[path])
    weights, mix = np.ones(len(labels)), np.array([1.0, -2.0, 0.5])
    steps = directions((features, head, weights))
    reverse = compiled.mixed_gradient(features, head, labels, weights, mix)
    pushed = forward((features, head, weights), tuple(steps), labels, mix)
    pulled = sum(np.sum(g * s) for g, s in zip(reverse, steps, strict=True))
    assert_near(pushed, pulled, 1e-10)


@pytest.mark.parametrize("path", cases.SHAPES)
@pytest.mark.parametrize("degeneracy", cases.DEGENERACIES)
def test_gradient_is_finite_and_close_in_float32(path, degeneracy):
    case = cases.make(degeneracy, *cases.SHAPES[path])
    weights, mix = np.ones(len(case[2])), np.array([1.0, 0.5, -1.0])
    single = [np.float32(x) for x in (weights, mix)]
    gradient = compiled.mixed_gradient(*cases.cast(case, "float32"), *single)
    assert all(np.all(np.isfinite(part)) for part in gradient)
    with enable_x64(True):
        exact = compiled.mixed_gradient(*case, weights, mix)
    scale = [np.max(np.abs(x), axis=-1, keepdims=True) for x in case[:2]]
    for part, right, size in zip(gradient, exact, scale, strict=False):
        right = np.asarray(right) * size
        assert_near(np.asarray(part) * size, right, 2e-3 * max(1.0, np.max(np.abs(right))))


def test_masked_and_zero_rows_get_no_gradient():
    features, head, labels = cases.cast(cases.make("zero rows", 60, 8, 4), "float32")
    weights = np.ones(60, np.float32)
    weights[10:20] = 0
    gradient, _, _ = compiled.mixed_gradient(
        features, head, labels, weights, np.ones(3, np.float32)
    )
    assert np.all(gradient[:5] == 0)
    assert np.all(gradient[10:20] == 0)
    assert np.any(gradient[20:] != 0)


@pytest.mark.parametrize("field", ["mutual_information", "mir", "hdr", "entropy_difference"])
def test_gradient_of_what_is_made_of_entropies(field, x64):
    features, head, labels = cases.make("random", 8, 3, 3)
    step = np.random.default_rng(1).normal(size=features.shape)

    def reference(s):
        return getattr(definition.interplay(features + s * step, head, labels), field)

    loss = jax.jit(jax.grad(lambda z: getattr(mirjax.interplay(z, head, labels), field)))
    gradient = loss(features)
    finite = (reference(1e-5) - reference(-1e-5)) / 2e-5
    assert_derivative(np.sum(gradient * step), finite, np.linalg.norm(gradient))


def test_gradient_of_the_difference_is_zero_where_entropies_are_equal(x64):
    etf = jnp.asarray(cases.simplex(3, 4))
    labels = np.arange(3)
    gradient = jax.jit(jax.grad(lambda z: mirjax.interplay(z, etf, labels).hdr))(etf)
    assert np.all(np.isfinite(gradient))
    assert_near(gradient, 0.0, 1e-6)


def test_gradient_of_two_representations(x64):
    rng = np.random.default_rng(0)
    first, second, step = rng.normal(size=(3, 10, 3))
    gradient = jax.jit(jax.grad(lambda z: mirjax.feature_interplay(z, second).joint_entropy))(first)
    ends = [
        definition.feature_interplay(first + s * step, second).joint_entropy for s in (1e-5, -1e-5)
    ]
    assert_derivative(np.sum(gradient * step), (ends[0] - ends[1]) / 2e-5, np.linalg.norm(gradient))
