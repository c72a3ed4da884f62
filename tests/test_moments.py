"""Statistics that add up: in any split, order and precision they are those of the whole set."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import ClassMoments
from mirjax._dataset.sums import Sums
from tests import cases
from tests.compiled import update
from tests.reference import definition
from tests.tolerances import assert_near

N, D, C = 60, 8, 4


def case(degeneracy="random", dtype="float64"):
    return cases.cast(cases.make(degeneracy, N, D, C), dtype)


def moments_of(features, labels, weights=None, *, cuts=(0, N)):
    moments = ClassMoments.zeros(C, D, dtype=features.dtype)
    for start, stop in itertools.pairwise(cuts):
        part = slice(start, stop)
        moments = update(
            moments, features[part], labels[part], None if weights is None else weights[part]
        )
    return moments


def assert_same(first, second, tolerance):
    for name, a, b in zip(first.sums._fields, first.sums, second.sums, strict=True):
        scale = max(1.0, float(np.max(np.abs(a))))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("degeneracy", cases.DEGENERACIES)
def test_interplay_and_collapse_are_those_of_the_rows(degeneracy, x64):
    features, head, labels = case(degeneracy)
    if degeneracy == "extreme scales":  # squares of raw rows enter the collapse
        features = np.where(np.abs(features) > 1, features * 1e-20, features * 1e20)
    moments = moments_of(features, labels, cuts=(0, 13, 40, N))
    result, expected = moments.interplay(head), definition.interplay(features, head, labels)
    for name in expected._fields:
        assert_near(getattr(result, name), getattr(expected, name), 1e-10)
    assert result.method == "exact"
    collapse = mirjax.neural_collapse(features, labels, head, num_classes=C)
    mine = moments.collapse(head, nc4=collapse.nc4)
    np.testing.assert_allclose(mine, collapse, rtol=1e-7, atol=1e-9)
    means = np.stack(
        [
            features[labels == c].mean(0) if np.any(labels == c) else features.mean(0)
            for c in range(C)
        ]
    )
    if degeneracy == "identical samples":  # means by another route differ, by rounding alone
        means[:] = features[0]
    expected = mirjax.class_interplay(
        means, head, global_mean=means.T @ np.bincount(labels, minlength=C) / N
    )
    np.testing.assert_allclose(moments.class_interplay(head), expected, atol=1e-9)


def test_weights_and_masked_rows(x64):
    features, head, labels = case()
    weights = np.random.default_rng(1).uniform(size=N)
    weights[5:20] = 0
    features[7], labels[8] = np.nan, -1
    moments = moments_of(features, labels, weights, cuts=(0, 30, N))
    result = moments.interplay(head)
    expected = mirjax.interplay(features, head, labels, weights=weights)
    assert_near(result.joint_entropy, expected.joint_entropy, 1e-12)
    assert_near(result.weight, weights.sum(), 1e-12)
    collapse = mirjax.neural_collapse(features, labels, head, num_classes=C, weights=weights)
    mine = moments.collapse(head, nc4=collapse.nc4)
    np.testing.assert_allclose(mine, collapse, rtol=1e-9, atol=1e-12)
    assert moments.collapse(head).nc4 is None


@pytest.mark.parametrize("fault", ["nan", "label", "weight"])
def test_what_has_no_meaning_is_nan(fault):
    features, head, labels = case(dtype="float32")
    weights = np.ones(N, np.float32)
    if fault == "nan":
        features[3, 2] = np.nan
    if fault == "label":
        labels[3] = C
    if fault == "weight":
        weights[3] = -1
    moments = moments_of(features, labels, weights)
    assert np.isnan(moments.interplay(head).mir)
    assert np.isnan(moments.collapse(head).nc1)


def test_nothing_yet():
    moments = ClassMoments.zeros(C, D)
    result = moments.interplay(jnp.ones((C, D)))
    assert result.mir == result.joint_entropy == result.weight == 0
    assert np.isnan(moments.collapse(jnp.ones((C, D))).nc1)


@pytest.mark.parametrize("cuts", [(0, 1, 2, N), (0, 30, N), (0, 7, 50, 59, N)])
def test_any_split_into_batches_agrees(cuts, x64):
    features, _, labels = case("constant column")
    assert_same(moments_of(features, labels, cuts=cuts), moments_of(features, labels), 1e-13)


def test_merge_is_associative_and_commutes(x64):
    features, _, labels = case()
    a, b, c = (
        moments_of(features[s], labels[s], cuts=(0, 20))
        for s in map(slice, (0, 20, 40), (20, 40, N))
    )
    whole = moments_of(features, labels)
    assert_same(a.merge(b).merge(c), whole, 1e-13)
    assert_same(a.merge(b.merge(c)), whole, 1e-13)
    assert_same(c.merge(a).merge(b), whole, 1e-13)
    assert_same(whole.merge(ClassMoments.zeros(C, D, dtype=jnp.float64)), whole, 0)


def test_carry_of_a_scan_and_batch_of_a_vmap():
    features, _, labels = case(dtype="float32")
    batches = features.reshape(4, 15, D), labels.reshape(4, 15)

    def step(moments, batch):
        return moments.update(*batch), None

    scanned = jax.jit(lambda m: jax.lax.scan(step, m, batches)[0], donate_argnums=0)
    assert_same(scanned(ClassMoments.zeros(C, D)), moments_of(features, labels), 1e-6)
    mapped = jax.vmap(lambda z, y: ClassMoments.zeros(C, D).update(z, y))(*batches)
    parts = [jax.tree.map(lambda x, i=i: x[i], mapped) for i in range(4)]
    assert_same(
        parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]),
        scanned(ClassMoments.zeros(C, D)),
        1e-6,
    )


def test_interplay_inside_jit():
    features, head, labels = case(dtype="float32")
    moments = moments_of(features, labels)
    compiled = jax.jit(lambda m, w: m.interplay(w))(moments, head)
    assert compiled.method == "exact"
    assert_near(compiled.mir, moments.interplay(head).mir, 1e-6)


def test_agreement_of_a_second_pass_is_nc4():
    features, head, labels = case(dtype="float32")
    moments, bias = moments_of(features, labels), 0.5 * np.arange(C, dtype=np.float32)
    agreed = sum(
        moments.agreement(features[s], head, bias=bias) for s in (slice(0, 25), slice(25, N))
    )
    expected = mirjax.neural_collapse(features, labels, head, num_classes=C, bias=bias).nc4
    assert_near(agreed / N, expected, 1e-6)
    assert 0 < expected < 1


def exact_sums(rows, labels, weights, classes):
    """In float64, by class."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    members = [labels == c for c in range(classes)]
    means = [np.average(rows[m], axis=0, weights=weights[m]) for m in members]
    centred = rows - np.stack(means)[labels]
    return {
        "count": np.stack([weights[m].sum() for m in members]),
        "sums": np.stack([weights[m] @ rows[m] for m in members]),
        "scatter": (weights[:, None] * centred).T @ centred,
        "spread": np.stack([weights[m] @ np.sum(centred[m] ** 2, axis=1) for m in members]),
        "unit_count": np.stack([weights[m].sum() for m in members]),
        "unit_squares": np.stack([np.sum(weights[m] ** 2) for m in members]),
        "second": np.stack([(weights[m, None] * unit[m]).T @ unit[m] for m in members]),
    }


def assert_no_drift(moments, exact, factor, tolerance):
    for name, expected in exact.items():
        error = np.max(np.abs(getattr(moments.sums, name) - factor * expected))
        assert error <= tolerance * factor * np.max(np.abs(expected)), name


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_a_million_rows_do_not_drift(weight):
    rng = np.random.default_rng(0)
    steps, batch, classes, width = 20_020, 64, 3, 5  # 1,281,280 rows
    distinct = steps // 20
    pool = rng.normal(size=(distinct, batch, width)) * [1, 3, 0.1, 1, 1] + 2
    pool, labels = pool.astype(np.float32), rng.integers(0, classes, (distinct, batch))
    labels, weights = labels.astype(np.int32), np.full(batch, weight, np.float32)

    @jax.jit
    def stream():
        def step(carry, i):
            z, y = jnp.asarray(pool)[i % distinct], jnp.asarray(labels)[i % distinct]
            moments, plain = carry
            new = ClassMoments.zeros(classes, width).update(z, y, weights)
            return (moments.update(z, y, weights), plain + new.total.second), None

        start = ClassMoments.zeros(classes, width), jnp.zeros((classes, width, width))
        return jax.lax.scan(step, start, jnp.arange(steps))[0]

    rows, flat = pool.reshape(-1, width).astype(np.float64), labels.reshape(-1)
    exact = exact_sums(rows, flat, np.full(len(rows), weights[0], np.float64), classes)
    moments, plain = stream()
    assert_no_drift(moments, exact, 20, 1e-6)
    # Plain sums would not do: what is kept in `lost` is needed.
    second = 20 * exact["second"]
    kept = np.max(np.abs(moments.sums.second - second))
    assert np.max(np.abs(plain - second)) > 3 * kept
    # All rows at once, of which many follow each other in one class.
    tiled = np.tile(pool.reshape(-1, width), (20, 1)), np.tile(flat, 20)
    whole = update(
        ClassMoments.zeros(classes, width), *tiled, np.full(len(tiled[1]), weights[0], np.float32)
    )
    assert_no_drift(whole, exact, 20, 1e-5)
    # The metrics of both are those of the distinct rows, repeated.
    head = rng.normal(size=(classes, width)).astype(np.float32)
    expected = mirjax.ClassMoments(
        *(jax.tree.map(jnp.asarray, part) for part in (exact_as_sums(exact), zeros_like(exact))),
        origin=jnp.zeros(width),
        eps=jnp.zeros(()),
    )
    expected = expected.interplay(head)
    for found in (moments, whole):
        for method in ("exact", "lanczos"):
            result = found.interplay(head, method=method)
            assert_near(result.joint_entropy, expected.joint_entropy, 1e-5)
            assert_near(result.mir, expected.mir, 2e-5)


def exact_as_sums(exact):
    return Sums(**{name: np.asarray(value, np.float32) for name, value in exact.items()})


def zeros_like(exact):
    return Sums(**{name: np.zeros(value.shape, np.float32) for name, value in exact.items()})


REFUSED = {
    "width": (
        lambda m: m.update(jnp.ones((3, D + 1)), jnp.zeros(3, int)),
        r"features must be \[n, 8\], got \(3, 9\)",
    ),
    "rows": (
        lambda m: m.update(jnp.ones((3, D)), jnp.zeros(4, int)),
        "disagree in the number of rows",
    ),
    "head": (
        lambda m: m.interplay(jnp.ones((D, C))),
        r"head must be \[num_classes, d\] = \(4, 8\)",
    ),
    "merge": (
        lambda m: m.merge(ClassMoments.zeros(C, 3)),
        r"\(4, 8\) and \(4, 3\) cannot be merged",
    ),
    "zeros": (lambda _: ClassMoments.zeros(0, 3), "must be positive, got 0 and 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(ClassMoments.zeros(C, D))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, bool])
def test_a_dtype_that_cannot_hold_sums(dtype):
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        ClassMoments.zeros(C, D, dtype=dtype)


def parts_of(second=True, devices=4):
    """The rows in equal parts, whose means differ, and the statistics of all of them."""
    features, head, labels = case()
    features = features + np.repeat(np.arange(devices), N // devices)[:, None]
    zeros = ClassMoments.zeros(C, D, second=second, dtype=jnp.float64)
    parts = features.reshape(devices, -1, D), labels.reshape(devices, -1)
    return zeros, parts, zeros.update(features, labels), head


@pytest.mark.parametrize("second", [True, False])
def test_reduce_is_merge(second, x64):
    zeros, parts, whole, head = parts_of(second)

    def reduced(features, labels):
        return zeros.update(features, labels).reduce("devices")

    together = jax.vmap(reduced, axis_name="devices", out_axes=None)(*parts)
    merged = functools.reduce(
        ClassMoments.merge, itertools.starmap(zeros.update, zip(*parts, strict=True))
    )
    for found in (together, merged):
        assert_same(found, whole, 1e-12)
        np.testing.assert_allclose(found.collapse(head)[:6], whole.collapse(head)[:6], rtol=1e-9)


def test_a_plain_sum_over_devices_is_wrong(x64):
    # What the docstring warns of. If it becomes right, the warning should go.
    zeros, parts, whole, head = parts_of()
    summed = jax.tree.map(lambda x: x.sum(0), jax.vmap(zeros.update)(*parts))
    assert abs(summed.collapse(head).nc1 / whole.collapse(head).nc1 - 1) > 0.1


@pytest.mark.parametrize("classes", [C, 5000])
def test_without_second_moments(classes, x64):
    # With 5,000 classes there are more of them than samples in a batch.
    features, head, labels = case()
    rng = np.random.default_rng(0)
    names = np.sort(rng.choice(classes, C, replace=False)).astype(np.int32)
    all_rows = rng.normal(size=(classes, D))
    all_rows[names] = head
    moments = ClassMoments.zeros(classes, D, second=False, dtype=jnp.float64)
    assert max(part.size for part in jax.tree.leaves(moments)) == max(classes, D) * D
    for part in (slice(0, 13), slice(13, 40), slice(40, N)):
        moments = update(moments, features[part], names[labels[part]])
    expected = mirjax.neural_collapse(features, names[labels], all_rows, num_classes=classes)
    found = moments.collapse(all_rows, nc4=expected.nc4)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    agreed = moments.agreement(features, all_rows)
    assert_near(agreed / N, expected.nc4, 1e-12)
    entropies = moments.entropies(all_rows)
    exact = definition.interplay(features, head, labels)
    assert_near(entropies.entropy1, exact.entropy1, 1e-10)
    assert_near(entropies.entropy2, exact.entropy2, 1e-10)
    with pytest.raises(ValueError, match="made with second=False"):
        moments.interplay(all_rows)
    with pytest.raises(ValueError, match="with and without second moments"):
        moments.merge(ClassMoments.zeros(classes, D, dtype=jnp.float64))


def test_entropies_with_and_without_second_moments(x64):
    features, head, labels = case()
    head[2] = 0
    by_class = ClassMoments.zeros(C, D, dtype=jnp.float64).update(features, labels)
    exact = definition.interplay(features, head, labels)
    np.testing.assert_allclose(by_class.entropies(head), exact[:2], rtol=1e-9)
    # The samples of a class without a direction are in the sum, and cannot be taken out of it.
    pooled = ClassMoments.zeros(C, D, second=False, dtype=jnp.float64).update(features, labels)
    assert np.isnan(pooled.entropies(head).entropy1)
    assert_near(pooled.entropies(head).entropy2, exact.entropy2, 1e-10)
