"""Named inputs `(features, head, labels)`: every degeneracy on every code path, in few shapes."""

import numpy as np

# (n, d, C). The joint matrix has one side n, or, where n > d·min(C, d), side d·min(C, d).
SHAPES = {
    "samples": (60, 16, 6),
    "moments, C < d": (60, 8, 4),
    "moments, C > d": (64, 7, 8),
}
DEGENERACIES = (
    "random",
    "rank one",
    "low rank",
    "duplicated samples",
    "identical samples",
    "constant column",
    "one class",
    "empty classes",
    "equal head rows",
    "extreme scales",
    "zero rows",
    "near collapse",
    "collapse",
)
# One-off shapes: n from 1 to 600, one feature, one class, more classes than samples.
SIZES = ((1, 3, 2), (2, 5, 3), (5, 7, 20), (30, 1, 3), (20, 50, 1), (600, 12, 10), (600, 64, 100))


def simplex(classes, width):
    """A simplex ETF by the textbook: centre the unit vectors, express them in C-1 coordinates."""
    centred = np.eye(classes) - 1 / classes
    basis = np.linalg.svd(centred)[0][:, : classes - 1]
    rows = np.pad(centred @ basis, ((0, 0), (0, width - classes + 1)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(degeneracy, n, d, classes, seed=0):
    rng = np.random.default_rng(seed)
    features, head = rng.normal(size=(n, d)), rng.normal(size=(classes, d))
    labels = np.arange(n) % classes
    match degeneracy:
        case "rank one":
            features = rng.normal(size=(n, 1)) * rng.normal(size=d)
        case "low rank":
            features = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
        case "duplicated samples":
            features, labels = features[np.arange(n) // 2], labels[np.arange(n) // 2]
        case "identical samples":
            features[:] = features[0]
        case "constant column":
            features[:, 0] = 50.0
        case "one class":
            labels[:] = classes - 1
        case "empty classes":
            labels = labels % 2
        case "equal head rows":
            head[1:] = head[0]
        case "extreme scales":
            features *= np.where(np.arange(n) % 2, 1e-20, 1e20)[:, None]
            head *= np.where(np.arange(classes) % 2, 1e20, 1e-20)[:, None]
        case "zero rows":
            features[:5] = 0.0
            head[0] = 0.0
        case "near collapse":
            head = simplex(classes, d)
            features = 3.0 * head[labels] + 0.03 * features
        case "collapse":
            rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
            head = simplex(classes, d) @ rotation
            features = 3.0 * head[labels]
    return features, head, labels


def cast(case, dtype):
    """The case as arrays of `dtype`: references are given the same rounded numbers."""
    features, head, labels = case
    return features.astype(dtype), head.astype(dtype), labels.astype(np.int32)
