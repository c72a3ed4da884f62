"""The task: the table of an operation modulo p, split into training and test pairs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "squares": lambda a, b: a * a + b * b,
}


class Task(NamedTuple):
    """All pairs of an operation; those to train on come first."""

    pairs: np.ndarray
    """int32 `[p², 2]`."""
    labels: np.ndarray
    """int32 `[p²]`."""
    train_size: int
    alike: np.ndarray
    """int32 `[p]`: the same for numbers that have the same answers, such as a and -a in sums of
    squares; -1 for those with a single answer, such as 0 in products."""

    def unmirrored(self) -> np.ndarray:
        """The places of the test pairs `(a, b)` that nobody has seen: `(b, a)` is no training pair.

        Of `(a, b)` and `(b, a)`, which are nearly the same sample, the first one alone. The same
        goes for pairs of numbers that are alike. Pairs with a number that has a single answer are
        none of them: one training pair tells all.
        """
        low, high = np.sort(self.alike[self.pairs], axis=1).T
        pair = low * (1 + high.max(initial=0)) + high
        test = pair[self.train_size :]
        first = np.zeros(len(test), bool)
        first[np.unique(test, return_index=True)[1]] = True
        seen = np.isin(test, pair[: self.train_size])
        told = low[self.train_size :] < 0
        return self.train_size + np.flatnonzero(first & ~seen & ~told)


def modular_task(
    modulus: int, fraction: float, operation: str = "add", *, seed: int = 0, random: bool = False
) -> Task:
    """All `p²` pairs in random order; the first `int(fraction · p²)` of them are to train on.

    Args:
        modulus: p.
        fraction: share of the pairs to train on, in (0, 1).
        operation: `add`, `subtract`, `multiply` or `squares` (a² + b²), modulo p.
        seed: the seed of the order.
        random: whether to shuffle the labels among all pairs, a control in which there is nothing
            to generalise.

    Raises:
        ValueError: the modulus, fraction or operation does not fit.
    """
    if modulus < 2:
        raise ValueError(f"modulus must be at least 2, got {modulus}.")
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}.")
    size = int(fraction * modulus**2)
    if not 0 < size < modulus**2:
        raise ValueError(
            f"fraction {fraction} of {modulus**2} pairs leaves none to train on, or none to test."
        )
    first, second = np.divmod(np.arange(modulus**2), modulus)
    labels = OPERATIONS[operation](first, second) % modulus
    # Before the labels are shuffled: the control has the same unmirrored pairs.
    table = labels.reshape(modulus, modulus)
    alike = np.unique(table, axis=0, return_inverse=True)[1].ravel()
    alike = np.where(np.ptp(table, axis=1) == 0, -1, alike).astype(np.int32)
    # A generator of its own: the control has the same pairs in the same order.
    generator = np.random.default_rng((seed, modulus))
    if random:
        labels = generator.permutation(labels)
    order = np.random.default_rng(seed).permutation(modulus**2)
    pairs = np.stack([first, second], axis=1)
    pairs, labels = (x[order].astype(np.int32) for x in (pairs, labels))
    return Task(pairs, labels, size, alike)
