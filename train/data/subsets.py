"""Parts of data sets: stratified splits, class-balanced draws, and a control with random labels."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from train.data.types import DataError, ImageData, RecordSplit, Split


def stratified_split(
    labels: np.ndarray, test_size: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices so that each class gives its share to the test part, to within one example.

    Args:
      labels: integers `[n]`.
      test_size: the number of test examples.
      seed: the seed of the draw within each class.

    Returns:
      The sorted indices of the training and of the test part.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (test_size / len(labels))
    sizes = np.floor(shares).astype(int)
    # The examples lost to rounding down go to the classes that lost the most.
    largest = np.argsort(sizes - shares, kind="stable")[: test_size - sizes.sum()]
    sizes[largest] += 1
    test = _draw(labels, dict(zip(classes, sizes, strict=True)), seed=seed)
    return np.setdiff1d(np.arange(len(labels)), test), test


def balanced_part(split: Split | RecordSplit, size: int, *, name: str) -> Split:
    """A class-balanced part of a split, drawn with seed 0, in the order of the split.

    Raises:
        DataError: the split is smaller than that, or streamed from disk.
    """
    if isinstance(split, RecordSplit):
        raise DataError(f"{name} needs images in memory (see --memory-limit-mib).")
    if size > len(split):
        raise DataError(f"{name} {size} is more than there are: {len(split)}.")
    if size == len(split):
        return split
    _, chosen = stratified_split(split.labels, size, seed=0)
    return Split(split.images[chosen], split.labels[chosen])


def with_random_labels(data: ImageData, *, seed: int = 0) -> ImageData:
    """The data with labels shuffled among the training images; the test split stays as it is."""
    if isinstance(data.train, RecordSplit):
        raise DataError(
            "random labels need training images in memory: give --no-random-labels, or a larger "
            "--memory-limit-mib."
        )
    labels = np.random.default_rng(seed).permutation(data.train.labels)
    note = f"{data.source_note}; random labels" if data.source_note else "random labels"
    return dataclasses.replace(data, train=Split(data.train.images, labels), source_note=note)


def draw_balanced(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Sorted indices of `count` samples, equally many of each class, drawn with the seed.

    Raises:
        DataError: `count` is no multiple of the number of classes, or a class has too few samples.
    """
    classes = np.unique(labels)
    per_class, rest = divmod(count, len(classes))
    if rest or per_class < 1:
        raise DataError(
            f"labels {count} must be a multiple of the number of classes, {len(classes)}."
        )
    for value, samples in zip(*np.unique(labels, return_counts=True), strict=True):
        if samples < per_class:
            raise DataError(
                f"labels {count} asks for {per_class} samples of each class; class {value} has "
                f"{samples}."
            )
    return _draw(labels, dict.fromkeys(classes, per_class), seed=seed)


def _draw(labels: np.ndarray, sizes: Mapping[int, int], *, seed: int) -> np.ndarray:
    """Sorted indices of so many samples of each class, drawn with the seed."""
    # Raw draws are sorted because the result of `permutation` may change with the version of NumPy.
    draws = np.random.Generator(np.random.PCG64(seed)).random(len(labels))
    chosen = []
    for value, size in sizes.items():
        members = np.flatnonzero(labels == value)
        chosen.append(members[np.argsort(draws[members], kind="stable")][:size])
    return np.sort(np.concatenate(chosen))
