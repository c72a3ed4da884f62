"""Which samples of a training split keep their labels: those of an index file, or drawn ones."""

import json
from pathlib import Path

import numpy as np

from train.data.subsets import draw_balanced
from train.data.types import DataError

SPLITS = Path(__file__).parents[1] / "splits"


def labelled_indices(
    name: str, labels: np.ndarray, count: int, *, seed: int, folder: Path = SPLITS
) -> np.ndarray:
    """Sorted indices of the samples that keep their labels, from the index file or drawn.

    Args:
        name: name of the data set.
        labels: integers `[n]`, the labels of the training split.
        count: how many samples keep their labels.
        seed: the seed of the draw, or the number of the published list.
        folder: the folder of the index files.

    Raises:
        DataError: the file does not fit these labels, or `draw_balanced` refuses the count.
    """
    listed = read_splits(name, folder).get(str(count), {}).get(str(seed))
    if listed is None:
        return draw_balanced(labels, count, seed=seed)
    indices = np.asarray(listed)
    if indices.max() >= len(labels) or len(np.unique(indices)) != count:
        raise DataError(
            f"{folder / name}.json names {count} labels of seed {seed} that are not {count} "
            f"different ones of {len(labels)} training samples."
        )
    # Indices mean samples only in the published order; elsewhere the classes come out uneven.
    counts = np.bincount(labels[indices])
    if len(set(counts.tolist())) > 1:
        raise DataError(
            f"the labels of {name} in the order of {folder / name}.json are not balanced "
            f"({counts.tolist()}): the training split is not in the published order. Prepare "
            f"it with python -m train.prepare {name}."
        )
    return indices


def read_splits(name: str, folder: Path = SPLITS) -> dict[str, dict[str, list[int]]]:
    """The index file of a data set, by number of labels and by seed; empty if there is none."""
    place = folder / f"{name}.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
