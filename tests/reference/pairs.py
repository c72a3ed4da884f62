"""Means over pairs of samples, pair by pair in float64, and the jackknife by leaving samples out.

Written from the definitions alone, shares nothing with `mirjax`.
"""

import numpy as np

from tests.reference.definition import combine, unit_rows


def purities(rows1, rows2, weights=None, groups=None):
    """The weighted means of both squared cosines and of their product over pairs of groups."""
    rows1, rows2 = unit_rows(rows1), unit_rows(rows2)
    n = len(rows1)
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    has_direction = np.any(rows1 != 0, axis=1) & np.any(rows2 != 0, axis=1)
    sums, weight = np.zeros(3), 0.0
    for i in range(n):
        for j in range(n):
            pair = weights[i] * weights[j] * has_direction[i] * has_direction[j]
            if groups[i] == groups[j] or pair == 0:
                continue
            k1, k2 = (float(r[i] @ r[j]) ** 2 for r in (rows1, rows2))
            sums += pair * np.array([k1, k2, k1 * k2])
            weight += pair
    return sums / weight


def interplay(rows1, rows2, weights=None, groups=None):
    """The fields of `mirjax.Interplay` of order 2, of the population."""
    with np.errstate(divide="ignore"):
        return combine(*(-np.log(purities(rows1, rows2, weights, groups))))


def of_labels(features, head, labels, **options):
    """The same of features and the rows of the head at the labels."""
    return interplay(features, np.asarray(head)[labels], **options)
