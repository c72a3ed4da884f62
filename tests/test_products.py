"""Entropies by matrix products: against float64, against decompositions, and without any."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax._linalg.products import entropy_by_products, rule_of
from mirjax._linalg.spectrum import spectral_entropy
from tests import cases
from tests.reference import definition
from tests.tolerances import assert_interplay, assert_near

pytestmark = pytest.mark.numerics

by_products = jax.jit(functools.partial(mirjax.interplay, method="products"))
value_and_derivative = jax.jit(entropy_by_products)


def spectra(side):
    """Named spectra of trace 1: flat, low rank, decaying, and what collapse comes from."""
    rng = np.random.default_rng(0)
    ranks = np.arange(1, side + 1)
    low_rank = np.where(ranks <= 5, 1.0, 0.0)
    made = {
        "flat": np.ones(side),
        "rank one": np.where(ranks == 1, 1.0, 0.0),
        "low rank": low_rank,
        "initialisation": np.square(np.linalg.svd(rng.normal(size=(side, 2 * side)))[1]),
        "half the rank": np.pad(
            np.square(np.linalg.svd(rng.normal(size=(side, side // 2)))[1]), (0, side - side // 2)
        ),
        "power law": ranks**-2.0,
        "exponential": np.exp(-ranks / 3.0),
    }
    for power in range(2, 8):
        made[f"near collapse, 1e-{power}"] = low_rank / 5 + 10.0**-power / side
        made[f"near rank one, 1e-{power}"] = (ranks == 1) + 10.0**-power / side
    return {name: values / values.sum() for name, values in made.items()}


def rotated(spectrum, dtype):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(len(spectrum),) * 2))[0]
    matrix = (rotation * spectrum) @ rotation.T
    return (0.5 * (matrix + matrix.T)).astype(dtype)


def exact(matrix):
    """The entropy, and `(log A + 1) √A`, from which gradients in features are made."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    kept = values > 1e-15
    values, vectors = values[kept], vectors[:, kept]
    root = np.sqrt(values)
    pull = (vectors * (np.log(values) + 1) * root) @ vectors.T
    return -np.sum(values * np.log(values)), pull, (vectors * root) @ vectors.T


@pytest.mark.parametrize("side", [16, 128])
def test_entropy_of_every_spectrum_is_within_the_stated_error(side):
    for name, spectrum in spectra(side).items():
        matrix = rotated(spectrum, np.float32)
        expected, _, _ = exact(matrix)
        value, derivative = value_and_derivative(matrix)
        assert np.all(np.isfinite(derivative)), name
        assert_near(value, expected, 1.1e-6 + 7e-8 * side + 3e-6 * max(expected, 1.0))


def test_float64_is_exact_to_rounding_and_so_is_its_derivative(x64):
    for name, spectrum in spectra(24).items():
        matrix = rotated(spectrum, np.float64)
        expected, pull, root = exact(matrix)
        value, derivative = value_and_derivative(matrix)
        assert_near(value, expected, 1e-12)
        error = np.max(np.abs(np.asarray(derivative) @ root + pull))
        assert error <= 1e-9, (name, error)


@pytest.mark.parametrize(("dtype", "levels"), [("float32", 1.1e-6), ("float64", 1e-12)])
def test_approximation_of_the_logarithm(dtype, levels):
    # The rule by itself, in float64: what the docstring says of exact arithmetic.
    rule = rule_of(dtype)
    x = np.logspace(-20, 0, 20_001)
    first = 0.5 * 2.0 ** (np.arange(rule.ladders) / rule.ladders)
    nodes = (first[:, None] * 2.0 ** np.arange(rule.squarings + 1)).ravel()
    series = np.polynomial.polynomial.polyval(x, rule.below)
    logs = series + np.log(2) / rule.ladders * np.exp(-x[:, None] * nodes).sum(axis=1)
    error = np.abs(x * (logs + np.log(x)))
    assert np.all(error <= levels * x + 0.3 / nodes.max())
    assert np.max(error) > 0.2 / nodes.max()  # the statement is not idle
    for start, node in zip(rule.starts, first, strict=True):
        found = np.polynomial.polynomial.polyval(x, start)
        assert_near(found, -np.expm1(-x * node), 2e-7 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("degeneracy", cases.DEGENERACIES)
def test_interplay_of_degenerate_input(degeneracy):
    for shape in cases.SHAPES.values():
        case = cases.cast(cases.make(degeneracy, *shape), np.float32)
        actual = by_products(*case)
        assert_interplay(actual, definition.interplay(*case))


@pytest.mark.parametrize("degeneracy", ["random", "low rank", "duplicated samples", "collapse"])
def test_gradients_are_those_of_the_decomposition(degeneracy, x64):
    case = cases.cast(cases.make(degeneracy, *cases.SHAPES["samples"]), np.float64)

    def joint(features, head, method):
        result = mirjax.interplay(features, head, case[2], method=method)
        return result.mutual_information + 0.5 * result.entropy1

    gradient = jax.jit(jax.grad(joint, argnums=(0, 1)), static_argnums=2)
    for ours, theirs in zip(
        gradient(*case[:2], "products"), gradient(*case[:2], "eigh"), strict=True
    ):
        assert_near(ours, theirs, 1e-7 * max(1e-2, np.max(np.abs(theirs))))


def test_gradient_at_collapse_is_finite_in_float32():
    case = cases.cast(cases.make("collapse", *cases.SHAPES["samples"]), np.float32)

    @jax.jit
    @jax.grad
    def gradient(features):
        losses = mirjax.losses.mutual_information_loss, mirjax.losses.entropy_difference_loss
        return sum(loss(features, *case[1:], method="products") for loss in losses)

    assert np.all(np.isfinite(gradient(case[0])))


@pytest.mark.parametrize("rank", [4, 24])
def test_gradients_in_float32_are_those_of_float64(rank):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 24))).astype(np.float32)
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / norms
    values, vectors = np.linalg.eigh(unit.T @ unit / 40)
    kept = values > 1e-12
    logs = (vectors[:, kept] * np.log(values[kept])) @ vectors[:, kept].T
    pull = -2 * unit @ logs / 40  # the rest of the derivative is along the rows
    expected = (pull - unit * np.sum(pull * unit, axis=1, keepdims=True)) / norms
    entropy = functools.partial(mirjax.feature_entropy, method="products")
    actual = jax.jit(jax.grad(entropy))(features)
    assert_near(actual, expected, 5e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("rows", [np.eye(3, 5), np.ones((3, 5)), cases.simplex(4, 5)])
def test_value_and_gradient_can_be_differentiated_together_at_flat_spectra(rows, x64):
    tangent = np.random.default_rng(0).normal(size=rows.shape) * (rows != 0)

    @functools.partial(jax.jit, static_argnames="method")
    def both(rows, method):
        entropy = functools.partial(mirjax.feature_entropy, method=method)
        return jax.jvp(jax.value_and_grad(entropy), (rows,), (tangent,))[1]

    gradient = jax.jit(jax.grad(mirjax.feature_entropy))
    step = 1e-5 * tangent
    finite = (np.asarray(gradient(rows + step)) - np.asarray(gradient(rows - step))) / 2e-5
    for method in ("products", "eigh"):
        found = both(rows, method)
        assert all(np.all(np.isfinite(part)) for part in found)
        if np.linalg.matrix_rank(rows) > 1:  # of rank one the tangent leaves the rank
            assert_near(found[1], finite, 1e-6)


def test_products_are_counted():
    # What the docstring of `matrix_entropy` says: of k x k matrices, loops counted as often as they run.
    def is_program(parameter):
        return hasattr(parameter, "eqns")

    def products(jaxpr):
        found = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                shape = equation.outvars[0].aval.shape
                found += math.prod(shape) // 64 if shape.count(8) == 2 else 0
            for inner in jax.tree.leaves(equation.params, is_leaf=is_program):
                if is_program(inner):
                    found += equation.params.get("length", 1) * products(inner)
        return found

    matrix = jnp.eye(8) / 8
    assert products(jax.make_jaxpr(entropy_by_products)(matrix).jaxpr) == 29


def test_kernels_that_are_rounded_are_decomposed_by_auto():
    rows = jax.random.normal(jax.random.key(0), (64, 16))
    kernel = mirjax.gram(rows).astype(jnp.bfloat16)
    auto, decomposed = (
        jax.jit(functools.partial(mirjax.matrix_entropy, method=m)) for m in ("auto", "eigh")
    )
    text = auto.trace(kernel).lower(lowering_platforms=("cuda",)).as_text().lower()
    assert "syevd" in text or "eigh" in text
    assert auto(kernel) == decomposed(kernel)
    of_two = jax.jit(functools.partial(mirjax.kernel_interplay, method="auto"))
    text = of_two.trace(kernel, kernel).lower(lowering_platforms=("cuda",)).as_text().lower()
    assert "syevd" in text or "eigh" in text


def test_second_derivative_is_that_of_the_decomposition(x64):
    rng = np.random.default_rng(0)
    features, tangent = rng.normal(size=(2, 5, 3))

    @functools.partial(jax.jit, static_argnames=("method", "twice_reverse"))
    def curvature(rows, method, twice_reverse=False):
        gradient = jax.grad(functools.partial(mirjax.feature_entropy, method=method))
        if twice_reverse:
            return jax.grad(lambda r: jnp.sum(gradient(r) * tangent))(rows)
        return jax.jvp(gradient, (rows,), (tangent,))[1]

    expected = curvature(features, "eigh")
    assert_near(curvature(features, "products"), expected, 1e-8)
    assert_near(curvature(features, "products", twice_reverse=True), expected, 1e-8)


def test_batches_equal_single_matrices_and_trace_once():
    rows = jax.random.normal(jax.random.key(0), (3, 12, 6))
    traces = []

    def entropy(rows):
        traces.append(rows.shape)
        return mirjax.feature_entropy(rows, method="products")

    one = jax.jit(entropy)
    single = [one(each) for each in rows]
    assert len(traces) == 1
    assert_near(jax.jit(jax.vmap(entropy))(rows), single, 2e-6)
    assert_near(mirjax.feature_entropy(rows, method="products"), single, 2e-6)
    _, scanned = jax.lax.scan(lambda c, each: (c, entropy(each)), None, rows)
    assert_near(scanned, single, 2e-6)


def test_auto_is_the_decomposition_on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("about the CPU")
    kernel = mirjax.gram(jax.random.normal(jax.random.key(0), (20, 30)))
    auto, decomposed = (
        jax.jit(jax.value_and_grad(functools.partial(mirjax.matrix_entropy, method=m)))(kernel)
        for m in ("auto", "eigh")
    )
    np.testing.assert_array_equal(auto[0], decomposed[0])
    np.testing.assert_array_equal(auto[1], decomposed[1])


def lowered(method, platform):
    """What a gradient of the losses becomes on a platform, as text; no such device is needed."""

    def loss(features, head, labels):
        mi = mirjax.losses.mutual_information_loss(features, head, labels, method=method)
        return mi + mirjax.losses.entropy_difference_loss(features, head, labels, method=method)

    shapes = (
        jax.ShapeDtypeStruct((64, 32), jnp.float32),
        jax.ShapeDtypeStruct((10, 32), jnp.float32),
        jax.ShapeDtypeStruct((64,), jnp.int32),
    )
    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.skipif(
    jax.__version_info__ < (0, 6, 1), reason="XLA, not JAX, drops what is for other platforms"
)
@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_products_hold_no_decomposition(platform):
    def decomposes(text):
        return any(name in text.lower() for name in ("syevd", "eigh", "sytrd", "jacobi"))

    assert decomposes(lowered("eigh", platform))
    assert not decomposes(lowered("products", platform))
    assert decomposes(lowered("auto", platform)) == (platform == "cpu")


def test_nan_and_no_weight():
    features = jnp.ones((4, 3)).at[0, 0].set(jnp.nan)
    assert np.isnan(mirjax.feature_entropy(features, method="products"))
    nothing = mirjax.feature_entropy(jnp.ones((4, 3)), weights=jnp.zeros(4), method="products")
    assert nothing == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda m: mirjax.matrix_entropy(jnp.eye(2), method=m),
        lambda m: mirjax.effective_rank(jnp.eye(2), method=m),
        lambda m: mirjax.mir(jnp.eye(2), jnp.eye(2), method=m),
        lambda m: mirjax.interplay(jnp.eye(2), jnp.eye(2), jnp.arange(2), method=m),
        lambda m: mirjax.class_interplay(jnp.eye(2), jnp.eye(2), method=m),
        lambda m: mirjax.losses.entropy_difference_loss(
            jnp.eye(2), jnp.eye(2), jnp.arange(2), method=m
        ),
    ],
)
def test_unknown_methods_are_named(call):
    with pytest.raises(ValueError, match="'eigh', 'products' or 'auto', got 'svd'"):
        call("svd")
    call("products")


def test_orders():
    kernel = jnp.diag(jnp.array([0.75, 0.25]))
    with pytest.raises(ValueError, match="orders 1 and 2, got order 3"):
        mirjax.matrix_entropy(kernel, order=3, method="products")
    assert mirjax.matrix_entropy(kernel, order=2, method="products") == mirjax.matrix_entropy(
        kernel, order=2
    )
    assert mirjax.matrix_entropy(kernel, order=3, method="auto") == mirjax.matrix_entropy(
        kernel, order=3
    )


def test_spectral_entropy_ignores_the_method_of_other_orders():
    assert spectral_entropy(jnp.eye(2) / 2, 3, "products") == spectral_entropy(jnp.eye(2) / 2, 3)


@pytest.mark.parametrize("method", ["eigh", "products"])
def test_a_value_compiled_with_its_gradient(method):
    # What a compiler makes of the whole program: on a GPU it once cost three digits of the value.
    rows = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    kernel = np.asarray(mirjax.gram(rows))
    entropy = functools.partial(mirjax.matrix_entropy, method=method)
    value, gradient = jax.jit(jax.value_and_grad(entropy))(kernel)
    values, vectors = np.linalg.eigh(kernel.astype(np.float64))
    values /= values.sum()
    expected = -np.sum(values * np.log(values))
    assert_near(value, expected, 1e-5)
    slope = (vectors * (-np.log(values) - expected)) @ vectors.T / np.trace(kernel)
    np.testing.assert_allclose(gradient, slope, atol=2e-5 * np.max(np.abs(slope)))
