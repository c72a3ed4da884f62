import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests.reference import definition


def noise(n=900, d=12, classes=5):
    rng = np.random.default_rng(0)
    features, head = rng.normal(size=(n, d)), rng.normal(size=(classes, d))
    return features.astype(np.float32), head.astype(np.float32), np.arange(n) % classes


def test_small_batches_overstate_mir_and_hardly_move_hdr():
    arguments = noise()
    bias = mirjax.batch_bias(*arguments, batch_sizes=(300, 20))
    assert bias.batch_sizes.tolist() == [20, 300]
    assert bias.batches.tolist() == [45, 3]
    expected = definition.interplay(*arguments)
    assert float(bias.whole.mir) == pytest.approx(expected.mir, abs=1e-4)
    assert bias.mean.mir[0] > 0.5 > bias.mean.mir[1] > bias.whole.mir
    assert abs(bias.mean.hdr[0] - bias.whole.hdr) < 0.1
    assert np.all(bias.spread.mir > 0)


def test_the_whole_as_one_batch_is_the_whole():
    arguments = noise(60)
    bias = mirjax.batch_bias(*arguments, batch_sizes=(60,))
    for name in mirjax.Interplay._fields:
        assert float(getattr(bias.mean, name)[0]) == pytest.approx(
            float(getattr(bias.whole, name)), abs=2e-5
        )
        assert getattr(bias.spread, name)[0] == 0


def test_debiased_values_hardly_depend_on_the_size():
    features, head, labels = noise()
    features = features + head[labels]
    bias = mirjax.batch_bias(features, head, labels, batch_sizes=(20, 300), permutations=2)
    whole = bias.whole_debiased
    assert np.all(np.abs(bias.debiased.mir - whole.mir) < 5 * whole.standard_error.mir)
    assert bias.mean.mir[0] - bias.whole.mir > 0.2
    assert abs(bias.adjusted_mir[0] - bias.whole.mir) < 0.1
    assert np.all(bias.debiased_spread.mir > 0)
    # Batches with fewer than two samples of weight are left out.
    weights = (np.arange(900) % 3 == 0).astype(np.float32)
    few = mirjax.batch_bias(features, head, labels, weights=weights, batch_sizes=(6,))
    assert np.all(np.isfinite(few.debiased.mir))
    assert np.all(np.isfinite(few.debiased_spread.mir))
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        mirjax.batch_bias(features, head, labels, permutations=0)


def test_default_sizes_and_keys():
    arguments = noise(70)
    first, other = (mirjax.batch_bias(*arguments, key=jax.random.key(i)) for i in (0, 1))
    assert first.batch_sizes.tolist() == [16, 32, 64]
    assert first.mean.mir[0] != other.mean.mir[0]
    np.testing.assert_array_equal(first.mean.mir, mirjax.batch_bias(*arguments).mean.mir)
    assert mirjax.batch_bias(*noise(10)).batch_sizes.tolist() == [10]


@pytest.mark.parametrize(
    "sizes",
    [
        np.array([20, 8]),
        np.array([20, 8], np.uint8),
        jnp.array([20, 8]),
        [np.int64(20), jnp.int32(8)],
        range(8, 21, 12),
        (size for size in (20, 8)),
    ],
    ids=["numpy", "uint8", "jax", "scalars", "range", "generator"],
)
def test_sizes_of_every_kind(sizes):
    bias = mirjax.batch_bias(*noise(40), batch_sizes=sizes)
    expected = mirjax.batch_bias(*noise(40), batch_sizes=(8, 20))
    assert bias.batch_sizes.tolist() == [8, 20]
    np.testing.assert_array_equal(bias.mean.mir, expected.mean.mir)


@pytest.mark.parametrize("most", [np.int64(3), np.array(3), jnp.int32(3)])
def test_number_of_batches_of_every_kind(most):
    assert mirjax.batch_bias(*noise(40), batch_sizes=(8,), max_batches=most).batches == 3


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        (np.array([8.0, 16.0]), r"(np.float64\(8.0\)|8.0)"),  # NumPy 2, NumPy 1
        (jnp.array([8.0]), r"Array\(8., dtype=float32\)"),
        (np.array([[8, 16]]), r"an array of int64 of shape \(1, 2\)"),
        (np.array(8), r"array\(8\)"),
        ([np.array([8, 16])], r"an array of int64 of shape \(2,\)"),
        (8, "8"),
        ((8, 16.5), "16.5"),
        ((8, "16"), "'16'"),
        ((True, 8), "True"),
        (np.array([True, True]), "(np.True_|True)"),
    ],
)
def test_what_are_no_sizes(sizes, given):
    message = rf"batch_sizes must be integers: a tuple such as \(16, 64\), .*; got {given}\."
    with pytest.raises(TypeError, match=message):
        mirjax.batch_bias(*noise(30), batch_sizes=sizes)


@pytest.mark.parametrize("most", [2.5, 3.0, True, "3", np.float32(3), None])
def test_what_is_no_number_of_batches(most):
    with pytest.raises(TypeError, match="max_batches must be an integer such as 64; got"):
        mirjax.batch_bias(*noise(30), batch_sizes=(8,), max_batches=most)


def test_traced_sizes_are_refused():
    with pytest.raises(TypeError, match=r"batch_sizes must be integers.*; got a traced value"):
        jax.jit(lambda sizes: mirjax.batch_bias(*noise(30), batch_sizes=sizes))(jnp.array([8, 16]))


def test_refused():
    with pytest.raises(ValueError, match=r"batch_sizes must lie in \[1, n = 30\], got \(8, 31\)"):
        mirjax.batch_bias(*noise(30), batch_sizes=(8, 31))
    for empty in ((), np.array([], int)):
        with pytest.raises(ValueError, match=r"must lie in \[1, n = 30\], got \(\)"):
            mirjax.batch_bias(*noise(30), batch_sizes=empty)
    for least in (0, np.int32(-1)):
        with pytest.raises(ValueError, match=f"max_batches must be at least 1, got {least}"):
            mirjax.batch_bias(*noise(30), max_batches=least)
    assert jnp.isfinite(mirjax.batch_bias(*noise(30), batch_sizes=(8,)).whole.mir)
