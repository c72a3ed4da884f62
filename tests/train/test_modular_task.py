import numpy as np
import pytest

from train.modular.task import OPERATIONS, modular_task


@pytest.mark.parametrize("operation", OPERATIONS)
def test_train_and_test_pairs_are_disjoint_complete_and_right(operation):
    found = modular_task(7, 0.3, operation, seed=1)
    assert found.train_size == 14
    pairs = {tuple(pair) for pair in found.pairs.tolist()}
    assert pairs == {(a, b) for a in range(7) for b in range(7)}
    by_hand = {
        "add": lambda a, b: (a + b) % 7,
        "subtract": lambda a, b: (a - b) % 7,
        "multiply": lambda a, b: a * b % 7,
        "squares": lambda a, b: (a**2 + b**2) % 7,
    }[operation]
    assert [by_hand(a, b) for a, b in found.pairs.tolist()] == found.labels.tolist()


def test_the_published_split_has_3830_pairs():
    assert modular_task(113, 0.3).train_size == 3830


def test_the_seed_decides_the_split_and_random_labels_keep_their_number():
    first, again, other = (modular_task(7, 0.3, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.pairs, again.pairs)
    assert not np.array_equal(first.pairs, other.pairs)
    random = modular_task(7, 0.3, seed=1, random=True)
    assert np.array_equal(random.pairs, first.pairs)
    assert np.array_equal(np.sort(random.labels), np.sort(first.labels))
    assert np.mean(random.labels == first.labels) < 0.5


def test_unmirrored_pairs_have_not_been_seen_from_either_side():
    found = modular_task(7, 0.3, seed=2)
    train = {tuple(sorted(p)) for p in found.pairs[: found.train_size].tolist()}
    test = [tuple(sorted(p)) for p in found.pairs[found.train_size :].tolist()]
    chosen = [tuple(sorted(p)) for p in found.pairs[found.unmirrored()].tolist()]
    assert found.unmirrored().min() >= found.train_size
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) == set(test) - train


def test_unmirrored_pairs_of_products_have_no_factor_zero():
    sums, products, random = (
        modular_task(7, 0.3, name, seed=2, random=shuffled)
        for name, shuffled in (("add", False), ("multiply", False), ("multiply", True))
    )
    pairs = sums.pairs[sums.unmirrored()]
    assert np.any(pairs == 0)
    chosen = products.pairs[products.unmirrored()]
    assert np.array_equal(chosen, pairs[np.all(pairs != 0, axis=1)])
    assert np.array_equal(random.unmirrored(), products.unmirrored())


def test_unmirrored_pairs_of_squares_are_new_whatever_the_signs():
    found = modular_task(11, 0.3, "squares", seed=2)

    def variants(pairs):
        return [tuple(sorted(min(int(x), 11 - int(x)) for x in pair)) for pair in pairs]

    chosen = variants(found.pairs[found.unmirrored()])
    train, test = np.split(found.pairs, [found.train_size])
    assert len(set(chosen)) == len(chosen) > 0
    assert set(chosen) == set(variants(test)) - set(variants(train))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.5), "modulus must be at least 2"),
        ((7, 0.0), "leaves none"),
        ((7, 1.0), "leaves none"),
        ((7, 0.5, "divide"), "operation must be one of add, subtract"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular_task(*arguments)
