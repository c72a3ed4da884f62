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


def test_default_sizes_and_keys():
    arguments = noise(70)
    first, other = (mirjax.batch_bias(*arguments, key=jax.random.key(i)) for i in (0, 1))
    assert first.batch_sizes.tolist() == [16, 32, 64]
    assert first.mean.mir[0] != other.mean.mir[0]
    np.testing.assert_array_equal(first.mean.mir, mirjax.batch_bias(*arguments).mean.mir)
    assert mirjax.batch_bias(*noise(10)).batch_sizes.tolist() == [10]


def test_refused():
    with pytest.raises(ValueError, match=r"batch_sizes must lie in \[1, n = 30\], got \(8, 31\)"):
        mirjax.batch_bias(*noise(30), batch_sizes=(8, 31))
    with pytest.raises(ValueError, match="max_batches must be at least 1, got 0"):
        mirjax.batch_bias(*noise(30), max_batches=0)
    assert jnp.isfinite(mirjax.batch_bias(*noise(30), batch_sizes=(8,)).whole.mir)
