"""Class means and NC1 to NC4 (Papyan et al. 2020) in float64 NumPy, with d × d covariances."""

import itertools

import numpy as np


def class_means(features, labels, num_classes, weights=None):
    """Means `[num_classes, d]` and weights `[num_classes]`, sample by sample."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    sums, weight = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    for row, label, w in zip(features, labels, weights, strict=True):
        if w > 0:
            sums[label] += w * row
            weight[label] += w
    means = [s / w if w > 0 else np.zeros_like(s) for s, w in zip(sums, weight, strict=True)]
    return np.stack(means), weight


def neural_collapse(features, labels, head, bias=None, weights=None):
    """Fields of `mirjax.NeuralCollapse`, as a dictionary; absent classes are left out."""
    features, head = np.asarray(features, np.float64), np.asarray(head, np.float64)
    labels = np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    keep = weights > 0
    features, labels, weights = features[keep], labels[keep], weights[keep]
    weights = weights / weights.sum()
    classes = np.unique(labels)
    means = np.stack(
        [np.average(features[labels == c], axis=0, weights=weights[labels == c]) for c in classes]
    )
    centred = means - weights @ features
    within = features - means[np.searchsorted(classes, labels)]
    covariance_within = (within * weights[:, None]).T @ within
    covariance_between = centred.T @ centred / len(classes)
    inverse = np.linalg.pinv(covariance_between, rcond=1e-10, hermitian=True)
    own = head[classes]
    logits = features @ head.T + (0.0 if bias is None else np.asarray(bias, np.float64))
    distances = np.linalg.norm(features[:, None] - means[None], axis=2)
    agree = logits.argmax(1) == classes[distances.argmin(1)]
    return {
        "nc1": np.trace(covariance_within @ inverse) / len(classes),
        "nc2_equinorm": _equinorm(centred),
        "nc2_equiangle": _equiangle(centred),
        "nc2_equinorm_head": _equinorm(own),
        "nc2_equiangle_head": _equiangle(own),
        "nc3": np.sum((own / np.linalg.norm(own) - centred / np.linalg.norm(centred)) ** 2),
        "nc4": weights @ agree,
        "nc1_quotient": np.trace(covariance_within) / np.trace(covariance_between),
        "cdnv": _class_distance_variance(means, features, labels, weights),
        "nc2_generalised": _generalised(centred),
        "nc3_uniform": np.var(np.sum(_unit(own) * _unit(centred), axis=1)),
    }


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _class_distance_variance(means, features, labels, weights):
    """Galanti et al. 2021, pair by pair."""
    variances = [
        np.average(
            np.sum((features[labels == c] - mean) ** 2, axis=1), weights=weights[labels == c]
        )
        for c, mean in zip(np.unique(labels), means, strict=True)
    ]
    return np.mean(
        [
            (variances[i] + variances[j]) / (2 * np.sum((means[i] - means[j]) ** 2))
            for i, j in itertools.combinations(range(len(means)), 2)
        ]
    )


def _generalised(rows):
    """Liu et al. 2023: how evenly the directions cover the sphere."""
    pairs = itertools.combinations(_unit(rows), 2)
    return np.var([-np.log(np.linalg.norm(a - b)) for a, b in pairs])


def _equinorm(rows):
    norms = np.linalg.norm(rows, axis=1)
    return norms.std() / norms.mean()


def _equiangle(rows):
    unit = _unit(rows)
    count = len(rows)
    off_diagonal = (unit @ unit.T)[~np.eye(count, dtype=bool)]
    return np.mean(np.abs(off_diagonal + 1 / (count - 1)))
