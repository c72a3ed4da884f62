"""Writes the index files that say which samples of a training split keep their labels.

    python -m train.labelled cifar10 --labels 40 250 4000 --seeds 3

writes `train/splits/cifar10.json`: for each number of labels and each seed a list of indices, in
the order of the training split of `train.data.load`. Lists that are in no file are drawn in the
same way by the run that asks for them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from train.data.load import load
from train.data.subsets import draw_balanced
from train.data.types import DataError, RecordSplit
from train.run.command import exit_on_user_error
from train.run.files import write_text
from train.ssl.labels import SPLITS, read_splits


@dataclasses.dataclass(frozen=True)
class Config:
    """Draws which samples of a data set keep their labels, and writes them to its index file.

    Lists that are already in the file stay as they are.
    """

    name: tyro.conf.Positional[str]
    """Name of the data set, for instance cifar10."""
    labels: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (40, 250)
    """Numbers of samples that keep their labels."""
    seeds: int = 3
    """Number of lists for each number of labels."""
    data_dir: str | None = None
    """Folder of the prepared data sets; if not given, the default folder of TFDS."""


def write_splits(config: Config, folder: Path = SPLITS) -> Path:
    """Draws the lists that the file lacks, and writes the file."""
    if config.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {config.seeds}.")
    if ":" in config.name:
        raise DataError(
            f"index files are of published data sets; {config.name} is drawn by each run."
        )
    train = load(config.name, data_dir=config.data_dir).train
    if isinstance(train, RecordSplit):
        raise DataError(f"{config.name} does not fit in memory.")
    lists = read_splits(config.name, folder)
    for count in config.labels:
        by_seed = lists.setdefault(str(count), {})
        for seed in range(config.seeds):
            drawn = draw_balanced(train.labels, count, seed=seed)
            # Published lists, which no seed draws, stay.
            by_seed.setdefault(str(seed), drawn.tolist())
    folder.mkdir(exist_ok=True)
    # One list in a line, so that a list that is added is one line in a diff.
    lines = [
        f' "{count}": {{\n'
        + ",\n".join(f'  "{seed}": {json.dumps(indices)}' for seed, indices in by_seed.items())
        + "\n }"
        for count, by_seed in sorted(lists.items(), key=lambda item: int(item[0]))
    ]
    place = folder / f"{config.name}.json"
    write_text(place, "{\n" + ",\n".join(lines) + "\n}\n")
    return place


def main() -> None:
    """Runs the command."""
    config = tyro.cli(Config, prog="python -m train.labelled")
    with exit_on_user_error():
        place = write_splits(config)
    print(f"The lists of {config.name} are in {place}")


if __name__ == "__main__":
    main()
