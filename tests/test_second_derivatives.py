"""Second derivatives against finite differences of the (separately tested) gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.tolerances import assert_near


def class_information(means, head, mix):
    return jnp.dot(mix, jnp.stack(mirjax.class_interplay(means, head)[:3]))


class_gradient = jax.jit(jax.grad(class_information, argnums=(0, 1)))
class_hessian = jax.jit(jax.hessian(class_information, argnums=(0, 1)))


@functools.partial(jax.jit, static_argnames="argument")
def curvature(arguments, tangent, labels, mix, argument):
    """Hessian times `tangent` in one argument, forward over reverse, and the gradient function."""

    def gradient(x):
        inner = (x, arguments[1]) if argument == 0 else (arguments[0], x)
        return jax.grad(compiled.mixed_entropies, argnums=argument)(
            *inner, labels, jnp.ones(len(labels)), mix
        )

    return jax.jvp(gradient, (arguments[argument],), (tangent,))


def assert_curvature(actual, finite):
    assert_near(actual, finite, 1e-5 * max(1.0, np.max(np.abs(finite))))


@pytest.mark.parametrize("where", ["random", "collapse"])
def test_class_level_hessian(where, x64):
    rng = np.random.default_rng(0)
    if where == "collapse":
        means, head = 3 * cases.simplex(4, 3), cases.simplex(4, 3)
    else:  # wider than C: centring leaves the 4 × 4 matrix of the means singular
        means, head = rng.normal(size=(2, 4, 5))
    mix, step = np.array([1.0, 1.0, -1.0]), rng.normal(size=(2, *means.shape))
    hessian = class_hessian(means, head, mix)
    for row, steps in enumerate([(step[0], 0 * step[1]), (0 * step[0], step[1])]):
        ends = [
            class_gradient(means + s * steps[0], head + s * steps[1], mix) for s in (1e-5, -1e-5)
        ]
        for column in range(2):
            finite = (ends[0][column] - ends[1][column]) / 2e-5
            assert_curvature(np.tensordot(hessian[column][row], step[row], 2), finite)


def test_class_level_hessian_is_symmetric_and_finite_at_collapse():
    etf = cases.simplex(4, 3).astype(np.float32)
    hessian = class_hessian(etf, etf, np.array([0.0, 0.0, 1.0], np.float32))
    for row in range(2):
        for column in range(2):
            block = np.asarray(hessian[row][column])
            assert np.all(np.isfinite(block))
            assert_near(block, np.transpose(hessian[column][row], (2, 3, 0, 1)), 1e-4)


# Full rank on both sides, where the entropy is smooth.
SMOOTH = {
    "samples": (5, 8, 5),
    "moments, C < d": (14, 3, 2),
    "moments, C > d": (14, 2, 3),
}


@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize("argument", [0, 1])
def test_curvature_of_samples(path, argument, x64):
    features, head, labels = cases.make("random", *SMOOTH[path], seed=4)
    mix = np.array([0.5, 0.7, 1.0])
    tangent = np.random.default_rng(5).normal(size=(features, head)[argument].shape)
    _, actual = curvature((features, head), tangent, labels, mix, argument)
    ends = []
    for s in (1e-5, -1e-5):
        moved = (features + s * tangent, head) if argument == 0 else (features, head + s * tangent)
        ends.append(curvature(moved, tangent, labels, mix, argument)[0])
    assert_curvature(actual, (ends[0] - ends[1]) / 2e-5)


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("degeneracy", ["collapse", "duplicated samples", "identical samples"])
def test_curvature_is_finite_at_any_rank(argument, degeneracy):
    features, head, labels = cases.cast(cases.make(degeneracy, 14, 3, 2), "float32")
    tangent = np.random.default_rng(5).normal(size=(features, head)[argument].shape)
    mix = np.ones(3, np.float32)
    _, second = curvature((features, head), tangent.astype(np.float32), labels, mix, argument)
    assert np.all(np.isfinite(second))


@pytest.mark.parametrize("order", [0.5, 1, 3, 60])
def test_second_derivative_of_a_kernel_with_equal_eigenvalues(order, x64):
    # d²H(A + sB) at A = I/n is that of the sum over eigenvalues of B.
    direction = np.random.default_rng(0).normal(size=(4, 4))
    direction = direction + direction.T
    spectrum = jnp.asarray(np.linalg.eigvalsh(direction))

    def of_matrix(s):
        return mirjax.matrix_entropy(jnp.eye(4) / 4 + s * direction, order=order)

    def of_spectrum(s):
        values = 0.25 + s * spectrum
        p = values / jnp.sum(values)
        return -jnp.sum(p * jnp.log(p)) if order == 1 else jnp.log(jnp.sum(p**order)) / (1 - order)

    actual, expected = (jax.jit(jax.grad(jax.grad(f)))(0.0) for f in (of_matrix, of_spectrum))
    assert_near(actual, expected, 1e-8 * abs(expected))


@pytest.mark.parametrize("order", [0.01, 1.5, 1000, np.inf])
def test_second_derivative_of_extreme_orders(order, x64):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    kernel = jnp.asarray(basis * [1.0, 0.5, 0.25, 1e-2, 1e-3]) @ basis.T
    direction = rng.normal(size=(5, 5))
    direction = jnp.asarray(direction + direction.T)
    slope = jax.jit(jax.grad(lambda s: mirjax.matrix_entropy(kernel + s * direction, order=order)))
    step = 1e-6
    expected = (slope(step) - slope(-step)) / (2 * step)
    assert_near(jax.jit(jax.grad(slope))(0.0), expected, 1e-5 * abs(expected))
