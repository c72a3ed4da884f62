"""Readers of published archives of images, which unpickle nothing and extract nothing to disk.

Each returns an `Archive`, whose labels are read at once and whose images when they are asked for.
"""

import contextlib
import dataclasses
import functools
import gzip
import lzma
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from train.data.types import DataError, require

# Far above any member of the published archives, so that a forged size cannot exhaust memory.
_MEMBER_LIMIT = 2**32
# Above any file of labels or class names.
_SMALL = 2**20


@dataclasses.dataclass(frozen=True)
class ArchiveSplit:
    """One split of an archive.

    Attributes:
      labels: int64 `[n]`, by the name of the label feature.
      images: starts a pass over the images, uint8 `[h, w, c]`, in the order of the labels.
    """

    labels: dict[str, np.ndarray]
    images: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return len(self.labels["label"])


@dataclasses.dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
      splits: the splits by their names.
      class_names: the names of the classes, for each label feature for which the archive has them.
      note: how the data depart from the published data, or "".
    """

    splits: dict[str, ArchiveSplit]
    class_names: dict[str, list[str]]
    note: str = ""


@contextlib.contextmanager
def damage(path: Path) -> Generator[None]:
    """Turns the different errors that a damaged file can cause into one."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path} is truncated, damaged or of another kind: {error}") from None


def members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each file in a tar archive, compressed or not."""
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, member.size, file


def _fields(name: str) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Files of each split, files of class names by feature, and the order of the label bytes."""
    if name == "cifar10":
        train = [f"data_batch_{i}.bin" for i in range(1, 6)]
        files = {"train": train, "test": ["test_batch.bin"]}
        return files, {"label": "batches.meta.txt"}, ["label"]
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return files, names, ["coarse_label", "label"]


def cifar(path: Path, name: str) -> Archive:
    """Reads the binary version of CIFAR-10 or CIFAR-100 (`name`)."""
    files, name_files, features = _fields(name)
    wanted = [*(file for parts in files.values() for file in parts), *name_files.values()]
    contents = {}
    with damage(path):
        for member, size, file in members(path):
            if "-py" in Path(member).parent.name:
                raise DataError(
                    f"{path} is the Python version, whose pickles can run code when read: "
                    f"use the binary version, {name.replace('cifar', 'cifar-')}-binary.tar.gz"
                )
            if Path(member).name in wanted and size < _MEMBER_LIMIT:
                contents[Path(member).name] = file.read()
    _require_members(path, wanted, contents)
    # A record is the bytes of its labels, then the planes of red, green and blue.
    record = len(features) + 3 * 32 * 32
    splits = {}
    for split, parts in files.items():
        if any(len(contents[file]) % record for file in parts):
            raise DataError(f"{path}: the files of {split} do not hold records of {record} bytes")
        data = np.concatenate([np.frombuffer(contents.pop(file), np.uint8) for file in parts])
        data = data.reshape(-1, record)
        labels = {feature: data[:, i].astype(np.int64) for i, feature in enumerate(features)}
        images = data[:, len(features) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = ArchiveSplit(labels, functools.partial(iter, images))
    return Archive(
        splits, {feature: _lines(contents[file]) for feature, file in name_files.items()}
    )


def stl10(path: Path) -> Archive:
    """Reads `stl10_binary.tar.gz`; the images, 3 GB, are never all in memory."""
    names = {"train": "train_X.bin", "test": "test_X.bin", "unlabelled": "unlabeled_X.bin"}
    small = ["train_y.bin", "test_y.bin", "class_names.txt"]
    # The images are read in a later pass, one by one; here their number is enough.
    contents, sizes = {}, {}
    with damage(path):
        for member, size, file in members(path):
            base = Path(member).name
            if base in small and size < _SMALL:
                contents[base] = file.read()
            elif base in names.values():
                sizes[base] = size
    _require_members(path, [*names.values(), *small], contents | sizes)
    record = 3 * 96 * 96
    splits = {}
    for split, file in names.items():
        count, rest = divmod(sizes[file], record)
        if split == "unlabelled":
            labels = np.full(count, -1)
        else:
            # The published labels count from 1.
            labels = np.frombuffer(contents[f"{split}_y.bin"], np.uint8).astype(np.int64) - 1
        if rest or len(labels) != count:
            raise DataError(f"{path}: {file} holds {count} images, there are {len(labels)} labels")
        splits[split] = ArchiveSplit(
            {"label": labels}, functools.partial(_stl10_images, path, file)
        )
    return Archive(splits, {"label": _lines(contents["class_names.txt"])})


def _stl10_images(path: Path, wanted: str) -> Iterator[np.ndarray]:
    record = 3 * 96 * 96
    with damage(path):
        for member, size, file in members(path):
            if Path(member).name == wanted:
                for _ in range(size // record):
                    image = np.frombuffer(file.read(record), np.uint8)
                    # Each channel is stored column by column, unlike in CIFAR.
                    yield image.reshape(3, 96, 96).transpose(2, 1, 0)
                return


def idx(path: Path) -> Archive:
    """Reads the four idx files of MNIST or one of its variants in a folder, compressed or not."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx_array(_idx_file(path, f"{prefix}-images", 3), 3)
        labels = _idx_array(_idx_file(path, f"{prefix}-labels", 1), 1)
        if len(images) != len(labels):
            raise DataError(f"{path}: {split} has {len(images)} images and {len(labels)} labels")
        splits[split] = ArchiveSplit(
            {"label": labels.astype(np.int64)}, functools.partial(iter, images[..., None])
        )
    return Archive(splits, {})


def svhn(path: Path) -> Archive:
    """Reads `train_32x32.mat` and `test_32x32.mat`, the cropped digits of SVHN, in a folder."""
    splits = {}
    for split in ("train", "test"):
        file = path / f"{split}_32x32.mat"
        if not file.is_file():
            raise DataError(f"{path} lacks {file.name}: put the published file there")
        images, labels = _svhn_arrays(file)
        # The published files write the digit 0 as 10.
        splits[split] = ArchiveSplit({"label": labels % 10}, functools.partial(iter, images))
    return Archive(splits, {})


def _svhn_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `[n, 32, 32, 3]`, and labels, int64 `[n]` from 1 to 10, of one file."""
    reader = require("scipy.io", "a MATLAB file")
    try:
        arrays = reader.loadmat(str(path), appendmat=False, variable_names=["X", "y"])
    except Exception as error:  # SciPy has no common error for a file that it cannot read.
        raise DataError(
            f"{path} is truncated, damaged or no file of MATLAB 5 ({error}): get it again"
        ) from None
    missing = [name for name in ("X", "y") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {' and '.join(missing)}: it is not the published file")
    images, labels = arrays["X"], arrays["y"]
    count = images.shape[-1]
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, count):
        raise DataError(
            f"{path}: X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, n): it is not the "
            "published file"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (count, 1):
        raise DataError(
            f"{path}: y is {labels.dtype} {labels.shape}, not integers ({count}, 1): it is not the "
            "published file"
        )
    if labels.min(initial=1) < 1 or labels.max(initial=1) > 10:
        raise DataError(f"{path}: labels are not from 1 to 10: it is not the published file")
    return np.moveaxis(images, -1, 0), labels[:, 0].astype(np.int64)


def has_idx(path: Path) -> bool:
    """Whether a folder holds idx files."""
    return any(path.glob("*-idx?-ubyte*")) or any(path.glob("*.idx?-ubyte*"))


def _idx_file(path: Path, stem: str, rank: int) -> Path:
    # Published copies differ in the dash or dot before `idx` and in their compression.
    names = [f"{stem}{dash}idx{rank}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path} has none of {', '.join(names)}")


def _idx_array(path: Path, rank: int) -> np.ndarray:
    open_file = gzip.open if path.suffix == ".gz" else open
    with damage(path), open_file(path, "rb") as file:
        header = file.read(4 + 4 * rank)
        if len(header) < 4 + 4 * rank or header[:4] != bytes([0, 0, 8, rank]):
            raise DataError(f"{path} is no idx file of bytes in {rank} dimensions")
        shape = struct.unpack(f">{rank}I", header[4:])
        size = math.prod(shape)
        if size >= _MEMBER_LIMIT:
            raise DataError(f"{path} claims the shape {shape}")
        # One byte more, to notice a file that is too long.
        data = file.read(size + 1)
    if len(data) != size:
        raise DataError(f"{path} does not hold the {size} bytes of its shape {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _require_members(path: Path, wanted: list[str], members: dict) -> None:
    missing = [file for file in wanted if file not in members]
    if missing:
        raise DataError(f"{path} is another archive or not all of it: it lacks {missing[0]}")


def _lines(content: bytes) -> list[str]:
    return [
        line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()
    ]
