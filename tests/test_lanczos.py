"""The stochastic estimate: honest errors, the same rules as an independent library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import decomp, funm

from mirjax._dataset import lanczos
from mirjax._dataset.bounds import entropy_terms
from mirjax._dataset.operators import MomentOperator, PairOperator

CASES = ("noise", "decay", "near collapse", "low rank", "one huge class")


def operator(name, classes=8, width=24, samples=4000, dtype=np.float32):
    """A data set as `MomentOperator`, its matrix and its entropy in float64."""
    rng = np.random.default_rng(CASES.index(name))
    labels = rng.integers(0, classes, samples)
    head = rng.normal(size=(classes, width))
    rows = rng.normal(size=(samples, width))
    match name:
        case "decay":
            rows = rows * np.arange(1, width + 1.0) ** -1
        case "near collapse":
            rows = head[labels] + 0.2 * rows
        case "low rank":
            rows = rows[:, :4] @ rng.normal(size=(4, width))
        case "one huge class":
            labels = np.where(rng.random(samples) < 0.9, 0, labels)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    heads = head / np.linalg.norm(head, axis=1, keepdims=True)
    moments = np.stack([unit[labels == c].T @ unit[labels == c] for c in range(classes)]) / samples
    left, values, _ = np.linalg.svd(heads, full_matrices=False)
    coordinates = left * values
    matrix = np.einsum("cr,cs,cde->rdse", coordinates, coordinates, moments)
    matrix = matrix.reshape(classes * width, classes * width)
    spectrum = np.linalg.eigvalsh(matrix)
    spectrum = spectrum[spectrum > 1e-15]
    entropy = -np.sum(spectrum * np.log(spectrum))
    return (
        MomentOperator(
            jnp.asarray(moments, dtype),
            jnp.asarray(coordinates, dtype),
            jnp.asarray(min(samples, classes * width), dtype),
        ),
        matrix,
        entropy,
    )


@functools.partial(jax.jit, static_argnames=("rank", "iterations"))
def many(operator, keys, *, rank, iterations=2):
    def one(key):
        first, second = jax.random.split(key)
        subspace = lanczos.top_subspace(operator, first, rank=rank, iterations=iterations)
        found = lanczos.probe_complement(operator, subspace.basis, second, probes=16, degree=20)
        known = lanczos.known_of(operator)
        return lanczos.summarize(subspace, found, known, purity_is_exact=True)

    return jax.lax.map(one, keys)


# Of 120 samples, more than a third of the 192 eigenvalues are 0.
@pytest.mark.parametrize("samples", [4000, 120])
@pytest.mark.parametrize("name", CASES)
def test_the_standard_error_is_honest(name, samples):
    op, _, entropy = operator(name, samples=samples)
    estimates = many(op, jax.random.split(jax.random.key(0), 200), rank=24)
    error = np.asarray(estimates.value, np.float64) - entropy
    inside = np.abs(error) <= 2 * np.asarray(estimates.standard_error)
    assert np.mean(inside) >= 0.9, np.mean(inside)
    # Nor is it much too large: then it would say nothing.
    assert np.mean(estimates.standard_error) < 6 * np.sqrt(np.mean(error**2)) + 1e-5
    assert np.mean(estimates.standard_error) < 3e-3 * entropy
    assert np.all(estimates.lower <= entropy)
    assert np.all(entropy <= estimates.upper)


def test_products_with_a_vector_are_those_of_the_matrix():
    op, matrix, _ = operator("decay")
    vectors = np.random.default_rng(0).normal(size=(op.size, 3)).astype(np.float32)
    np.testing.assert_allclose(op.apply(vectors), matrix @ vectors, atol=1e-5)
    np.testing.assert_allclose(op.purity(), np.sum(matrix**2), rtol=1e-5)


def test_the_subspace_is_that_of_the_largest_eigenvalues(x64):
    op, matrix, _ = operator("near collapse", dtype=np.float64)
    found = lanczos.top_subspace(op, jax.random.key(0), rank=12, iterations=40)
    expected = np.linalg.eigvalsh(matrix)[-12:]
    np.testing.assert_allclose(found.values[4:], expected[4:], rtol=1e-8)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(12), atol=1e-12)
    warm = lanczos.top_subspace(op, jax.random.key(1), rank=16, iterations=1, start=found.basis)
    np.testing.assert_allclose(warm.values[8:], expected[4:], rtol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7])
def test_orthonormal_at_any_grading(scale):
    rng = np.random.default_rng(0)
    graded = rng.normal(size=(300, 8)) * np.geomspace(1, scale, 8) @ rng.normal(size=(8, 8))
    columns = lanczos._orthonormal(jnp.asarray(graded, jnp.float32))
    np.testing.assert_allclose(columns.T @ columns, np.eye(8), atol=2e-5)
    deficient = jnp.asarray(
        np.concatenate([graded[:, :3], np.zeros((300, 2))], axis=1), jnp.float32
    )
    gram = np.asarray(lanczos._orthonormal(deficient).T @ lanczos._orthonormal(deficient))
    np.testing.assert_allclose(gram, np.diag(np.round(np.diag(gram))), atol=2e-5)


def test_quadrature_is_that_of_matfree(x64):
    op, _, _ = operator("decay", dtype=np.float64)
    start = jax.random.normal(jax.random.key(0), (op.size, 2))
    start = start / jnp.linalg.norm(start, axis=0, keepdims=True)
    alpha, beta = lanczos._lanczos(op, start, 8)
    nodes, weights = jax.vmap(lanczos._gauss_rule)(alpha.T, beta.T)
    mine = jnp.sum(weights * entropy_terms(nodes), axis=1)

    def term(x):
        return -x * jnp.log(jnp.where(x > 0, x, 1.0))

    quadratic = funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(term), decomp.tridiag_sym(8))
    for column in range(2):
        theirs = quadratic(lambda v: op.apply(v[:, None])[:, 0], start[:, column])
        assert mine[column] == pytest.approx(float(theirs), abs=1e-12)


def test_the_two_rules_enclose_the_quadratic_form(x64):
    op, matrix, _ = operator("noise", dtype=np.float64)
    start = jax.random.normal(jax.random.key(0), (op.size, 5))
    start = start / jnp.linalg.norm(start, axis=0, keepdims=True)
    values, vectors = np.linalg.eigh(matrix)
    terms = -values * np.log(np.maximum(values, 1e-300))
    exact = np.sum(np.square(vectors.T @ np.asarray(start)) * terms[:, None], axis=0)
    for degree in (3, 6, 9):
        alpha, beta = lanczos._lanczos(op, start, degree)
        middle, gap = lanczos._both_rules(alpha.T, beta.T)
        assert np.all(middle - gap <= exact)
        assert np.all(exact <= middle + gap)
        assert np.all(gap > 0)


def test_lanczos_that_ends_early():
    rows = jnp.eye(4)[jnp.arange(40) % 4] / jnp.sqrt(40.0)
    op = PairOperator(rows, jnp.ones((40, 1)))
    found = lanczos.probe_complement(op, jnp.zeros((4, 1)), jax.random.key(0), probes=3, degree=6)
    np.testing.assert_allclose(found.first, 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.entropy, np.log(4) / 4, rtol=1e-5)
    np.testing.assert_allclose(found.gap, 0, atol=1e-6)
