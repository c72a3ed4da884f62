"""The interplay of a whole data set against the dense definition, and what the caller is told of it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax._dataset.estimate import Options
from tests import cases
from tests.reference import definition
from tests.tolerances import assert_near
from tests.versions import enable_x64

FIELDS = mirjax.Interplay._fields
# (n, d, C): the operator is that of the moments, of the rows, and of the rows where n < d C.
SHAPES = {"moments": (700, 12, 6), "rows": (300, 24, 40)}
ADVERSARIAL = (
    *cases.DEGENERACIES,
    "one huge class",
    "head of rank one",
    "slow decay",
    "repeated rows",
)


def case(name, shape="moments", dtype="float64", seed=0):
    n, d, classes = SHAPES[shape]
    rng = np.random.default_rng(seed)
    known = name if name in cases.DEGENERACIES else "random"
    if known == "collapse" and classes > d + 1:
        known = "duplicated samples"  # there is no simplex
    if known == "near collapse" and classes > d + 1:
        known = "low rank"
    features, head, labels = cases.make(known, n, d, classes, seed=seed)
    if name == "one huge class":
        labels = np.where(rng.random(n) < 0.97, 2, labels)
    if name == "head of rank one":
        head = rng.normal(size=(classes, 1)) * rng.normal(size=d)
    if name == "slow decay":
        features = features * np.arange(1, d + 1.0) ** -0.7
    if name == "repeated rows":
        features, labels = features[np.arange(n) % 9], labels[np.arange(n) % 9]
    return cases.cast((features, head, labels), dtype)


def assert_inside(result, expected, where=""):
    for name in FIELDS:
        low, high = float(getattr(result.lower, name)), float(getattr(result.upper, name))
        rounding = 1e-11 if result.mir.dtype == np.float64 else 5e-5
        low, high = (low or -rounding), (high + rounding if high == 1 else high)
        assert low <= getattr(expected, name) <= high, (where, name, low, high, expected)
        assert low <= float(getattr(result, name)) <= high, (where, name)


@pytest.mark.numerics
@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_is_the_definition(shape, name, x64):
    arguments = case(name, shape)
    result = mirjax.dataset_interplay(*arguments, method="exact")
    expected = definition.interplay(*arguments)
    for field in FIELDS:
        assert_near(getattr(result, field), getattr(expected, field), 1e-10)
    assert result.method == "exact"
    assert result.products == 0
    assert_inside(result, expected)
    assert all(error == 0 for error in result.standard_error)


@pytest.mark.slow
def test_exact_at_four_thousand_samples(x64):
    arguments = cases.cast(cases.make("random", 4000, 6, 5), "float64")
    expected = definition.interplay(*arguments)
    for method in ("exact", "lanczos"):
        result = mirjax.dataset_interplay(*arguments, method=method)
        assert_near(result.joint_entropy, expected.joint_entropy, 1e-10)


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_estimate_and_bracket(shape, dtype, x64):
    missed = []
    for name in ADVERSARIAL:
        for seed in range(3):
            arguments = case(name, shape, dtype, seed)
            result = mirjax.dataset_interplay(
                *arguments, method="lanczos", rank=20, key=jax.random.key(seed)
            )
            expected = definition.interplay(*arguments)
            assert_inside(result, expected, f"{name}, seed {seed}")
            assert result.method == "lanczos"
            error = abs(float(result.joint_entropy) - expected.joint_entropy)
            missed.append(error > 2 * float(result.standard_error.joint_entropy))
            assert error < 0.01 * max(expected.joint_entropy, 1.0), name
    assert np.mean(missed) < 0.15


def test_marginals_are_exact_whatever_the_method():
    arguments = case("random", dtype="float32")
    expected = definition.interplay(*arguments)
    result = mirjax.dataset_interplay(*arguments, method="lanczos", rank=2, probes=2)
    for name in ("entropy1", "entropy2", "entropy_difference", "hdr"):
        assert_near(getattr(result, name), getattr(expected, name), 2e-5)
        assert getattr(result.standard_error, name) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_and_masks(shape, x64):
    features, head, labels = case("random", shape)
    weights = np.random.default_rng(0).uniform(size=len(labels))
    weights[::3] = 0
    features[3], labels[6] = np.nan, -1
    head[1], features[4] = 0, 0
    expected = definition.interplay(features, head, np.maximum(labels, 0), weights)
    for method in ("exact", "lanczos"):
        result = mirjax.dataset_interplay(
            features, head, labels, weights=weights, method=method, rank=400
        )
        assert_near(result.joint_entropy, expected.joint_entropy, 1e-6)
        assert_near(result.mir, expected.mir, 1e-6)
        counted = weights * (labels != 1) * (np.arange(len(labels)) != 4)
        assert_near(result.weight, counted.sum(), 1e-9)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_weight_and_nan(shape, method):
    features, head, labels = case("random", shape, "float32")
    zero = np.zeros(len(labels), np.float32)
    result = mirjax.dataset_interplay(features, head, labels, weights=zero, method=method)
    assert all(getattr(result, name) == 0 for name in (*FIELDS, "weight"))
    labels[3] = len(head)
    assert np.isnan(mirjax.dataset_interplay(features, head, labels, method=method).mir)


@pytest.mark.numerics
@pytest.mark.parametrize(("width1", "width2"), [(6, 5), (30, 40)])
def test_two_representations(width1, width2, x64):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(400, 4))
    rows = [
        shared @ rng.normal(size=(4, w)) + 0.3 * rng.normal(size=(400, w)) for w in (width1, width2)
    ]
    weights = rng.uniform(size=400)
    weights[::7] = 0
    expected = definition.feature_interplay(*rows, weights)
    exact = mirjax.dataset_feature_interplay(*rows, weights=weights, method="exact")
    for name in FIELDS:
        assert_near(getattr(exact, name), getattr(expected, name), 1e-10)
    estimate = mirjax.dataset_feature_interplay(*rows, weights=weights, method="lanczos", rank=24)
    assert_inside(estimate, expected)
    error = abs(float(estimate.joint_entropy) - expected.joint_entropy)
    assert error <= 3 * float(estimate.standard_error.joint_entropy) + 1e-10


def test_a_bound_of_the_purity_gives_a_wider_bracket_that_holds(x64):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(700, 3)), rng.normal(size=(700, 4))
    result = mirjax.dataset_feature_interplay(*rows, method="lanczos", rank=5)
    assert_inside(result, definition.feature_interplay(*rows))
    known = mirjax.dataset_feature_interplay(*(r[:300] for r in rows), method="lanczos", rank=5)
    width, known_width = (float(r.upper.mir - r.lower.mir) for r in (result, known))
    assert width > 2 * known_width


def test_tolerance_is_met_or_said_not_to_be():
    arguments = case("slow decay", "moments", "float32")
    expected = definition.interplay(*arguments).joint_entropy
    loose = mirjax.dataset_interplay(*arguments, method="lanczos", rank=4, probes=4)
    for tolerance in (3e-3, 1e-3):
        result = mirjax.dataset_interplay(
            *arguments, method="lanczos", rank=4, probes=4, tolerance=tolerance
        )
        assert result.converged
        assert result.products > loose.products
        assert result.standard_error.joint_entropy <= tolerance * result.joint_entropy
        assert abs(result.joint_entropy - expected) < 4 * tolerance * expected
    bracket = mirjax.dataset_interplay(
        *arguments, method="lanczos", rank=4, tolerance=0.01, target="bracket"
    )
    assert bracket.converged
    width = bracket.upper.joint_entropy - bracket.lower.joint_entropy
    assert width <= 0.02 * bracket.joint_entropy
    never = mirjax.dataset_interplay(
        *arguments, method="lanczos", rank=4, tolerance=1e-9, max_products=600
    )
    assert not never.converged
    assert never.products <= 600
    assert_inside(never, definition.interplay(*arguments))


def test_tolerance_of_what_has_no_entropy_or_no_value():
    features, head, labels = case("identical samples", dtype="float32")
    head[:] = head[0]
    options = {"method": "lanczos", "rank": 4, "tolerance": 1e-3}
    result = mirjax.dataset_interplay(features, head, labels, **options)
    assert result.converged
    assert result.products < 400
    features[0, 0] = np.nan
    result = mirjax.dataset_interplay(features, head, labels, **options)
    assert not result.converged
    assert result.products < 400
    for part in (result, result.lower, result.upper):
        assert np.isnan(part.mir)
        assert np.isnan(part.hdr)


def test_the_exact_method_answers_to_the_tolerance_too():
    arguments = case("random", dtype="float32")
    for tolerance, met in ((1e-3, True), (1e-8, False)):
        result = mirjax.dataset_interplay(*arguments, tolerance=tolerance, target="bracket")
        assert result.method == "exact"
        assert result.converged is met


def test_a_wrong_label_is_nan_even_where_the_head_is_zero():
    features, head, labels = case("random", dtype="float32")
    head[0], labels[5] = 0, len(head)
    for method in ("exact", "lanczos"):
        assert np.isnan(mirjax.dataset_interplay(features, head, labels, method=method).mir)
    assert np.isnan(jax.jit(mirjax.interplay)(features, head, labels).mir)


def test_constant_weights_change_nothing_in_large_sets():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200_000)
    head = rng.normal(size=(3, 6)).astype(np.float32)
    features = (head[labels] + 0.3 * rng.normal(size=(200_000, 6))).astype(np.float32)
    with enable_x64(True):
        exact = mirjax.dataset_interplay(np.float64(features), np.float64(head), labels)
    exact = types.SimpleNamespace(**{name: float(getattr(exact, name)) for name in FIELDS})
    for weight in (1.0, 0.1, 0.3):
        weights = np.full(200_000, weight, np.float32)
        for method in ("exact", "lanczos"):
            result = mirjax.dataset_interplay(
                features, head, labels, weights=weights, method=method, rank=6
            )
            assert_inside(result, exact, f"{weight} {method}")
            error = 3 * float(result.standard_error.joint_entropy) + 1e-5
            assert abs(float(result.joint_entropy) - exact.joint_entropy) < error
            assert float(result.weight) == pytest.approx(200_000 * weight, rel=1e-5)


@pytest.mark.numerics
def test_large_decompositions_in_float64(x64):
    # Sides 1,200 (samples) and 1,152 (moments).
    for shape in ((1200, 64, 40), (1500, 48, 24)):
        arguments = cases.cast(cases.make("random", *shape), "float64")
        result = mirjax.dataset_interplay(*arguments, method="exact")
        expected = definition.interplay(*arguments)
        for name in FIELDS:
            assert_near(getattr(result, name), getattr(expected, name), 1e-10)


def test_same_key_same_numbers():
    arguments = case("random", dtype="float32")
    first, again, other = (
        mirjax.dataset_interplay(*arguments, method="lanczos", rank=4, key=key)
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert first.mir == again.mir
    assert first.mir != other.mir


def test_auto_is_exact_while_that_is_small():
    small = mirjax.dataset_interplay(*case("random", dtype="float32"))
    assert small.method == "exact"
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4200, 65)).astype(np.float32)
    head, labels = rng.normal(size=(64, 65)).astype(np.float32), np.arange(4200) % 64
    large = mirjax.dataset_interplay(features, head, labels, rank=8, probes=2)
    assert large.method == "lanczos"


def test_what_does_not_fit_is_refused_with_numbers_and_a_way_out():
    rng = np.random.default_rng(0)
    features, head = rng.normal(size=(3000, 60)), rng.normal(size=(40, 60))
    arguments = features.astype(np.float32), head.astype(np.float32), np.arange(3000) % 40
    with pytest.raises(
        MemoryError,
        match=r"method='exact' needs about \d+ MiB per device for n, d, C = 3000, 60, 40, but only "
        r"16 MiB are available\. method='lanczos' needs \d+ MiB",
    ):
        mirjax.dataset_interplay(*arguments, method="exact", memory_limit=2**24)
    with pytest.raises(MemoryError, match="take fewer samples, a smaller rank, or more devices"):
        mirjax.dataset_interplay(*arguments, method="exact", memory_limit=2**10)
    moments = mirjax.ClassMoments.zeros(40, 60)
    with pytest.raises(MemoryError, match="for d, C = 60, 40"):
        moments.interplay(head.astype(np.float32), method="exact", memory_limit=2**24)
    with pytest.raises(MemoryError, match="n, d1, d2 = 3000, 60, 60"):
        mirjax.dataset_feature_interplay(
            arguments[0], arguments[0], method="exact", memory_limit=2**24
        )


REFUSED = {
    "batch axes": (
        lambda z, w, y: (z[None], w[None], y[None]),
        {},
        r"must be \[n, d\] without batch",
    ),
    "transposed head": (lambda z, w, y: (z, w.T, y), {}, "pass its transpose"),
    "method": (
        lambda *a: a,
        {"method": "eigh"},
        "method must be one of 'auto', 'exact', 'lanczos'",
    ),
    "target": (lambda *a: a, {"target": "width"}, "target must be one of"),
    "tolerance": (lambda *a: a, {"tolerance": 0.0}, "tolerance must be positive"),
    "probes": (lambda *a: a, {"probes": 1}, "probes must be at least 2, got 1"),
    "rank": (lambda *a: a, {"rank": 0}, "rank must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    change, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        mirjax.dataset_interplay(*change(*case("random", dtype="float32")), **options)


def test_result_is_a_pytree():
    result = mirjax.dataset_interplay(*case("random", dtype="float32"))
    doubled = jax.tree.map(lambda x: 2 * x, result)
    assert doubled.mir == 2 * result.mir
    assert doubled.lower.mir == 2 * result.lower.mir
    assert doubled.method == "exact"


def test_options_defaults_are_the_documented_ones():
    assert Options().rank_for(10_000) == 128
    assert Options(rank=7).rank_for(5) == 5
    text = mirjax.dataset_interplay.__doc__
    assert "128 if not given" in text
    assert "16 if not given" in text
    assert "20,000 if not given" in text
    result = mirjax.dataset_interplay(
        *cases.cast(cases.make("random", 900, 20, 10), "float32"), method="lanczos"
    )
    assert result.products == 704
    assert "704 products" in " ".join(text.split())
    assert jnp.isfinite(result.mir)
