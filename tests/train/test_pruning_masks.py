import numpy as np
import pytest

from train.pruning import sparse_masks, sparsity_of


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "conv": {"kernel": rng.normal(0, 1, (3, 3, 2, 4)), "bias": rng.normal(size=4)},
        "head": {"kernel": rng.normal(0, 0.1, (4, 5)), "bias": rng.normal(size=5)},
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_exactly_the_share_of_all_kernels_together_is_dropped(params, method, sparsity):
    masks = sparse_masks(params, sparsity, method)
    assert masks["conv"]["bias"].all()
    assert masks["head"]["bias"].all()
    dropped = sum(np.sum(~masks[k]["kernel"]) for k in ("conv", "head"))
    assert dropped == round(sparsity * (72 + 20))
    kept = {k: {n: params[k][n] * masks[k][n] for n in params[k]} for k in params}
    assert sparsity_of(kept) == pytest.approx(dropped / 92)


def test_magnitude_drops_the_smallest_across_layers(params):
    masks = sparse_masks(params, 0.5)
    kernels = [np.abs(params[k]["kernel"]).ravel() for k in ("conv", "head")]
    kept = np.concatenate([masks[k]["kernel"].ravel() for k in ("conv", "head")])
    sizes = np.concatenate(kernels)
    assert sizes[kept].min() > sizes[~kept].max()
    # The head's weights are ten times smaller here: a share for each layer would keep half of them.
    assert masks["head"]["kernel"].mean() < 0.2


def test_ties_are_cut_to_the_exact_share():
    masks = sparse_masks({"kernel": np.ones((10, 10))}, 0.37)
    assert np.sum(~masks["kernel"]) == 37


def test_random_masks_follow_the_seed(params):
    first, again, other = (sparse_masks(params, 0.5, "random", seed=s) for s in (1, 1, 2))
    assert np.array_equal(first["conv"]["kernel"], again["conv"]["kernel"])
    assert not np.array_equal(first["conv"]["kernel"], other["conv"]["kernel"])


def test_a_share_beyond_one(params):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got 1.5"):
        sparse_masks(params, 1.5)
