"""What every experiment's command shares: the data of the settings, errors, the printed summary."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from train.compilation import enable_cache
from train.data import load
from train.errors import told
from train.images import DataError, ImageData, RecordSplit, Split
from train.parallel import data_mesh
from train.settings import RunSettings, Settings, from_command_line
from train.sources import stratified_split
from train.state import Network
from train.summary import Summary

S = TypeVar("S", bound=RunSettings)


def load_data(settings: Settings) -> ImageData:
    """The data set that the settings name, cut to `train_size`."""
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        memory_limit_mib=settings.memory_limit_mib,
        image_size=settings.image_size,
    )
    if settings.train_size is not None:
        part = balanced_part(data.train, settings.train_size, name="train_size")
        note = f"{settings.train_size:,} of {len(data.train):,} training images"
        note = f"{data.source_note}; {note}" if data.source_note else note
        data = dataclasses.replace(data, train=part, source_note=note)
    # What does not fit together is told before a folder is claimed.
    Network.of(settings, data)
    data_mesh(settings.batch_size, settings.devices)
    if settings.batch_size > len(data.train):
        raise DataError(
            f"batch_size {settings.batch_size} is larger than the training split, "
            f"{len(data.train)} samples."
        )
    return data


def balanced_part(split: Split | RecordSplit, size: int, *, name: str) -> Split:
    """A class-balanced part of a split, drawn with seed 0, in the order of the split.

    Raises:
        DataError: the split is smaller, or streamed from disk.
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
    """The same training images with their labels shuffled among them; the test split as it is."""
    if isinstance(data.train, RecordSplit):
        raise DataError(
            "random labels need training images in memory: give --no-random-labels, or a larger "
            "--memory-limit-mib."
        )
    labels = np.random.default_rng(seed).permutation(data.train.labels)
    note = f"{data.source_note}; random labels" if data.source_note else "random labels"
    return dataclasses.replace(data, train=Split(data.train.images, labels), source_note=note)


def run_command(presets: Mapping[str, S], run: Callable[[S], Summary]) -> None:
    """Reads the settings, runs the experiment, prints what it found; errors end with status 2."""
    with told(resumable=True):
        settings = from_command_line(presets)
        enable_cache()
        run(settings).show()
