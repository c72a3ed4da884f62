"""The published formulas of spectra, in float64 NumPy, by the textbook."""

import itertools

import numpy as np


def repeated(features, weights):
    """Integer weights as repeated rows."""
    return np.repeat(np.asarray(features, np.float64), weights, axis=0)


def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


def singular_values(features):
    return np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)


def eigenvalues(features):
    z = np.asarray(features, np.float64)
    z = z - z.mean(axis=0)
    return singular_values(z) ** 2 / len(z)


def rankme(features):
    s = singular_values(features)
    return np.exp(entropy(s / s.sum() + 1e-7))


def stable_rank(features):
    z = np.asarray(features, np.float64)
    return np.linalg.norm(z, "fro") ** 2 / np.linalg.norm(z, 2) ** 2


def participation_ratio(features):
    covariance = np.cov(np.asarray(features, np.float64).T, bias=True)
    return np.trace(covariance) ** 2 / np.sum(covariance**2)


def nesum(features):
    values = eigenvalues(features)
    return values.sum() / values[0]


def alpha_req(features, first, last):
    values = eigenvalues(features)
    k = np.arange(first, min(last, len(values)) + 1)
    # Polyfit squares its weights.
    return -np.polyfit(np.log(k), np.log(values[k - 1]), 1, w=k**-0.5)[0]


def lidar(features, labels, delta):
    z = np.asarray(features, np.float64)
    d, mean = z.shape[1], z.mean(axis=0)
    between, within = np.zeros((d, d)), delta * np.eye(d)
    for c in np.unique(labels):
        own = z[labels == c]
        share, centre = len(own) / len(z), own.mean(axis=0)
        between += share * np.outer(centre - mean, centre - mean)
        within += share * np.cov(own.T, bias=True).reshape(d, d)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    ratio = np.maximum(np.linalg.eigvalsh(root @ between @ root), 0)
    return np.exp(entropy(ratio / ratio.sum() + 1e-7))


def effective_rank(features, order=1, centre=False):
    z = np.asarray(features, np.float64)
    z = z - z.mean(axis=0) if centre else z
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    p = singular_values(z) ** 2 / len(z)
    if order == 1:
        return np.exp(entropy(p))
    return 1 / p.max() if order == np.inf else np.sum(p**order) ** (1 / (1 - order))


def debiased_participation_ratio(features, weights, centre=True):
    """By all quadruples (or pairs) of different samples, one after the other."""
    z, above, below = np.asarray(features, np.float64), 0.0, 0.0
    for chosen in itertools.permutations(range(len(z)), 4 if centre else 2):
        weight = np.prod([weights[i] for i in chosen])
        if centre:
            i, j, k, m = chosen
            one, other = z[i] - z[j], z[k] - z[m]
            above += weight * (one @ one) * (other @ other) / 4
            below += weight * (one @ other) ** 2 / 4
        else:
            i, j = chosen
            above += weight * (z[i] @ z[i]) * (z[j] @ z[j])
            below += weight * (z[i] @ z[j]) ** 2
    return above / below
