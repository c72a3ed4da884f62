"""Data sets in the directory layout of TFDS, written by `train.prepare` or by TFDS itself."""

import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from train.data.types import (
    DataError,
    DataNotFound,
    ImageData,
    RecordSplit,
    fit_in_memory,
    image_data,
    require,
)

SOURCE_NOTE_FILE = "SOURCE.txt"


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known about a published data set before any of it is read.

    Attributes:
      source: a description of the published files.
      argument: what to give to `train.prepare --from`, for messages.
      train: images per class of the training split; a single number if all classes have as many.
      test: the same for the test split.
      num_classes: the number of classes.
      unlabelled: the number of images without labels.
      id_digits: digits of the number in the `id` of a record, for sets whose records have one.
    """

    source: str
    argument: str
    train: int | tuple[int, ...]
    test: int | tuple[int, ...]
    num_classes: int = 10
    unlabelled: int = 0
    id_digits: int = 5

    def counts(self) -> dict[str, tuple[int, ...]]:
        """Images per class of each split; the split without labels has one entry."""
        counts = {}
        for name, value in (("train", self.train), ("test", self.test)):
            counts[name] = (value,) * self.num_classes if isinstance(value, int) else value
        if self.unlabelled:
            counts["unlabelled"] = (self.unlabelled,)
        return counts


_IDX_FILES = "the four idx files (train-images-idx3-ubyte.gz and so on)"
PUBLISHED = {
    "cifar10": Published(
        "cifar-10-binary.tar.gz, the binary version from the University of Toronto",
        "cifar-10-binary.tar.gz",
        train=5000,
        test=1000,
    ),
    "cifar100": Published(
        "cifar-100-binary.tar.gz, the binary version from the University of Toronto",
        "cifar-100-binary.tar.gz",
        train=500,
        test=100,
        num_classes=100,
    ),
    "stl10": Published(
        "stl10_binary.tar.gz from Stanford University",
        "stl10_binary.tar.gz",
        train=500,
        test=800,
        unlabelled=100_000,
    ),
    "mnist": Published(
        f"{_IDX_FILES} of MNIST",
        "FOLDER",
        train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": Published(
        f"{_IDX_FILES} of Fashion-MNIST, also in Debian's package dataset-fashion-mnist",
        "FOLDER",
        train=6000,
        test=1000,
    ),
    "svhn_cropped": Published(
        "train_32x32.mat and test_32x32.mat, the cropped digits of SVHN, from Stanford University",
        "FOLDER",
        train=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        test=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
        id_digits=6,
    ),
}


def default_data_dir() -> Path:
    """`$TFDS_DATA_DIR`, or `~/tensorflow_datasets` if that is not set."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def import_tfds() -> ModuleType:
    """Imports TFDS, which is needed only for data in its layout, if it can read its files here."""
    what = "data in the layout of TFDS"
    # TFDS itself asks for it only when a record is read or written, and in other words.
    if sys.platform == "win32" and importlib.util.find_spec("array_record") is None:
        raise DataError(
            f"{what} needs the package array-record, which does not exist for Windows. Run this "
            "under Linux (WSL), or give images as folder:PATH or npz:PATH."
        )
    require("array_record", what)
    return require("tensorflow_datasets", what)


def versions(name: str, data_dir: Path) -> list[Path]:
    """The complete prepared versions of a data set, the oldest first."""
    # TFDS writes to a folder of another name and renames it at the end.
    complete = [
        path.parent
        for path in (data_dir / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return sorted(complete, key=lambda path: [int(part) for part in path.name.split(".")])


def _splits(name: str, unlabelled: bool) -> list[str]:
    rest = ["unlabelled"] if unlabelled and PUBLISHED[name].unlabelled else []
    return ["train", "test", *rest]


def find(name: str, data_dir: Path, *, prepare_command: str, unlabelled: bool = False) -> Path:
    """Returns the folder of the newest prepared version, after checking its files.

    The files of a split without labels are checked only if `unlabelled` is set.

    Raises:
      DataNotFound: nothing is prepared under `data_dir`.
      DataError: it is in a format without random access, or some of its files are missing.
    """
    prepared = versions(name, data_dir)
    if not prepared:
        raise DataNotFound(
            f"{name} is not in {data_dir / name}. Get {PUBLISHED[name].source}, then run: "
            f"{prepare_command}"
        )
    path = prepared[-1]
    try:
        info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
        file_format = info.get("fileFormat", "tfrecord")
        shards = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {path / 'dataset_info.json'}: {error!r}") from None
    if file_format != "array_record":
        raise DataError(
            f"{path} is in the format {file_format}, which has no random access. Run: "
            f"{prepare_command} --overwrite"
        )
    # TFDS itself would notice a missing file only when one of its records is read.
    for split in _splits(name, unlabelled):
        files = len(list(path.glob(f"{name}-{split}.array_record*")))
        if split not in shards or files != shards[split]:
            raise DataError(
                f"{path} has {files} of {shards.get(split, 0)} files of its {split} split. Run: "
                f"{prepare_command} --overwrite"
            )
    return path


def read(
    name: str, version: str, data_dir: Path, *, memory_limit_mib: int, unlabelled: bool = False
) -> ImageData:
    """Reads a prepared data set; splits above the limit stay on disk.

    A split without labels is read only if `unlabelled` is set.
    """
    tfds = import_tfds()
    logging.getLogger("absl").addFilter(_is_no_advice)
    builder = tfds.builder(f"{name}:{version}", data_dir=str(data_dir))
    features = builder.info.features
    shape = tuple(features["image"].shape)
    note = data_dir / name / version / SOURCE_NOTE_FILE
    splits = {
        split: fit_in_memory(
            RecordSplit(builder.as_data_source(split=split), shape), memory_limit_mib
        )
        for split in _splits(name, unlabelled)
    }
    return image_data(
        name,
        features["label"].names,
        splits["train"],
        splits["test"],
        source_note=note.read_text(encoding="utf-8").strip() if note.is_file() else "",
        unlabelled=splits.get("unlabelled"),
    )


def _is_no_advice(line: logging.LogRecord) -> bool:
    # TFDS recommends OpenCV in every run that does not have it.
    return "OpenCV" not in line.getMessage()
