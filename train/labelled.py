"""Which samples of a training split keep their labels, and the index files that say so.

    python -m train.labelled cifar10 --labels 40 250 4000 --seeds 3

writes `train/splits/cifar10.json`: for each number of labels, the indices of each seed, in the order of
the training split of `train.data`. A number of labels that has no file is drawn the same way.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from train.data import load
from train.errors import told
from train.folders import write_text
from train.images import DataError, RecordSplit

SPLITS = Path(__file__).parent / "splits"


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


def draw_balanced(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Sorted indices of `count` samples, as many of each class, drawn by the seed.

    Raises:
        DataError: `count` is no multiple of the number of classes, or a class has too few.
    """
    classes = np.unique(labels)
    each, rest = divmod(count, len(classes))
    if rest or each < 1:
        raise DataError(
            f"labels {count} must be a multiple of the number of classes, {len(classes)}."
        )
    # Sorting raw draws, not `permutation`: its result may change between versions of NumPy.
    draws = np.random.Generator(np.random.PCG64(seed)).random(len(labels))
    chosen = []
    for value in classes:
        members = np.flatnonzero(labels == value)
        if len(members) < each:
            raise DataError(
                f"labels {count} asks for {each} samples of each class; class {value} has {len(members)}."
            )
        chosen.append(members[np.argsort(draws[members], kind="stable")][:each])
    return np.sort(np.concatenate(chosen))


def read_splits(name: str, folder: Path = SPLITS) -> dict[str, dict[str, list[int]]]:
    """The index file of a data set, by number of labels and seed; empty if there is none."""
    place = folder / f"{name}.json"
    return json.loads(place.read_text()) if place.is_file() else {}


@dataclasses.dataclass(frozen=True)
class Config:
    """Writes the index file of a data set; lists that are there already stay as they are."""

    name: tyro.conf.Positional[str]
    """The data set."""
    labels: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (40, 250)
    """How many samples keep their labels."""
    seeds: int = 3
    """Lists of each."""
    data_dir: str | None = None
    """Where prepared TFDS data lie."""


def write_splits(config: Config, folder: Path = SPLITS) -> Path:
    """Draws what is not there yet, and writes the file."""
    if config.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {config.seeds}.")
    if ":" in config.name:
        raise DataError(
            f"index files are of published data sets; {config.name} is drawn by each run."
        )
    train = load(config.name, data_dir=config.data_dir).train
    if isinstance(train, RecordSplit):
        raise DataError(f"{config.name} does not fit in memory.")
    found = read_splits(config.name, folder)
    for count in config.labels:
        own = found.setdefault(str(count), {})
        for seed in range(config.seeds):
            drawn = draw_balanced(train.labels, count, seed=seed)
            own.setdefault(str(seed), drawn.tolist())
    folder.mkdir(exist_ok=True)
    lines = [
        f' "{count}": {{\n'
        + ",\n".join(f'  "{seed}": {json.dumps(row)}' for seed, row in lists.items())
        + "\n }"
        for count, lists in sorted(found.items(), key=lambda item: int(item[0]))
    ]
    place = folder / f"{config.name}.json"
    write_text(place, "{\n" + ",\n".join(lines) + "\n}\n")
    return place


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, prog="python -m train.labelled")
    with told():
        place = write_splits(config)
    print(f"The lists of {config.name} are in {place}")


if __name__ == "__main__":
    main()
