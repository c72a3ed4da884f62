"""Tens of thousands of classes: the same values, and no array of classes by classes or samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import losses
from mirjax._batch import classes as by_class
from mirjax._batch import collapse
from mirjax._dataset import dataset, lanczos, marginals, plan
from mirjax._dataset.estimate import Options
from tests.reference import definition
from tests.tolerances import assert_interplay, assert_near

N, D, C = 48, 6, 3000


def case(n=N, width=D, classes=C, seed=0, dtype="float64"):
    """Skewed labels: few classes have many samples, many have one or none."""
    rng = np.random.default_rng(seed)
    head = rng.normal(size=(classes, width))
    rank = np.minimum(rng.zipf(1.5, n) - 1, classes - 1)
    labels = rng.permutation(classes)[rank].astype(np.int32)
    features = head[labels] + rng.normal(size=(n, width))
    return features.astype(dtype), head.astype(dtype), labels


def test_interplay_is_the_definition(x64):
    features, head, labels = case()
    weights = np.random.default_rng(1).uniform(size=N)
    found = jax.jit(mirjax.interplay)(features, head, labels, weights=weights)
    assert_interplay(found, definition.interplay(features, head, labels, weights))


@pytest.mark.parametrize("n", [400, 90])
def test_more_samples_than_pairs_of_columns(n, monkeypatch, x64):
    # The joint matrix is one of pairs of columns, summed over the samples in steps.
    monkeypatch.setattr(mirjax._batch.joint, "_BY_CLASS", 300)
    features, head, labels = case(n, 3, 200)
    gradient = jax.jit(jax.grad(lambda z: mirjax.interplay(z, head, labels).joint_entropy))
    found = mirjax.interplay(features, head, labels)
    assert_interplay(found, definition.interplay(features, head, labels))
    direction = np.random.default_rng(2).normal(size=features.shape)
    ends = [
        definition.interplay(features + s * direction, head, labels).joint_entropy
        for s in (1e-5, -1e-5)
    ]
    assert_near(np.sum(gradient(features) * direction), (ends[0] - ends[1]) / 2e-5, 1e-7)


def test_nan_in_a_row_of_the_head_that_no_sample_uses():
    features, head, labels = case(dtype="float32")
    unused = np.setdiff1d(np.arange(C), labels)[0]
    head[unused, 2] = np.nan
    assert np.isnan(mirjax.interplay(features, head, labels).mir)
    assert np.isnan(mirjax.dataset_interplay(features, head, labels, method="lanczos").mir)


@pytest.mark.parametrize("label", [-1, C])
def test_a_label_that_is_no_class(label):
    features, head, labels = case(dtype="float32")
    labels[3] = label
    assert np.isnan(mirjax.interplay(features, head, labels).mir)
    assert np.isnan(mirjax.dataset_interplay(features, head, labels, method="lanczos").mir)


def sizes(jaxpr):
    """The number of entries of every array that a traced function forms."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(getattr(variable.aval, "shape", ()))), equation.primitive.name
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(part):
                yield from sizes(getattr(part, "jaxpr", part))


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def of_collapse(z, w, y):
    result = mirjax.neural_collapse(z, y, w, num_classes=len(w))
    return sum(value for name, value in result._asdict().items() if name != "nc4") + result.nc4


FUNCTIONS = {
    "interplay": lambda z, w, y: mirjax.interplay(z, w, y).mir,
    "mutual information": losses.mutual_information_loss,
    "entropy difference": losses.entropy_difference_loss,
    "collapse": of_collapse,
    "moments": lambda z, w, y: (
        mirjax.ClassMoments.zeros(len(w), D, second=False).update(z, y).collapse(w).cdnv
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_array_of_classes_by_classes_or_by_samples(name, monkeypatch):
    monkeypatch.setattr(by_class, "_TILE", 1)
    monkeypatch.setattr(by_class, "_ONE_HOT", 1)
    monkeypatch.setattr(collapse, "_TILE", C)
    features, head, labels = case(n=150, dtype="float32")
    traced = jax.make_jaxpr(jax.value_and_grad(FUNCTIONS[name], argnums=1))(features, head, labels)
    largest = max(sizes(traced.jaxpr))
    # Rows of the head, a few of them side by side; 150 samples by all classes would be 450,000.
    assert largest[0] <= 3 * C * (D + 2), largest


def test_no_such_array_in_the_estimate_of_a_data_set(monkeypatch):
    monkeypatch.setattr(mirjax._dataset.operators, "SQUARE", 1)
    monkeypatch.setattr(by_class, "_ONE_HOT", 1)
    features, head, labels = case(n=C + 500, dtype="float32")

    def estimate(features, head, labels):
        ones = jnp.ones(len(features))
        operator = marginals.of_rows(features, head, labels, ones, 1).operator
        return operator.purity(), operator.apply(jnp.ones((operator.size, 1)))

    traced = jax.make_jaxpr(estimate)(features, head, labels)
    # The rows in blocks, of which each class has one that is not full.
    assert max(sizes(traced.jaxpr))[0] <= 4 * (C + 500) * D


TOO_MANY = {
    "class_interplay": (
        lambda rows, _: mirjax.class_interplay(rows, rows),
        r"the joint kernel of 50257 classes would be a matrix of side 50257, whose decomposition "
        r"needs about 47.05 GiB; 2.00 GiB are available. Use dataset_feature_interplay\(class_means",
    ),
    "interplay": (
        lambda rows, labels: mirjax.interplay(rows, rows[:999], labels),
        "the joint kernel of 50257 samples .*Use dataset_interplay",
    ),
    "feature_interplay": (
        lambda rows, _: mirjax.feature_interplay(rows, rows),
        "the joint kernel of 50257 samples .*Use dataset_feature_interplay",
    ),
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_a_matrix_that_does_not_fit_is_refused(name, monkeypatch):
    monkeypatch.setattr(mirjax._memory, "available", lambda: 2**31)
    call, message = TOO_MANY[name]
    rows = jax.ShapeDtypeStruct((50_257, 768), jnp.float32)
    with pytest.raises(MemoryError, match=message):
        jax.eval_shape(call, rows, jax.ShapeDtypeStruct((50_257,), jnp.int32))


OPERATORS = ("moments", "rows", "dense")


@pytest.mark.parametrize("operator", OPERATORS)
# The last has fewer samples than its moments have eigenvalues, and more than are split off.
@pytest.mark.parametrize(("n", "width", "classes"), [(500, 5, 700), (500, 5, 40), (500, 30, 40)])
def test_every_operator_has_the_same_spectrum(operator, n, width, classes, monkeypatch, x64):
    features, head, labels = case(n, width, classes)

    def choose(plans, _):
        return next(p for p in plans if p.operator == operator)

    monkeypatch.setattr(plan, "choose", choose)
    weights = np.random.default_rng(3).uniform(size=n)
    weights[:7] = 0
    exact = definition.interplay(features, head, labels, weights)
    result = mirjax.dataset_interplay(features, head, labels, weights=weights, method="lanczos")
    assert_near(result.entropy1, exact.entropy1, 1e-9)
    assert_near(result.entropy2, exact.entropy2, 1e-9)
    error = 4 * float(result.standard_error.joint_entropy) + 1e-4
    assert_near(result.joint_entropy, exact.joint_entropy, error)
    assert result.lower.joint_entropy <= exact.joint_entropy <= result.upper.joint_entropy


@pytest.mark.parametrize("tile", [64, 2])
def test_rows_of_balanced_classes_give_the_same_products(tile, monkeypatch, x64):
    monkeypatch.setattr(mirjax._dataset.operators, "_TILE", tile)
    features, head, _ = case(300, 5, 30)
    labels = np.append(np.arange(290) % 30, np.arange(10) % 3)
    arguments = tuple(map(jnp.asarray, (features, head, labels, np.ones(300))))
    balanced = marginals.of_rows(*arguments, 1, 16)
    assert balanced.operator.turned is not None
    other = marginals.of_rows(*arguments, 1)
    assert other.operator.turned is None
    np.testing.assert_allclose(balanced[1:], other[1:], atol=1e-12)
    vectors = np.random.default_rng(1).normal(size=(300, 3))
    kernel = definition.gram(features) * definition.gram(head[labels]) / 300
    for operator in (balanced.operator, other.operator):
        placed = operator.draw(lambda *_: jnp.asarray(vectors), 3)
        index = np.asarray(operator.index).reshape(-1)
        found = np.asarray(operator.apply(placed))[index < 300]
        np.testing.assert_allclose(found, (kernel @ vectors)[index[index < 300]], atol=1e-12)
        assert_near(operator.purity(), np.sum(kernel**2), 1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_purity_by_rows_by_classes_and_as_a_bound(steps, monkeypatch, x64):
    features, head, labels = case(300, 5, 90)
    monkeypatch.setattr(mirjax._dataset.dense, "WORK", 8 * 300 * steps)
    ones = jnp.ones(300)
    operator = marginals.of_rows(features, head, labels, ones, 1).operator
    kernel = definition.gram(features) * definition.gram(head[labels]) / 300
    exact = np.sum(kernel**2)
    for how in ("classes", "rows"):
        monkeypatch.setattr(type(operator), "_purity_of", lambda _, how=how: (how, 0.0))
        assert_near(operator.purity(), exact, 1e-12)
    monkeypatch.setattr(type(operator), "_purity_of", lambda _: ("bound", 0.0))
    assert exact <= operator.purity() < 3 * exact
    assert not operator.purity_is_exact
    dense = marginals.of_samples.__wrapped__(features, head, labels, ones).operator
    np.testing.assert_allclose(dense.matrix, kernel, atol=1e-12)
    assert_near(dense.purity(), exact, 1e-12)


# As users compile: the tests' own settings plan the memory in another way.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if jax.__version_info__ < (0, 11):
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True


def peak(operator, n, width, classes, size=None):
    """Bytes of the largest program of an estimate, as the compiler plans it."""
    shape = jax.ShapeDtypeStruct
    features, weights = shape((n, width), jnp.float32), shape((n,), jnp.float32)
    head, labels = shape((classes, width), jnp.float32), shape((n,), jnp.int32)
    programs = []

    def build(function, *arguments):
        programs.append(function.lower(*arguments))
        return jax.eval_shape(function.__wrapped__, *arguments)

    if operator == "moments":
        function = jax.jit(lambda z, y, w: dataset.sums_of(z, y, w, classes, 1))
        sums = build(function, features, labels, weights)
        result = build(jax.jit(lambda s, h: marginals.of_sums(s, h, samples=n)), sums, head)
    elif operator in ("dense", "rows"):
        of = {"dense": marginals.of_samples, "rows": marginals.of_rows}[operator]
        more = (1, size) if operator == "rows" else ()
        function = jax.jit(lambda z, h, y, w: of(z, h, y, w, *more))
        result = build(function, features, head, labels, weights)
    else:
        second = shape((n, classes), jnp.float32)
        function = jax.jit(lambda a, b, w: marginals.of_pair(a, b, w, 1))
        result = build(function, features, second, weights)
    rank = Options().rank_for(result.operator.size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    basis = shape((result.operator.size, rank), jnp.float32)
    programs += [
        lanczos.known_of.lower(result.operator),
        lanczos.top_subspace.lower(result.operator, key, rank=rank, iterations=2),
        lanczos.probe_complement.lower(result.operator, basis, key, probes=16, degree=20),
    ]
    return max(_bytes(program.compile(OPTIMISED).memory_analysis()) for program in programs)


def _bytes(analysis):
    used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return used + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "n", "width", "classes", "size"),
    [
        ("dense", 20_000, 768, 7_000, None),
        ("rows", 200_000, 768, 28_000, None),
        ("rows", 50_000, 512, 100, 700),
        ("moments", 100_000, 512, 100, None),
        ("pairs", 50_257, 768, 768, None),
        ("pairs", 100_000, 64, 48, None),
    ],
)
def test_the_memory_estimate_is_that_of_the_compiler(operator, n, width, classes, size):
    of = plan.of_pair if operator == "pairs" else plan.of_labelled
    more = () if operator == "pairs" else (size,)
    plans = of(n, width, classes, 1, 4, Options(), *more)
    estimate = next(p.memory for p in plans if p.operator == operator)
    assert 1 / 1.5 <= estimate / peak(operator, n, width, classes, size) <= 1.5


def test_what_is_cheap_and_fits_is_chosen():
    def chosen(n, width, classes, limit=2**40):
        return plan.choose(plan.of_labelled(n, width, classes, 1, 4, Options()), limit).operator

    assert chosen(1_281_167, 512, 100) == "moments"
    assert chosen(50_000, 512, 1_000) == "rows"
    assert chosen(20_000, 768, 7_000) == "dense"
    # The matrix of all samples would take 1.6 GB, and no more than 60 % of the memory.
    assert chosen(20_000, 768, 7_000, limit=2**31) == "rows"
