"""Estimates by pairs: unbiased whatever the batch, with an error that is as large as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import losses
from tests import cases
from tests.compiled import update, update_pairs
from tests.reference import definition, pairs
from tests.tolerances import assert_interplay, assert_near
from tests.versions import enable_x64

FIELDS = mirjax.Interplay._fields
debiased = jax.jit(mirjax.debiased_interplay)
of_features = jax.jit(mirjax.debiased_feature_interplay)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(24, 5, 3), (9, 4, 12)])
@pytest.mark.parametrize("degeneracy", ["random", "one class", "collapse", "zero rows", "low rank"])
def test_value_is_the_mean_over_pairs(degeneracy, shape, dtype):
    if degeneracy == "collapse" and shape[2] - 1 > shape[1]:
        pytest.skip("no simplex of so many classes")
    features, head, labels = cases.cast(cases.make(degeneracy, *shape), dtype)
    weights = np.random.default_rng(1).uniform(size=len(labels)).astype(dtype)
    weights[2] = 0
    groups = np.arange(len(labels)) // 2
    with enable_x64(dtype == "float64"):
        for options in ({}, {"weights": weights}, {"groups": groups}):
            found = debiased(features, head, labels, **options)
            assert found.mir.dtype == dtype
            assert_interplay(found, pairs.of_labels(features, head, labels, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_representations(dtype):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(30, d)).astype(dtype) for d in (6, 4)]
    rows[1][3] = 0
    weights = rng.uniform(size=30).astype(dtype)
    with enable_x64(dtype == "float64"):
        assert_interplay(of_features(*rows, weights=weights), pairs.interplay(*rows, weights))


@pytest.mark.parametrize("steps", [1, 7])
def test_many_samples_are_taken_some_at_a_time(steps, monkeypatch, x64):
    features, head, labels = cases.make("random", 30, 5, 3)
    monkeypatch.setattr(mirjax._batch.pairs, "_PAIRS", 30 * steps)

    def mir(z, w):
        return mirjax.debiased_interplay(z, w, labels).mir

    expected = pairs.of_labels(features, head, labels)
    assert_near(jax.jit(mir)(features, head), expected.mir, 1e-12)
    gradient = jax.jit(jax.grad(mir))(features, head)
    turn = np.random.default_rng(1).normal(size=features.shape)
    ends = [pairs.of_labels(features + s * turn, head, labels).mir for s in (1e-6, -1e-6)]
    assert_near(np.sum(gradient * turn), (ends[0] - ends[1]) / 2e-6, 1e-7)


def test_head_of_more_classes_than_fit_a_square(monkeypatch, x64):
    monkeypatch.setattr(mirjax._batch.pairs, "SQUARE", 2)
    arguments = cases.make("random", 24, 5, 3)
    assert_interplay(jax.jit(mirjax.debiased_interplay)(*arguments), pairs.of_labels(*arguments))


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_few_samples(samples):
    features, head, labels = cases.cast(cases.make("random", 4, 5, 3), "float32")
    weights = (np.arange(4) < samples).astype(np.float32)
    result = debiased(features, head, labels, weights=weights)
    assert np.isnan(result.mir) == (samples < 2)
    assert np.isnan(result.standard_error.mir) == (samples < 3)
    whole = mirjax.dataset_debiased_interplay(features, head, labels, weights=weights)
    assert np.isnan(whole.mir) == (samples < 2)
    moments = update(mirjax.ClassMoments.zeros(3, 5), features, labels, weights)
    assert np.isnan(moments.debiased_interplay(head).mir) == (samples < 2)
    state = update_pairs(mirjax.PairMoments.zeros(), features, head, labels, weights)
    assert np.isnan(state.interplay().mir) == (samples < 2)


def test_what_is_dropped_may_hold_anything():
    features, head, labels = cases.cast(cases.make("random", 12, 5, 3), "float32")
    expected = debiased(features[2:], head, labels[2:])
    features[:2], labels[:2] = np.nan, -1
    weights = (np.arange(12) >= 2).astype(np.float32)
    found = debiased(features, head, labels, weights=weights)
    for name in FIELDS:
        assert_near(getattr(found, name), getattr(expected, name), 1e-5)
    assert_near(found.standard_error.mir, expected.standard_error.mir, 1e-5)
    assert np.isnan(debiased(features, head, labels).mir)


@pytest.mark.parametrize("heavy", [1e2, 18.0, 1e7])
def test_a_sample_with_most_of_the_weight(heavy):
    features, head, labels = cases.cast(cases.make("random", 12, 5, 3), "float32")
    weights = np.ones(12, np.float32)
    weights[0] = heavy
    expected = pairs.of_labels(features, head, labels, weights=weights)
    found = debiased(features, head, labels, weights=weights)
    assert_near(found.mir, expected.mir, 1e-4)
    assert np.isfinite(found.standard_error.mir)
    moments = update(mirjax.ClassMoments.zeros(3, 5), features, labels, weights)
    of_moments = moments.debiased_interplay(head).mir
    # Rather nothing than a number without a digit.
    assert np.isnan(of_moments) == (heavy > 1e6)
    assert heavy > 1e6 or abs(of_moments - expected.mir) < 1e-3


@pytest.mark.parametrize("samples", [3, 300])
def test_nan_in_a_row_of_the_head_that_no_sample_uses(samples):
    features, head, labels = cases.cast(cases.make("random", samples, 5, 4), "float32")
    labels[labels == 3] = 0
    head[3] = np.nan
    options = {"order": 2, "debiased": True}
    for mir in (
        mirjax.interplay(features, head, labels, order=2).mir,
        debiased(features, head, labels).mir,
        mirjax.dataset_debiased_interplay(features, head, labels).mir,
        mirjax.dataset_debiased_interplay(features, head, labels, memory_limit=0).mir,
        update_pairs(mirjax.PairMoments.zeros(), features, head, labels).interplay().mir,
        losses.mutual_information_loss(features, head, labels, **options),
    ):
        assert np.isnan(mir)


def test_groups_of_narrow_integers():
    features, head, labels = cases.cast(cases.make("random", 200, 5, 3), "float32")
    groups = np.arange(200) % 100
    expected = debiased(features, head, labels, groups=groups.astype(np.int32))
    found = debiased(features, head, labels, groups=groups.astype(np.int8))
    assert found.standard_error.mir == expected.standard_error.mir


def test_classes_some_at_a_time(monkeypatch, x64):
    features, head, labels = cases.make("random", 90, 4, 7)
    monkeypatch.setattr(mirjax._dataset.debiased, "_BY_CLASS", 7 * 3)
    moments = update(mirjax.ClassMoments.zeros(7, 4, dtype=jnp.float64), features, labels)
    found = moments.debiased_interplay(head).interplay
    assert_interplay(found, pairs.of_labels(features, head, labels))


def test_refused():
    features, head, labels = cases.cast(cases.make("random", 12, 5, 3), "float32")
    with pytest.raises(TypeError, match="groups must be integers, got float32"):
        mirjax.debiased_interplay(features, head, labels, groups=np.ones(12, np.float32))
    with pytest.raises(ValueError, match="disagree in the number of samples n: 12 against 11"):
        mirjax.debiased_interplay(features, head, labels, groups=labels[1:])
    for loss in (losses.mutual_information_loss, losses.entropy_difference_loss):
        with pytest.raises(ValueError, match="debiased=True needs order=2, got order=1"):
            loss(features, head, labels, debiased=True)
        with pytest.raises(ValueError, match="groups have a meaning in a debiased loss alone"):
            loss(features, head, labels, groups=labels)


# Populations that were used for choosing nothing.
W = np.random.default_rng(7).normal(size=(40, 24))


def draw(kind, rng, n):
    classes = 40 if kind == "many classes" else 8
    frequency = np.arange(1, classes + 1) ** (-1.5 if kind == "imbalance" else 0.0)
    labels = rng.choice(classes, n, p=frequency / frequency.sum())
    head = W[:classes]
    noise = rng.normal(size=(n, head.shape[1]))
    match kind:
        case "noise":
            features = noise
        case "collapse":
            head = cases.simplex(8, 24)
            features = head[labels]
        case "common mean":
            features = 2 + head[labels] + noise
        case "power law":
            features = head[labels] * np.arange(1, 25) ** -0.5 + 0.5 * noise / np.arange(1, 25)
        case _:
            features = head[labels] + noise
    return features, head, labels


KINDS = ("noise", "collapse", "imbalance", "common mean", "power law", "many classes")


@functools.cache
def population(kind):
    """All pairs of 10⁵ samples, or the closed form."""
    if kind == "collapse":
        return np.array([1 / 7, 1 / 7, (1 + 7.0**-3) / 8])
    features, head, labels = draw(kind, np.random.default_rng(1), 100_000)
    moments = update(
        mirjax.ClassMoments.zeros(*head.shape), features.astype(np.float32), labels.astype(np.int32)
    )
    return np.exp(-np.asarray(moments.debiased_interplay(head.astype(np.float32))[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_batches_is_the_population(kind):
    rng = np.random.default_rng(2)
    expected = population(kind)

    def of_batches(z, w, y):
        heads = jnp.broadcast_to(w, (len(z), *w.shape))
        return jnp.stack(mirjax.debiased_interplay(z, heads, y)[:3])

    for n in (8, 32, 128):
        batches = [draw(kind, rng, n) for _ in range(2000)]
        z = np.stack([b[0] for b in batches]).astype(np.float32)
        y = np.stack([b[2] for b in batches]).astype(np.int32)
        found = np.exp(-np.asarray(jax.jit(of_batches)(z, batches[0][1].astype(np.float32), y)))
        # The population of 10⁵ samples has an error as well, that of 10⁵ of these 2000 · n.
        error = found.std(axis=1) / 2000**0.5 * (1 + 2000 * n / 1e5) ** 0.5
        assert np.all(np.abs(found.mean(axis=1) - expected) < 4 * error + 1e-6), (n, found.mean(1))
        # A biased estimate would have been noticed.
        assert n > 100 or np.all(4 * error < 0.5 / n)


@pytest.mark.slow
def test_weights_stand_for_a_population_of_other_frequencies():
    rng = np.random.default_rng(2)
    frequency = np.arange(1, 9) ** -1.5
    state = mirjax.PairMoments.zeros()
    for n in (8, 32, 128):
        batches = [draw("clusters", rng, n) for _ in range(1000)]
        z = np.stack([b[0] for b in batches]).astype(np.float32)
        y = np.stack([b[2] for b in batches]).astype(np.int32)
        heads = np.broadcast_to(W[:8].astype(np.float32), (1000, 8, 24))
        weights = (8 * frequency / frequency.sum())[y].astype(np.float32)
        found = jax.jit(state.update)(z, heads, y, weights).interplay()
        expected = population("imbalance")
        for place, name in enumerate(("entropy1", "entropy2", "joint_entropy")):
            error = 4 * float(getattr(found.standard_error, name)) + 5e-3
            assert_near(getattr(found, name), -np.log(expected[place]), error)
            assert error < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [64, 200])
def test_the_standard_error_is_the_scatter(kind, n):
    rng = np.random.default_rng(3)
    batches = [draw(kind, rng, n) for _ in range(400)]
    head = batches[0][1].astype(np.float32)
    z = np.stack([b[0] for b in batches]).astype(np.float32)
    y = np.stack([b[2] for b in batches]).astype(np.int32)
    heads = np.broadcast_to(head, (400, *head.shape))
    found = debiased(z, heads, y)
    for name in ("entropy1", "entropy2", "joint_entropy", "mutual_information", "mir"):
        scatter = np.std(getattr(found, name))
        stated = np.sqrt(np.mean(np.square(getattr(found.standard_error, name))))
        assert 0.8 < stated / scatter < 1.5, name
    # Of unrelated views the plain jackknife has 1.4 times the scatter of MI.
    related = kind != "noise"
    stated = np.sqrt(np.mean(np.square(found.standard_error.mutual_information)))
    assert related or stated / np.std(found.mutual_information) < 1.2
    # Each sample twice, in one group: the same population, and no error that is too small.
    twice = debiased(
        np.tile(z, (1, 2, 1)), heads, np.tile(y, (1, 2)), groups=np.tile(np.arange(n), (400, 2))
    )
    np.testing.assert_allclose(twice.mir, found.mir, atol=1e-4)
    stated = np.sqrt(np.mean(np.square(twice.standard_error.mir)))
    assert 0.8 < stated / np.std(found.mir) < 1.6


def test_a_set_that_is_sorted_by_class():
    features, head, labels = draw("imbalance", np.random.default_rng(4), 960)
    order = np.argsort(labels, kind="stable")
    z, w, y = features[order].astype(np.float32), head.astype(np.float32), labels[order]
    y = y.astype(np.int32)
    exact = pairs.of_labels(z, w, y)
    moments, state = mirjax.ClassMoments.zeros(*head.shape), mirjax.PairMoments.zeros()
    for part in np.split(np.arange(960), 15):
        moments = update(moments, z[part], y[part])
        state = update_pairs(state, z[part], w, y[part])
    assert_near(moments.debiased_interplay(w).mir, exact.mir, 2e-5)
    assert_near(mirjax.dataset_debiased_interplay(z, w, y).mir, exact.mir, 2e-5)
    # Batches in this order mostly have pairs of one class.
    assert abs(state.interplay().entropy2 - exact.entropy2) > 0.5
    assert moments.debiased_interplay(w).standard_error is None
    with pytest.raises(ValueError, match=r"or dataset_debiased_interplay\(features"):
        mirjax.ClassMoments.zeros(8, 24, second=False).debiased_interplay(w)


@pytest.mark.parametrize("way", ["_by_moments", "_by_rows"])
def test_whole_set_by_moments_and_by_rows(way, x64):
    features, head, labels = cases.make("zero rows", 90, 6, 4)
    head = head.copy()
    head[3] = 0
    weights = np.random.default_rng(5).uniform(size=90)
    weights[:9] = 0
    from mirjax._dataset import debiased as module

    extra = (None, 1, 1) if way == "_by_moments" else (None,)
    found = getattr(module, way)(features, head, labels, weights, *extra)
    assert_interplay(found, pairs.of_labels(features, head, labels, weights=weights))
    batch = debiased(features, head, labels, weights=weights)
    # Without the pairs themselves the plain jackknife is left, which is the larger one.
    assert 1 - 1e-9 <= found.standard_error.mir / batch.standard_error.mir < 1.45
    larger = found.standard_error.mutual_information / batch.standard_error.mutual_information
    assert way == "_by_rows" or larger > 1.05
    moments = mirjax.ClassMoments.zeros(4, 6, dtype=jnp.float64)
    moments = update(moments, features[:50], labels[:50], weights[:50])
    moments = moments.merge(
        update(
            mirjax.ClassMoments.zeros(4, 6, dtype=jnp.float64),
            features[50:],
            labels[50:],
            weights[50:],
        )
    )
    assert_near(moments.debiased_interplay(head).mir, found.mir, 1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_groups_are_taken_away_from_the_moments(size, monkeypatch, x64):
    from mirjax._dataset import debiased as module

    features, head, labels = cases.make("zero rows", 90, 2, 4)
    rng = np.random.default_rng(5)
    weights = rng.uniform(size=90)
    weights[:9] = 0
    # One group is smaller, and one sample is alone.
    groups = rng.permutation(np.append(np.arange(89) // size, 1000)).astype(np.int32)
    options = {"weights": weights, "groups": groups}
    by_rows = mirjax.dataset_debiased_interplay(features, head, labels, memory_limit=0, **options)
    monkeypatch.setattr(module, "_by_rows", None)
    found = mirjax.dataset_debiased_interplay(features, head, labels, **options)
    assert_interplay(found, pairs.of_labels(features, head, labels, **options))
    for name in FIELDS:
        mine, theirs = (getattr(x.standard_error, name) for x in (found, by_rows))
        assert_near(mine, theirs, 1e-12)
    # Pairs within the only group that counts are none.
    alone = np.where(groups == groups[20], 1.0, 0.0)
    nothing = mirjax.dataset_debiased_interplay(
        features, head, labels, weights=alone, groups=groups
    )
    assert np.isnan(nothing.mir)


def test_large_and_unknown_groups_need_the_rows(monkeypatch):
    from mirjax._dataset import debiased as module

    features, head, labels = cases.cast(cases.make("random", 400, 2, 3), "float32")
    monkeypatch.setattr(module, "_by_moments", None)
    for largest in (17, 100):
        groups = np.arange(400) // largest
        found = mirjax.dataset_debiased_interplay(features, head, labels, groups=groups)
        expected = debiased(features, head, labels, groups=groups)
        assert_near(found.mir, expected.mir, 1e-6)

    def compiled(groups):
        return mirjax.dataset_debiased_interplay(features, head, labels, groups=groups).mir

    assert_near(jax.jit(compiled)(groups), expected.mir, 1e-6)


def test_pair_moments_add_up():
    rng = np.random.default_rng(6)
    batches = [draw("imbalance", rng, 40) for _ in range(60)]
    z = np.stack([b[0] for b in batches]).astype(np.float32)
    y, w = np.stack([b[2] for b in batches]).astype(np.int32), batches[0][1].astype(np.float32)
    weights = rng.uniform(size=y.shape).astype(np.float32)
    heads = np.broadcast_to(w, (60, *w.shape))
    zeros = mirjax.PairMoments.zeros()
    at_once = zeros.update(z, heads, y, weights)

    @jax.jit
    def in_a_loop(z, y, weights):
        return jax.lax.scan(lambda s, b: (s.update(b[0], w, *b[1:]), None), zeros, (z, y, weights))

    single = in_a_loop(z, y, weights)[0]
    halves = [in_a_loop(z[i::2], y[i::2], weights[i::2])[0] for i in (0, 1)]
    merged = zeros.merge(halves[0]).merge(halves[1])
    both = jax.tree.map(lambda *x: jnp.stack(x), *halves)
    reduced = jax.vmap(lambda s: s.reduce("d"), axis_name="d", out_axes=None)(both)
    for state in (single, merged, reduced):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4), state, at_once)
    # By hand: sums over all batches, and the scatter of the batches about their mean.
    means = [
        pairs.purities(*rows, v) for rows, v in zip(zip(z, w[y], strict=True), weights, strict=True)
    ]
    whole = np.array([v.sum() ** 2 - np.sum(v**2) for v in weights.astype(float)])
    expected = np.average(means, axis=0, weights=whole)
    np.testing.assert_allclose(at_once.purities, expected, rtol=1e-5)
    result = at_once.interplay()
    assert_near(result.entropy1, -np.log(expected[0]), 1e-5)
    error = result.standard_error.entropy1
    by_hand = np.std(np.log([m[0] for m in means]), ddof=1) / 60**0.5
    assert 0.7 < error / by_hand < 1.3
    assert np.isnan(zeros.update(z[0], w, y[0]).interplay().standard_error.mir)
    assert np.isnan(zeros.interplay().mir)


def test_the_participation_ratio_of_others():
    dimensionality = pytest.importorskip("dimensionality")
    rng = np.random.default_rng(12)
    rows = definition.unit_rows(rng.normal(size=(14, 5)) + 0.7)
    parts = dimensionality.participation_ratio(rows, return_all=True, return_parts=True)
    with enable_x64(True):
        purity = float(jnp.exp(-mirjax.debiased_feature_interplay(rows, rows).entropy1))
    # Theirs is centred, by means over three and four different samples, and not normalised.
    gram, n = rows @ rows.T, len(rows)
    three = np.mean(
        [gram[i, j] * gram[j, k] for i in range(n) for j in range(n) for k in range(n)
         if len({i, j, k}) == 3]
    )  # fmt: skip
    four = np.mean(
        [gram[i, j] * gram[k, m] for i in range(n) for j in range(n) for k in range(n)
         for m in range(n) if len({i, j, k, m}) == 4]
    )  # fmt: skip
    assert_near(parts["B_row"] * rows.shape[1] ** 2, purity - 2 * three + four, 1e-12)


def test_the_error_of_a_second_pass_is_that_of_the_rows(x64):
    features, head, labels = cases.make("zero rows", 60, 6, 4)
    weights = np.random.default_rng(13).uniform(0.5, 1, 60)
    right = mirjax._dataset.debiased._by_moments(
        *map(jnp.asarray, (features, head, labels, weights)), None, 1, 1
    )
    moments = update(mirjax.ClassMoments.zeros(4, 6, dtype=jnp.float64), features, labels, weights)
    sums = jax.tree.map(jnp.add, moments.total, moments.lost)
    first = mirjax._dataset.debiased.error_of_pairs(sums, jnp.asarray(head))
    parts = [
        first.scatter(*map(jnp.asarray, (features[i::3], labels[i::3], weights[i::3])))
        for i in range(3)
    ]
    found = first.interplay(sum(parts))
    # The number of samples is told by the weights alone, not by a count.
    counts = [right.standard_error, found.standard_error]
    ratio = counts[1].mir / counts[0].mir
    np.testing.assert_allclose(counts[1], np.asarray(counts[0]) * ratio, rtol=1e-9)
    assert_near(ratio, 1.0, 1e-3)
    np.testing.assert_allclose(found.interplay, right.interplay, rtol=1e-10)
