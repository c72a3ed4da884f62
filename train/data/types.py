"""What a data set of labelled images is: its types, errors and channel statistics."""

import dataclasses
import importlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from train.run import hosts
from train.run.errors import UserError
from train.run.files import legible
from train.run.requirements import INSTALL

# Records read to estimate the channel statistics of a set that is too large to hold.
STATISTICS_SAMPLE = 2048

# Images read at once.
_CHUNK = 512


class DataError(UserError):
    """Data that cannot be used; the message alone tells the user what to do."""


class DataNotFound(DataError):
    """Data that are not on this machine."""


def require(module: str, what: str) -> ModuleType:
    """Imports a module of the `train` extra, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{what} needs the module {error.name}, which is not installed. {INSTALL}"
        ) from None


class Records(Protocol):
    """A source with random access to records that hold `image` and `label`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """One split held in memory.

    Attributes:
      images: uint8 `[n, h, w, c]`.
      labels: int32 `[n]`.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """One split that is read record by record, in the order of its source.

    Attributes:
      source: random access to records with at least `image` (uint8 `[h, w, c]`) and `label`.
      image_shape: `(h, w, c)`, the same for every record.
    """

    source: Records
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (record,) = self.records([index])
        return {"image": record["image"], "label": int(record["label"])}

    def records(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The records of the source with all their fields, in one read where it offers that."""
        many = getattr(self.source, "__getitems__", None)
        records = [self.source[i] for i in indices] if many is None else list(many(indices))
        # A folder of images is streamed without a look at all of its files beforehand.
        for index, record in zip(indices, records, strict=True):
            image = record["image"]
            if image.dtype != np.uint8 or image.shape != self.image_shape:
                raise DataError(
                    f"record {index} is {image.dtype} {image.shape}, not uint8 {self.image_shape}"
                )
        return records

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """A batch: `image`, uint8 `[n, h, w, c]`, and `label`, int32 `[n]`."""
        records = self.records(indices.tolist())
        return {
            "image": np.stack([record["image"] for record in records]),
            "label": np.array([record["label"] for record in records], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Attributes:
      name: the name of the data set, for titles and settings.
      num_classes: the number of classes.
      class_names: one name per class.
      image_shape: `(h, w, c)`.
      train: the training split.
      test: the test split.
      mean: mean per channel of the training images divided by 255. It is exact for a split in
        memory and estimated from a seeded sample of 2,048 records for a streamed one.
      std: population standard deviation per channel, from the same images; 1 for a channel that is
        constant.
      source_note: how the data depart from the published data ("" if they do not), to be put
        beside every result.
      unlabelled: images without known labels, for semi-supervised learning; each has the label -1.
        None if there are none or they were not requested.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: Split | RecordSplit
    test: Split | RecordSplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source_note: str = ""
    unlabelled: Split | RecordSplit | None = None


def fit_in_memory(records: RecordSplit, memory_limit_mib: int) -> Split | RecordSplit:
    """Reads all records of a split into memory if its images take no more than the limit.

    Records that carry an `id` (those of CIFAR and SVHN, which TFDS shuffles on disk) are put in the
    order of their ids, which is the published order.
    """
    if len(records) * math.prod(records.image_shape) > memory_limit_mib * 2**20:
        return records
    images = np.empty((len(records), *records.image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    ids = []
    for start in range(0, len(records), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(records)))
        for index, record in zip(indices, records.records(list(indices)), strict=True):
            images[index] = record["image"]
            labels[index] = record["label"]
            if "id" in record:
                ids.append(record["id"])
    # Index files name samples by their published place.
    if len(ids) == len(records):
        order = np.argsort(np.asarray(ids), kind="stable")
        images, labels = images[order], labels[order]
    return Split(images, labels)


def channel_statistics(
    split: Split | RecordSplit,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the images divided by 255."""
    total = squares = np.zeros((), np.float64)
    pixels = 0
    for chunk in _chunks(split):
        values = chunk.reshape(-1, chunk.shape[-1])
        # Integer sums are exact, so that the result does not depend on the order of the images.
        total = total + values.sum(0, dtype=np.uint64)
        squares = squares + np.square(values, dtype=np.uint16).sum(0, dtype=np.uint64)
        pixels += len(values)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    # A constant channel is divided by 1.
    std = np.where(std == 0, 255, std)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _chunks(split: Split | RecordSplit) -> Iterator[np.ndarray]:
    if isinstance(split, Split):
        for start in range(0, len(split), _CHUNK):
            yield split.images[start : start + _CHUNK]
        return
    # A fixed seed: a resumed run has to normalise as it did before.
    size = min(STATISTICS_SAMPLE, len(split))
    chosen = np.random.default_rng(0).choice(len(split), size=size, replace=False)
    for start in range(0, size, _CHUNK):
        yield split.take(chosen[start : start + _CHUNK])["image"]


def image_data(
    name: str,
    class_names: Sequence[str],
    train: Split | RecordSplit,
    test: Split | RecordSplit,
    *,
    source_note: str = "",
    unlabelled: Split | RecordSplit | None = None,
) -> ImageData:
    """Builds a data set from its splits, with the channel statistics of the training split."""
    # A name is that of a folder or a file, which the locale may not have been able to read.
    name = legible(name)
    splits = {"training": train, "test": test}
    if unlabelled is not None:
        splits["unlabelled"] = unlabelled
    shape = _image_shape(train)
    for which, split in splits.items():
        if _image_shape(split) != shape:
            raise DataError(
                f"{name}: training images are {shape}, {which} images {_image_shape(split)}"
            )
        if len(split) == 0:
            raise DataError(f"{name}: the {which} split is empty")
        if isinstance(split, Split) and which != "unlabelled":
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(class_names):
                raise DataError(
                    f"{name}: {which} labels go from {low} to {high}, but there are "
                    f"{len(class_names)} classes"
                )
    mean, std = channel_statistics(train)
    return ImageData(
        name=name,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        image_shape=shape,
        train=train,
        test=test,
        mean=mean,
        std=std,
        source_note=source_note,
        unlabelled=unlabelled,
    )


def _image_shape(split: Split | RecordSplit) -> tuple[int, int, int]:
    return split.images.shape[1:] if isinstance(split, Split) else split.image_shape


def from_arrays(
    name: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    source_note: str = "",
    unlabelled: np.ndarray | None = None,
) -> ImageData:
    """Builds a data set from arrays.

    Args:
      name: what to call it.
      train_images: uint8 `[n, h, w, c]` or, for one channel, `[n, h, w]`.
      train_labels: integers `[n]` or `[n, 1]`, from 0.
      test_images: as `train_images`.
      test_labels: as `train_labels`.
      class_names: one name per class; by default "0", "1", ... up to the largest label.
      source_note: see `ImageData`.
      unlabelled: images without labels, as `train_images`.

    Raises:
      DataError: an array has another type or shape, or a label is out of range.
    """
    train = _split_from_arrays(f"{name} (train)", train_images, train_labels)
    test = _split_from_arrays(f"{name} (test)", test_images, test_labels)
    if class_names is None:
        largest = max(train.labels.max(initial=0), test.labels.max(initial=0))
        class_names = [str(label) for label in range(int(largest) + 1)]
    rest = None
    if unlabelled is not None:
        unknown = np.full(np.shape(unlabelled)[:1], -1)
        rest = _split_from_arrays(f"{name} (unlabelled)", unlabelled, unknown)
    return image_data(name, class_names, train, test, source_note=source_note, unlabelled=rest)


def _split_from_arrays(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{name}: images must be uint8 [n, h, w, c] or [n, h, w], got {images.dtype} "
            f"{images.shape}"
        )
    # Several published sets have their labels in a column.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{name}: labels must be integers, one for each of {len(images)} images, got "
            f"{labels.dtype} {labels.shape}"
        )
    if images.ndim == 3:
        images = images[..., None]
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def agree_on(data: ImageData) -> None:
    """Raises `RunError` if the processes of a run have different data.

    Each process reads its own copy: sets that fit on a device are read in seconds, and hosts of one
    job usually see the same place; nothing then depends on how large a message may be.
    """
    if not hosts.several():
        return

    def digest(array: np.ndarray, so_far: int = 0) -> int:
        return zlib.crc32(np.ascontiguousarray(array).tobytes(), so_far)

    digests = [f"{data.name}, {data.num_classes} classes"]
    for split in (data.train, data.test, data.unlabelled):
        if isinstance(split, Split):
            digests.append(f"{len(split)}:{digest(split.labels, digest(split.images)):08x}")
        elif split is not None:
            # All records would take as long as an epoch; these tell other sets and orders apart.
            some = split.take(np.linspace(0, len(split) - 1, 8).astype(int))
            digests.append(f"{len(split)}:{digest(some['image']):08x}")
    hosts.agree(" ".join(digests), "The data")


def check_classes(data: ImageData) -> None:
    """Raises `DataError` if there is a single class.

    A network could be trained on it, and would fail at its end: collapse has no values for it.
    """
    if data.num_classes < 2:
        raise DataError(
            f"{data.name} has a single class, {data.class_names[0]}, and a classifier needs two: "
            "add images of another class, or name other data with --dataset."
        )


def about(data: ImageData) -> dict[str, Any]:
    """What the settings file of a run says about its data."""
    return {"data": data.name, "source": data.source_note, "classes": data.num_classes}


def source_of(data: ImageData) -> str:
    """The name of the data, with a note on how they depart from the published data."""
    return f"{data.name} ({data.source_note})" if data.source_note else data.name
