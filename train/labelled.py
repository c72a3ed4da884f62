"""Which samples of a training split keep their labels, and the index files that say so.

    python -m train.labelled cifar10 --labels 40 250 4000 --seeds 3

writes `train/splits/cifar10.json`: for each number of labels, the indices of each seed, in the order of
the training split of `train.data.load`. A number of labels that has no file is drawn the same way.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from train.data.load import load
from train.data.subsets import draw_balanced
from train.data.types import DataError, RecordSplit
from train.run.errors import exit_on_user_error
from train.run.files import write_text
from train.ssl.labels import SPLITS, read_splits


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
    with exit_on_user_error():
        place = write_splits(config)
    print(f"The lists of {config.name} are in {place}")


if __name__ == "__main__":
    main()
