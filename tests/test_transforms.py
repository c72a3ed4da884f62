"""Eager, jit, vmap, batch axes and a Python loop agree; scan, remat, jvp work; one trace a shape."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.tolerances import assert_near

PATHS = {"samples": (12, 8, 3), "moments, C < d": (12, 3, 2), "moments, C > d": (12, 2, 3)}


def batch(shape, size=3):
    drawn = [cases.cast(cases.make("random", *shape, seed=s), "float32") for s in range(size)]
    return tuple(np.stack(parts) for parts in zip(*drawn, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_eager_jit_vmap_batch_axes_and_loop_agree(path):
    arguments = batch(PATHS[path])
    weights = np.ones(arguments[2].shape, np.float32)
    loop = np.stack([compiled.interplay(*item) for item in zip(*arguments, strict=True)], axis=1)
    eager = mirjax.interplay(*(part[0] for part in arguments))
    np.testing.assert_allclose(eager, loop[:, 0], rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.vmap(mirjax.interplay))(*arguments)
    np.testing.assert_allclose(mapped, loop, rtol=1e-5, atol=1e-6)
    batched = compiled.interplay(*arguments, weights=weights)
    np.testing.assert_allclose(batched, loop, rtol=1e-5, atol=1e-6)


def test_two_batch_axes_of_every_function():
    features, head, labels = (jnp.asarray(part)[None] for part in batch((12, 8, 3), 2))
    weights, kernel = jnp.ones((1, 2, 12)), mirjax.gram(features)
    bias = jnp.ones((1, 2, 3))
    calls = {
        "matrix_entropy": lambda: mirjax.matrix_entropy(kernel),
        "feature_entropy": lambda: mirjax.feature_entropy(features, weights=weights),
        "effective_rank": lambda: mirjax.effective_rank(features, weights=weights),
        "kernel_interplay": lambda: mirjax.kernel_interplay(kernel, kernel),
        "class_interplay": lambda: mirjax.class_interplay(head, head),
        "feature_interplay": lambda: mirjax.feature_interplay(features, features, weights=weights),
        "neural_collapse": lambda: mirjax.neural_collapse(
            features, labels, head, num_classes=3, weights=weights, bias=bias
        ),
        "mutual_information_loss": lambda: mirjax.losses.mutual_information_loss(
            features, head, labels, weights=weights
        ),
        "entropy_difference_loss": lambda: mirjax.losses.entropy_difference_loss(
            features, head, labels, weights=weights
        ),
    }
    assert kernel.shape == (1, 2, 12, 12)
    for name, call in calls.items():
        shapes = {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(call))}
        assert shapes == {(1, 2)}, name


def test_rematerialised_nothing_of_the_side_of_the_batch_is_kept():
    features, head, labels = jnp.ones((48, 7)), jnp.ones((10, 7)), jnp.zeros(48, int)

    def kept(loss):
        pulled = jax.eval_shape(lambda f, h: jax.vjp(loss, f, h)[1], features, head)
        return max(leaf.size for leaf in jax.tree.leaves(pulled))

    for method in ("eigh", "products"):

        def loss(f, h, method=method):
            return mirjax.losses.mutual_information_loss(f, h, labels, method=method)

        assert kept(loss) == 48 * 48
        assert kept(jax.checkpoint(loss)) <= 48 * 10


def test_scan_and_remat():
    features, head, labels = batch((12, 8, 3))

    def mean(function):
        def step(total, item):
            return total + function(*item).mutual_information, None

        return lambda z: jax.lax.scan(step, 0.0, (z, head, labels))[0]

    plain = jax.jit(jax.value_and_grad(mean(mirjax.interplay)))(features)
    remat = jax.jit(jax.value_and_grad(mean(jax.checkpoint(mirjax.interplay))))(features)
    items = zip(features, head, labels, strict=True)
    assert_near(plain[0], sum(compiled.interplay(*i).mutual_information for i in items), 1e-5)
    np.testing.assert_allclose(remat[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(remat[1], plain[1], rtol=1e-4, atol=1e-5)


def test_vmap_of_the_gradient_is_a_loop():
    features, head, labels = batch((12, 8, 3))
    gradient = jax.grad(lambda *a: mirjax.interplay(*a).mutual_information)
    mapped = jax.jit(jax.vmap(gradient))(features, head, labels)
    single = jax.jit(gradient)
    loop = [single(*item) for item in zip(features, head, labels, strict=True)]
    np.testing.assert_allclose(mapped, np.stack(loop), rtol=1e-4, atol=1e-5)


def test_one_trace_a_shape():
    @jax.jit
    @chex.assert_max_traces(n=2)
    def traced(*arguments):
        return mirjax.interplay(*arguments).mir

    for seed in range(3):
        for degeneracy in ("random", "collapse"):
            for shape in ((9, 4, 3), (12, 4, 3)):
                case = cases.make(degeneracy, *shape, seed=seed)
                traced(*cases.cast(case, "float32"))


def test_ordinary_input_makes_no_nan_on_the_way():
    features, head, labels = (part[0] for part in batch((12, 8, 3)))
    features[:2] = 0

    def everything(z, w):
        moments = mirjax.ClassMoments.zeros(3, 8).update(z, labels)
        collapse = moments.merge(moments).collapse(w)
        assert collapse.nc4 is None
        few = mirjax.ClassMoments.zeros(20, 8, second=False).update(z, labels)
        return (
            mirjax.interplay(z, w, labels),
            mirjax.neural_collapse(z, labels, w, num_classes=3),
            moments.interplay(w),
            moments.agreement(z, w),
            few.sums.sums,
            collapse,
        )

    def total(z, w):
        return sum(jnp.sum(part) for part in jax.tree.leaves(everything(z, w)))

    with jax.debug_nans(True):
        jax.block_until_ready(everything(features, head))
        jax.block_until_ready(jax.jit(jax.grad(total, argnums=(0, 1)))(features, head))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_cast_up_first(dtype):
    features, head, labels = (part[0] for part in batch((12, 8, 3)))
    low = jnp.asarray(features, dtype), jnp.asarray(head, dtype)
    result = compiled.interplay(*low, labels)
    expected = compiled.interplay(*(x.astype(jnp.float32) for x in low), labels)
    assert result.mir.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    assert mirjax.gram(low[0]).dtype == jnp.float32
    gradient = jax.eval_shape(jax.grad(mirjax.feature_entropy), low[0])
    assert gradient.dtype == dtype


def test_mixed_dtypes_are_the_widest(x64):
    features, head, labels = (part[0] for part in batch((12, 8, 3)))
    result = compiled.interplay(jnp.asarray(features, jnp.bfloat16), np.float64(head), labels)
    assert result.mir.dtype == jnp.float64
    for dtype in (jnp.float32, jnp.float64):
        shape = jax.eval_shape(mirjax.feature_entropy, features.astype(dtype))
        assert shape.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_labels_of_any_integer_dtype(dtype):
    features, head, labels = (part[0] for part in batch((12, 8, 3)))
    result = compiled.interplay(features, head, labels.astype(dtype))
    np.testing.assert_allclose(result, compiled.interplay(features, head, labels), atol=1e-6)


def test_narrow_labels_of_many_classes():
    labels = np.arange(12, dtype=np.int8) * 10
    features, head = np.eye(12, 3, dtype=np.float32) + 1, np.ones((200, 3), np.float32)
    mirjax.check(features, head, labels)
    expected = compiled.interplay(features, head, labels.astype(np.int32))
    np.testing.assert_array_equal(compiled.interplay(features, head, labels), expected)
