"""Entropies of every order by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases
from tests.reference import definition
from tests.tolerances import assert_derivative, assert_entropy, assert_near
from tests.versions import enable_x64

feature_entropy = jax.jit(mirjax.feature_entropy, static_argnames="order")
matrix_entropy = jax.jit(mirjax.matrix_entropy, static_argnames="order")
matrix_gradient = jax.jit(jax.grad(mirjax.matrix_entropy), static_argnames="order")
summed_gradient = jax.jit(
    jax.grad(lambda kernels, order: mirjax.matrix_entropy(kernels, order=order).sum()),
    static_argnames="order",
)
ORDERS = (0.5, 1, 1.5, 2, 3)


def spectrum_case(side, rank, seed=0):
    """A matrix of prescribed spectrum, of a scale far from 1."""
    rng = np.random.default_rng(seed)
    values = np.zeros(side)
    values[:rank] = 10.0 ** -np.linspace(0, 3, rank)
    basis = np.linalg.qr(rng.normal(size=(side, side)))[0]
    kernel = 37.0 * (basis * values) @ basis.T
    return 0.5 * (kernel + kernel.T)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrix_entropy_is_the_definition(order, rank, dtype):
    kernel = spectrum_case(12, rank).astype(dtype)
    with enable_x64(dtype == "float64"):
        result = matrix_entropy(kernel, order=order)
    # Rounding the kernel to float32 is itself a perturbation that order 1/2 sees as rank.
    assert_entropy(result, definition.entropy(spectrum_case(12, rank), order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "degeneracy", ["random", "low rank", "identical samples", "extreme scales"]
)
def test_feature_entropy_is_the_definition(order, degeneracy):
    features = cases.make(degeneracy, 60, 16, 6)[0].astype(np.float32)
    result = feature_entropy(features, order=order)
    assert_entropy(result, definition.feature_entropy(features, order=order))


@pytest.mark.parametrize("shape", [(600, 64), (64, 600), (500, 40)])
def test_feature_entropy_on_either_side(shape):
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert_entropy(feature_entropy(features), definition.feature_entropy(features))


@pytest.mark.parametrize("made_in", ["float32", "bfloat16"])
def test_rounding_of_the_kernel_is_no_rank_for_orders_below_one(made_in, x64):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0][:, :3]
    kernel = (basis * [3.0, 2.0, 1.5]) @ basis.T
    made = jnp.asarray(kernel).astype(made_in)
    expected = definition.entropy(kernel, 0.5)
    slack = 1e-5 if made_in == "float32" else 0.01
    for given, precision in (
        (made, None),
        (made.astype(jnp.float64), None),
        (made.astype(jnp.float64) / 3, made_in),
    ):
        found = mirjax.matrix_entropy(given, order=0.5, precision=precision)
        if not (given.dtype == jnp.float32 and precision is None):
            assert_near(found, expected, slack * expected)


def test_a_half_precision_kernel_keeps_its_rank():
    for side in (12, 400):
        for made_in in (jnp.bfloat16, jnp.float16):
            found = mirjax.matrix_entropy(jnp.eye(side, dtype=made_in), order=0.5)
            assert_near(found, np.log(side), 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e38])
def test_scale_of_the_kernel_does_not_matter(scale):
    kernel = (np.diag([3.0, 1.0, 0.5]) * scale).astype(np.float32)
    assert_entropy(matrix_entropy(kernel), definition.entropy(np.diag([3.0, 1.0, 0.5])))


@pytest.mark.parametrize("order", ORDERS)
def test_rank_one_and_no_trace_are_zero(order):
    assert_near(matrix_entropy(np.ones((31, 31), np.float32), order=order), 0.0, 1e-5)
    assert_near(matrix_entropy(np.zeros((8, 8), np.float32), order=order), 0.0, 0.0)


EXTREME_ORDERS = (0.01, 0.7, 1 - 1e-6, 1 + 1e-6, 1.2, 4, 10, 1000, np.inf)
SPECTRA = {
    "flat": np.ones(48),
    "two levels": np.repeat([1.0, 1e-3], 24),
    "power law": np.arange(1.0, 49) ** -2,
    "one large": np.r_[1.0, np.full(47, 1e-4)],
    "low rank": np.r_[np.linspace(1, 2, 6), np.zeros(42)],
}


def renyi(spectrum, order):
    """Entropy of a spectrum and its derivative along each eigenvalue, in extended precision."""
    values = np.asarray(spectrum, np.longdouble)
    values = values / values.sum()
    positive = values > 0
    logs = np.log(np.where(positive, values, 1))
    largest = logs[positive].max()
    if order == np.inf:
        top = values == values.max()
        slopes = -np.where(top, 1 / np.sum(top) / values.max(), 0)
        return float(-largest), slopes - np.sum(values * slopes)
    order = np.longdouble(order)
    scaled = np.where(positive, np.exp(order * (logs - largest)), 0)
    log_sum = order * largest + np.log(scaled.sum())
    if abs(order - 1) < 0.1:
        log_sum = np.log1p(np.sum(values * np.expm1((order - 1) * logs)))
    entropy = log_sum / (1 - order)
    slopes = order / (1 - order) * np.where(positive, scaled / np.exp(logs), 0) / scaled.sum()
    # The trace is divided out, so that a common factor changes nothing.
    return float(entropy), slopes - np.sum(values * slopes)


@pytest.mark.parametrize("order", EXTREME_ORDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_extreme_orders(order, dtype, tolerance):
    kernels = np.stack([np.diag(5 * spectrum) for spectrum in SPECTRA.values()]).astype(dtype)
    with enable_x64(dtype == "float64"):
        values = matrix_entropy(kernels, order=order)
        gradients = summed_gradient(kernels, order=order)
    for spectrum, value, gradient in zip(SPECTRA.values(), values, gradients, strict=True):
        expected, slopes = renyi(spectrum, order)
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        on_range = spectrum > 0
        slopes = np.asarray(slopes / (5 * spectrum.sum()), float)[on_range]
        found = np.diagonal(gradient)[on_range]
        # Next to order 1 the reference itself loses digits in the derivative.
        slack = 1e-5 if dtype == "float32" else 1e-8
        # Of equal eigenvalues nothing is left but the rounding of numbers near 0.2.
        floor = 1e-8 if dtype == "float32" else 1e-9
        np.testing.assert_allclose(found, slopes, rtol=0, atol=slack * np.abs(slopes).max() + floor)


@pytest.mark.parametrize("order", [1, 2, 3, 1000, np.inf])
def test_equal_spectrum_is_log_n(order):
    # From some thousands on `1 - tr(A²)` has no digit left of the small trace.
    for side in (12, 1500):
        entropy = matrix_entropy(np.eye(side, dtype=np.float32), order=order)
        # Older compilers, told not to optimise, add the squares of order 2 one after the other.
        np.testing.assert_allclose(entropy, np.log(side), rtol=4e-6 if order == 2 else 1e-6)


def test_large_orders_of_random_features():
    features = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    rows = features / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    spectrum = np.linalg.svd(rows, compute_uv=False) ** 2
    for order in (3, 10, np.inf):
        entropy = feature_entropy(features, order=order)
        np.testing.assert_allclose(entropy, renyi(spectrum, order)[0], rtol=1e-5)


def test_the_limits_of_the_order(x64):
    kernel = jnp.asarray(spectrum_case(12, 12))
    assert_near(matrix_entropy(kernel, order=1e6), matrix_entropy(kernel, order=np.inf), 1e-5)
    assert_near(matrix_entropy(kernel, order=1e-6), np.log(12), 1e-4)


def test_order_two_is_the_purity():
    kernel = spectrum_case(12, 12)
    purity = np.sum((kernel / np.trace(kernel)) ** 2)
    assert_entropy(matrix_entropy(kernel.astype(np.float32), order=2), -np.log(purity))


def test_order_one_is_the_limit(x64):
    kernel = jnp.asarray(spectrum_case(12, 12))
    at_one, above, below = (matrix_entropy(kernel, order=o) for o in (1, 1 + 1e-6, 1 - 1e-6))
    assert 0 < at_one - above < 1e-5
    assert 0 < below - at_one < 1e-5


def test_entropy_falls_with_the_order():
    kernel = spectrum_case(12, 12).astype(np.float32)
    values = [matrix_entropy(kernel, order=order) for order in ORDERS]
    assert all(np.diff(values) < 0)


def test_nan_propagates():
    kernel = np.eye(12, dtype=np.float32)
    kernel[0, 1] = kernel[1, 0] = np.nan
    assert np.isnan(matrix_entropy(kernel))


@pytest.mark.parametrize("order", [0, 0.0, -1, -np.inf, np.nan])
def test_order_out_of_range(order):
    with pytest.raises(ValueError, match="order must be positive"):
        mirjax.matrix_entropy(jnp.eye(3), order=order)


@pytest.mark.parametrize("order", [True, "2", None, jnp.float32(2)])
def test_order_of_wrong_type(order):
    with pytest.raises(TypeError, match="order must be a Python number"):
        mirjax.feature_entropy(jnp.eye(3), order=order)


def test_effective_rank():
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    weights = np.arange(20).astype(np.float32)
    expected = np.exp(definition.feature_entropy(features, weights))
    effective_rank = jax.jit(mirjax.effective_rank)
    assert_near(effective_rank(features, weights=weights), expected, 1e-4)
    assert_near(effective_rank(np.eye(5, 8, dtype=np.float32)), 5.0, 1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_every_order(order, x64):
    kernel = spectrum_case(6, 6)
    direction = np.random.default_rng(1).normal(size=(6, 6))
    direction = direction + direction.T
    gradient = np.asarray(matrix_gradient(kernel, order=order))
    step = 1e-5
    ends = [definition.entropy(kernel + s * direction, order) for s in (step, -step)]
    size = np.linalg.norm(gradient) * np.linalg.norm(direction)
    assert_derivative(np.sum(gradient * direction), (ends[0] - ends[1]) / (2 * step), size)
