"""Measures of spectra against the published formulas, from rows and from moments."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import spectra
from tests.compiled import spectra_of_moments, update
from tests.reference import spectra as published
from tests.tolerances import assert_near
from tests.versions import enable_x64

# (n, d, C): more samples than features, and fewer.
SHAPES = ((60, 12, 4), (20, 40, 5))
measure = jax.jit(spectra.measure, static_argnames=("num_classes", "per_class"))
lidar = jax.jit(spectra.lidar, static_argnames="num_classes")
debiased = jax.jit(
    functools.partial(spectra.participation_ratio, debiased=True), static_argnames=("centre",)
)


def drawn(n, d, classes, seed=0, dtype="float32"):
    """Clusters with a decaying spectrum and a common mean."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % classes).astype(np.int32)
    rows = rng.normal(size=(n, d)) / np.arange(1, d + 1) ** 0.5 + 0.3
    return (rows + rng.normal(size=(classes, d))[labels]).astype(dtype), labels


def expected(rows, labels):
    # The covariance has no more than n - 1 directions.
    last = min(100, len(rows) - 1, rows.shape[1])
    return {
        "eigenvalues": published.eigenvalues(rows),
        "rankme": published.rankme(rows),
        "stable_rank": published.stable_rank(rows),
        "participation_ratio": published.participation_ratio(rows),
        "nesum": published.nesum(rows),
        "alpha_req": published.alpha_req(rows, 6, last),
        "lidar": published.lidar(rows, labels, 1e-4),
        "effective_rank": published.effective_rank(rows),
        "effective_rank_centred": published.effective_rank(rows, centre=True),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_published_formulas(shape, dtype):
    rows, labels = drawn(*shape, dtype=dtype)
    counts = np.random.default_rng(1).integers(0, 3, len(rows))
    with enable_x64(dtype == "float64"):
        plain = measure(rows, labels, num_classes=shape[2])
        weighted = measure(rows, labels, num_classes=shape[2], weights=counts.astype(dtype))
    allowed = 1e-5 if dtype == "float32" else 1e-11
    for name, right in expected(rows, labels).items():
        found = getattr(plain, name)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, right, rtol=allowed, atol=allowed, err_msg=name)
    for name, right in expected(rows.repeat(counts, 0), labels.repeat(counts)).items():
        # Repeated rows have no more directions than the rows that they repeat.
        if shape == SHAPES[0] or name not in ("eigenvalues", "alpha_req"):
            found = getattr(weighted, name)
            tolerance = max(allowed, 1e-4 * (name == "rankme"))
            np.testing.assert_allclose(found, right, rtol=tolerance, atol=allowed, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_give_what_the_rows_give(shape, second, dtype):
    n, d, classes = shape
    rows, labels = drawn(*shape, dtype=dtype)
    weights = np.random.default_rng(2).uniform(size=n).astype(dtype)
    with enable_x64(dtype == "float64"):
        right = measure(rows, labels, num_classes=classes, weights=weights)
        parts = [
            update(
                mirjax.ClassMoments.zeros(classes, d, second=second, dtype=dtype),
                rows[i::3],
                labels[i::3],
                weights[i::3],
            )
            for i in range(3)
        ]
        orders = [(0, 1, 2), (2, 0, 1)]
        found = [spectra_of_moments(parts[i].merge(parts[j]).merge(parts[k])) for i, j, k in orders]
    for one in found:
        assert one.participation_ratio_debiased is None
        assert one.effective_rank_centred is None
        for name in expected(rows, labels):
            value = getattr(one, name)
            if value is not None:
                known = getattr(right, name)
                # Of d eigenvalues the last are 0, where there are fewer samples.
                value = value[: known.size] if name == "eigenvalues" else value
                # 1.6e-6 nats for each singular value that rows do not have.
                allowed = 1e-5 + 1.7e-6 * (d - min(n, d)) * (name == "rankme")
                np.testing.assert_allclose(value, known, rtol=allowed, atol=1e-5, err_msg=name)


def test_each_class_on_its_own():
    rows, labels = drawn(60, 12, 4)
    found = measure(rows, labels, num_classes=4, per_class=True)
    moments = update(mirjax.ClassMoments.zeros(4, 12), rows, labels)
    moments = spectra_of_moments(moments, per_class=True)
    masks = (labels == np.arange(4)[:, None]).astype(np.float32)
    np.testing.assert_allclose(moments.effective_rank, found.effective_rank, rtol=1e-5)
    assert moments.rankme is found.lidar is None
    np.testing.assert_allclose(spectra.rankme(rows[None], weights=masks), found.rankme, rtol=1e-6)
    batched = spectra.measure(rows[None], labels, num_classes=4, per_class=True)
    np.testing.assert_allclose(batched.rankme, found.rankme[None], rtol=1e-6)
    for c in range(4):
        own = rows[labels == c]
        assert_near(found.nesum[c], published.nesum(own), 1e-5 * 12)
        assert_near(found.effective_rank[c], published.effective_rank(own), 1e-4)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("shape", [(8, 3), (7, 12)])
def test_the_debiased_participation_ratio_is_by_different_samples(shape, centre, x64):
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=shape) + 0.7, rng.uniform(0.1, 2, shape[0])
    weights[2] = 0
    found = debiased(rows, weights=weights, centre=centre)
    right = published.debiased_participation_ratio(rows, weights, centre)
    assert_near(found, right, 1e-11 * right)


def test_the_debiased_participation_ratio_of_another_package(x64):
    dimensionality = pytest.importorskip("dimensionality")
    rows = np.random.default_rng(3).normal(size=(30, 8)) + 2.0
    parts = dimensionality.participation_ratio(rows, return_all=True)
    theirs = parts["row"] if isinstance(parts, dict) else parts[1]
    assert_near(debiased(rows), float(theirs), 1e-10)


def test_the_debiased_participation_ratio_has_no_bias():
    scale = 1 / np.arange(1, 31) ** 0.25
    right = np.sum(scale**2) ** 2 / np.sum(scale**4)
    rows = np.random.default_rng(4).normal(size=(500, 128, 30)) * scale + 3.0
    found = np.asarray(debiased(rows.astype(np.float32)))
    plain = np.asarray(jax.jit(spectra.participation_ratio)(rows.astype(np.float32)))
    # A ratio: the median is not moved by the few batches in which the denominator is near 0.
    assert abs(np.median(found) - right) < 0.3
    assert np.mean(plain) < right - 2


@pytest.mark.parametrize("order", [0.5, 2, np.inf])
@pytest.mark.parametrize("centre", [True, False])
def test_effective_rank_of_any_order(order, centre):
    rows, _ = drawn(40, 6, 3)
    found = mirjax.effective_rank(rows, order=float(order), centre=centre)
    assert_near(found, published.effective_rank(rows, order, centre), 5e-5)


def test_the_change_of_the_effective_rank():
    before, after = drawn(40, 6, 3)[0], drawn(40, 4, 3, seed=1)[0]
    ranks = [published.effective_rank(rows, centre=True) for rows in (before, after)]
    assert_near(spectra.diff_effective_rank(before, after), ranks[0] - ranks[1], 5e-5)


@pytest.mark.parametrize("name", spectra.Spectra._fields)
def test_rotation_order_and_scale_do_not_matter(name):
    rows, labels = drawn(60, 12, 4)
    rng = np.random.default_rng(5)
    turn, order = np.linalg.qr(rng.normal(size=(12, 12)))[0], rng.permutation(60)
    right = getattr(measure(rows, labels, num_classes=4), name)
    moved = measure((rows @ turn).astype(np.float32)[order], labels[order], num_classes=4)
    np.testing.assert_allclose(getattr(moved, name), right, rtol=2e-5)
    for scale in (2.0**-60, 2.0**60):
        # LiDAR has a unit of its own, and so have eigenvalues.
        if name not in ("lidar", "eigenvalues"):
            scaled = measure(rows * np.float32(scale), labels, num_classes=4)
            np.testing.assert_allclose(getattr(scaled, name), right, rtol=1e-6)


def test_offset_does_not_matter_where_rows_are_centred(x64):
    rows, labels = drawn(60, 12, 4, dtype="float64")
    right, moved = (measure(rows + c, labels, num_classes=4) for c in (0.0, 1e3))
    for name in ("eigenvalues", "participation_ratio", "participation_ratio_debiased", "nesum"):
        np.testing.assert_allclose(getattr(moved, name), getattr(right, name), rtol=1e-9)
    for name in ("alpha_req", "lidar", "effective_rank_centred"):
        np.testing.assert_allclose(getattr(moved, name), getattr(right, name), rtol=1e-9)
    assert moved.rankme < 0.5 * right.rankme


DEGENERATE = {
    "constant": lambda rows: 0 * rows + np.float32(3.3),
    "zero": lambda rows: 0 * rows,
    "rank one": lambda rows: rows[:, :1] * rows[:1],
    "one sample": lambda rows: rows[:1],
    "one feature": lambda rows: rows[:, :1],
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_rows_have_one_direction(kind):
    rows, labels = drawn(20, 7, 3)
    rows = DEGENERATE[kind](rows)
    labels = labels[: len(rows)]
    moments = update(mirjax.ClassMoments.zeros(3, rows.shape[1]), rows, labels)
    for found in (measure(rows, labels, num_classes=3), spectra_of_moments(moments)):
        for name in ("rankme", "stable_rank", "participation_ratio", "nesum", "lidar"):
            assert_near(getattr(found, name), 1.0, 1e-4)
        assert np.isnan(found.alpha_req)

    def total(z):
        found = spectra.measure(z, labels, num_classes=3)
        return found.rankme + found.stable_rank + found.nesum + found.lidar

    assert np.all(np.isfinite(jax.jit(jax.grad(total))(rows)))


def test_samples_without_weight_are_not_looked_at():
    rows, labels = drawn(20, 7, 3)
    mask = (np.arange(20) < 14).astype(np.float32)
    broken = np.where(mask[:, None] == 0, np.float32(np.nan), rows)
    others = np.where(mask == 0, 77, labels)
    right = measure(rows[:14], labels[:14], num_classes=3)
    found = measure(broken, others, num_classes=3, weights=mask)
    for name in right._fields:
        value = getattr(found, name)
        np.testing.assert_allclose(value, getattr(right, name), rtol=1e-5, atol=1e-6, err_msg=name)
    for wrong in ({"weights": -mask}, {}):
        found = measure(broken, labels, num_classes=3, **wrong)
        assert all(np.all(np.isnan(value)) for value in found)
    assert np.isnan(measure(rows, others, num_classes=3).lidar)
    assert np.all(np.isnan(measure(rows, others, num_classes=3, per_class=True).rankme))
    none = measure(rows, labels, num_classes=3, weights=0 * mask)
    assert_near(none.rankme, 1.0, 1e-4)
    assert np.isnan(none.participation_ratio_debiased)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_finite_differences(shape, x64):
    rows, labels = drawn(*shape, dtype="float64")
    turn = np.random.default_rng(6).normal(size=rows.shape)
    weights = np.random.default_rng(7).uniform(0.5, 1, len(rows))

    @jax.jit
    def every(z):
        found = spectra.measure(z, labels, num_classes=shape[2], weights=weights)
        return jnp.stack([jnp.sum(jnp.log(part)) for part in found[1:]])

    step = 1e-6
    slope = jax.jit(jax.jacfwd(lambda s: every(rows + s * turn)))(0.0)
    right = (every(rows + step * turn) - every(rows - step * turn)) / (2 * step)
    np.testing.assert_allclose(slope, right, rtol=1e-5, atol=1e-7)
    back = jax.jit(jax.jacrev(every))(rows)
    np.testing.assert_allclose(np.sum(back * turn[None], axis=(1, 2)), slope, rtol=1e-9, atol=1e-11)


def test_gradients_at_equal_singular_values():
    rows = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
    gradient = jax.jit(jax.grad(spectra.rankme))(rows)
    # The rank is at its maximum.
    assert_near(gradient, 0.0, 1e-5)


@pytest.mark.parametrize("shape", [(48, 7), (7, 48)])
def test_no_array_is_larger_than_it_must_be(shape):
    n, d = shape
    labels = np.zeros(n, np.int32)

    def every(z):
        return spectra.measure(z, labels, num_classes=3)

    equations = jaxpr_of(every, jnp.ones(shape))
    sizes = {variable.aval.size for equation in equations for variable in equation.outvars}
    assert max(sizes) <= 4 * n * d
    assert 48 * 48 not in sizes
    decomposed = [
        min(equation.invars[0].aval.shape[-2:])
        for equation in equations
        if equation.primitive.name in ("eigh", "svd", "tridiagonal")
    ]
    assert len(decomposed) > 3
    assert max(decomposed) <= min(shape)


def jaxpr_of(function, *arguments):
    """All equations of a function, those of inner programs too."""

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for parameter in jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)

    return list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))


Z, Y = drawn(20, 7, 3)
REFUSED = {
    "range": (lambda: spectra.alpha_req(Z, first=3, last=3), "first and last"),
    "delta": (lambda: spectra.lidar(Z, Y, num_classes=3, delta=0.0), "delta must be positive"),
    "classes": (lambda: spectra.lidar(Z, Y, num_classes=0), "num_classes must be positive"),
    "labels": (lambda: spectra.lidar(Z, Y[:5], num_classes=3), "labels of shape"),
    "no classes": (lambda: spectra.measure(Z, Y), "labels need num_classes"),
    "no labels": (lambda: spectra.measure(Z, per_class=True), "per_class=True needs labels"),
    "numbers that are none": (lambda: spectra.alpha_req(Z, first=1.0, last=3.5), "integers"),
    "delta without labels": (lambda: spectra.measure(Z, delta=-1.0), "delta must be positive"),
    "samples": (lambda: spectra.diff_effective_rank(Z, Z[:3]), "before of shape"),
    "no moments by class": (
        lambda: mirjax.ClassMoments.zeros(3, 7, second=False).spectra(per_class=True),
        "second=True",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_many_samples_do_not_raise_the_cut():
    # Singular values from 1 to 1e-3 of the largest, of many more rows than columns.
    n, powers = 200_000, np.geomspace(1, 1e-3, 12)
    rng = np.random.default_rng(8)
    rows = (rng.normal(size=(n, 12)) * powers).astype(np.float32)
    right = published.alpha_req(rows, 1, 12)
    assert_near(spectra.alpha_req(rows, first=1), right, 1e-3)
    turn = (rows * (np.arange(12) > 8)).astype(np.float32)
    slope = np.sum(np.asarray(jax.grad(spectra.rankme)(rows)) * turn, dtype=np.float64)
    step = 1e-3
    pair = [published.rankme(rows.astype(np.float64) + s * turn) for s in (step, -step)]
    assert_near(slope, (pair[0] - pair[1]) / (2 * step), 1e-3 * abs(slope))


def test_rounding_of_an_offset_is_no_spectrum():
    rng = np.random.default_rng(9)
    basis = np.linalg.qr(rng.normal(size=(64, 10)))[0].T
    low = (rng.normal(size=(500, 10)) / np.arange(1, 11)) @ basis
    right = published.alpha_req(low, 6, 10)
    for offset in (0, 100, 1e4):
        found = spectra.alpha_req((low + offset).astype(np.float32))
        assert_near(found, right, 5e-3)


def test_class_means_that_coincide_have_one_direction():
    rng = np.random.default_rng(10)
    rows = rng.normal(size=(40, 64)).astype(np.float32)
    rows = np.concatenate([rows, rows[::-1], rows[rng.permutation(40)]])
    labels = np.repeat(np.arange(3), 40)
    moments = update(mirjax.ClassMoments.zeros(3, 64), rows, labels)
    for found in (lidar(rows, labels, num_classes=3), spectra_of_moments(moments).lidar):
        assert_near(found, 1.0, 1e-3)


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e10, 1e-25])
def test_lidar_at_any_scale(scale):
    rows, labels = drawn(20, 40, 5)
    scaled = rows * np.float32(scale)
    # Where `delta` is nothing, or everything.
    right = published.lidar(np.float64(rows), labels, 1e-9 if scale > 1 else 1e9)
    assert_near(lidar(scaled, labels, num_classes=5), right, 2e-3)
    gradient = jax.jit(jax.grad(lambda z: spectra.lidar(z, labels, num_classes=5)))(scaled)
    assert np.all(np.isfinite(gradient))


def test_singular_values_are_found_once():
    rows, labels = drawn(60, 12, 4)
    compiled = measure.lower(rows, labels, num_classes=4).compile().as_text()
    # Of raw and of centred rows, and within the classes.
    assert len(re.findall(r"lapack_sgesdd\w*\"", compiled)) <= 3
