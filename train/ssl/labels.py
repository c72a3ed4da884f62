"""Which samples of a training split keep their labels: those of an index file, or drawn."""

import json
from pathlib import Path

import numpy as np

from train.data.subsets import draw_balanced
from train.data.types import DataError

SPLITS = Path(__file__).parents[1] / "splits"


def labelled_indices(
    name: str, labels: np.ndarray, count: int, *, seed: int, folder: Path = SPLITS
) -> np.ndarray:
    """Sorted indices of the samples that keep their labels: those of the index file, or drawn.

    Args:
        name: of the data set.
        labels: integers `[n]` of the training split.
        count: how many keep their label.
        seed: of the draw, or the number of the published list.
        folder: of the index files.

    Raises:
        DataError: the file does not fit these labels, or as `draw_balanced`.
    """
    found = read_splits(name, folder).get(str(count), {}).get(str(seed))
    if found is None:
        return draw_balanced(labels, count, seed=seed)
    indices = np.asarray(found)
    if indices.max() >= len(labels) or len(np.unique(indices)) != count:
        raise DataError(
            f"{folder / name}.json names {count} labels of seed {seed} that are not {count} different ones of "
            f"{len(labels)} training samples."
        )
    counts = np.bincount(labels[indices])
    if len(set(counts.tolist())) > 1:
        raise DataError(
            f"the labels of {name} in the order of {folder / name}.json are not balanced ({counts.tolist()}): the "
            f"training split is not in the published order. Prepare it by python -m train.prepare {name}."
        )
    return indices


def read_splits(name: str, folder: Path = SPLITS) -> dict[str, dict[str, list[int]]]:
    """The index file of a data set, by number of labels and seed; empty if there is none."""
    place = folder / f"{name}.json"
    return json.loads(place.read_text()) if place.is_file() else {}
