"""The published definitions in float64 NumPy, by the plainest route: n × n and d × d matrices.

Written from the definitions alone, shares nothing with `mirjax`. Samples of weight 0 are dropped
here as rows; zero rows have no direction and count as weight 0.
"""

from typing import NamedTuple

import numpy as np


class Information(NamedTuple):
    """The fields of `mirjax.Interplay`."""

    entropy1: float
    entropy2: float
    joint_entropy: float
    mutual_information: float
    entropy_difference: float
    mir: float
    hdr: float


def unit_rows(rows):
    rows = np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def gram(rows):
    unit = unit_rows(rows)
    return unit @ unit.T


def entropy(kernel, order=1.0):
    """Eigenvalues below `n · eps · λ_max` are rounding of 0, and 0 log 0 = 0."""
    kernel = np.asarray(kernel, np.float64)
    trace = np.trace(kernel)
    if trace == 0:
        return 0.0
    values = np.linalg.eigvalsh(kernel / trace)
    values = values[values > len(values) * np.finfo(np.float64).eps * values.max()]
    if order == 1:
        return float(-np.sum(values * np.log(values)))
    return float(np.log(np.sum(values**order)) / (1 - order))


def weighted(kernel, weights):
    """`√m K √m / Σ m`."""
    root = np.sqrt(weights)
    total = np.sum(weights)
    return root[:, None] * kernel * root / (total if total > 0 else 1.0)


def ratio(numerator, denominator):
    """With 0/0 := 0, where rounding of the spectrum counts as 0."""
    return 0.0 if denominator < 1e-10 else numerator / denominator


def information(kernel1, kernel2):
    entropy1, entropy2 = entropy(kernel1), entropy(kernel2)
    # The entrywise product of K1 and K2 at one weighting each; callers pass it where that differs.
    return combine(entropy1, entropy2, entropy(kernel1 * kernel2))


def combine(entropy1, entropy2, joint):
    shared, gap = entropy1 + entropy2 - joint, abs(entropy1 - entropy2)
    return Information(
        entropy1,
        entropy2,
        joint,
        shared,
        gap,
        ratio(shared, min(entropy1, entropy2)),
        ratio(gap, max(entropy1, entropy2)),
    )


def feature_entropy(features, weights=None, order=1.0):
    features, weights = _counted(features, weights=weights)
    return entropy(weighted(gram(features), weights), order)


def feature_interplay(features1, features2, weights=None):
    features1, features2, weights = _counted(features1, features2, weights=weights)
    kernel1, kernel2 = gram(features1), gram(features2)
    return combine(*(entropy(weighted(k, weights)) for k in (kernel1, kernel2, kernel1 * kernel2)))


def interplay(features, head, labels, weights=None):
    labels = np.asarray(labels)
    if weights is not None:  # labels of masked samples may be out of range
        keep = np.asarray(weights) > 0
        features, labels, weights = (
            np.asarray(features)[keep],
            labels[keep],
            np.asarray(weights)[keep],
        )
    return feature_interplay(features, np.asarray(head)[labels], weights)


def class_interplay(class_means, head, global_mean=None):
    means = np.asarray(class_means, np.float64)
    centre = means.mean(0) if global_mean is None else np.asarray(global_mean, np.float64)
    return feature_interplay(means - centre, head)


def _counted(*views, weights):
    """Views and weights without the rows that have no weight or no direction."""
    views = [np.asarray(view, np.float64) for view in views]
    weights = np.ones(len(views[0])) if weights is None else np.asarray(weights, np.float64)
    keep = (weights > 0) & np.all([np.any(view != 0, axis=1) for view in views], axis=0)
    return *(view[keep] for view in views), weights[keep]
