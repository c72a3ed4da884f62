import numpy as np
import pytest

from train.engine.loader import BatchOrder
from train.run.lanes import Knobs, Lane

KNOBS = Knobs(0.1, 0.0)


def order_of(*lanes, samples=10, batch=5):
    return BatchOrder(lanes, samples, batch)


def test_batch_order_is_a_permutation_an_epoch_and_depends_on_the_seed_alone():
    steps = order_of(Lane(0, KNOBS), Lane(1, KNOBS))(0, 4)
    assert steps.shape == (4, 2, 5)
    for seed in range(2):
        assert sorted(steps[:2, seed].ravel()) == list(range(10))
        assert sorted(steps[2:, seed].ravel()) == list(range(10))
    assert not np.array_equal(steps[:2, 0], steps[:2, 1])
    assert not np.array_equal(steps[:2, 0], steps[2:, 0])
    assert np.array_equal(order_of(Lane(1, KNOBS))(3, 1)[0, 0], steps[3, 1])


def test_copies_part_at_their_branch_step_and_not_before():
    lanes = Lane(0, KNOBS), Lane(0, KNOBS, copy=1), Lane(0, KNOBS, copy=2, branch_step=3)
    steps = order_of(*lanes)(0, 6)
    assert not np.array_equal(steps[:2, 0], steps[:2, 1])
    assert np.array_equal(steps[:3, 0], steps[:3, 2])
    assert not np.array_equal(steps[3:, 0], steps[3:, 2])
    # Whichever step is asked for first.
    assert np.array_equal(order_of(*lanes)(4, 1), steps[4:5])


def test_batch_larger_than_the_split():
    with pytest.raises(ValueError, match=r"batch_size 11 is larger.*10 samples"):
        order_of(Lane(0, KNOBS), batch=11)
