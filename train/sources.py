"""Data sets that need no preparation: the digits, an .npz file, a folder of images."""

import importlib
import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from train.images import (
    DataError,
    DataNotFound,
    ImageData,
    RecordSplit,
    Split,
    fit_in_memory,
    from_arrays,
    image_data,
)

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DIGITS_TEST_SIZE = 360

_SPLIT_NOTE = "no published split: a stratified fifth, drawn with seed 0, is the test split"


def require(module: str, what: str) -> ModuleType:
    """Imports a module of the `train` extra, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{what} needs the module {error.name}: pip install 'mirjax[train]'"
        ) from None


def stratified_split(
    labels: np.ndarray, test_size: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices so that each class gives its share to the test part, to within one.

    Args:
      labels: integers `[n]`.
      test_size: the number of test examples.
      seed: of the draw within each class.

    Returns:
      The sorted indices of the training and of the test part.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (test_size / len(labels))
    sizes = np.floor(shares).astype(int)
    largest = np.argsort(sizes - shares, kind="stable")[: test_size - sizes.sum()]
    sizes[largest] += 1
    # Sorting raw draws, not `permutation`: its result may change between versions of NumPy.
    draws = np.random.Generator(np.random.PCG64(seed)).random(len(labels))
    chosen = []
    for value, size in zip(classes, sizes, strict=True):
        members = np.flatnonzero(labels == value)
        chosen.append(members[np.argsort(draws[members], kind="stable")][:size])
    test = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), test), test


def digits() -> ImageData:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8, one channel.

    The values 0 to 16 are scaled to 0 to 255. There is no official split: 360 examples are drawn
    for the test part with seed 0, each class giving a fifth of its images to within one; the other
    1,437 are the training part. The split is the same on every machine.
    """
    datasets = require("sklearn.datasets", "the data set digits")
    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target
    train, test = stratified_split(labels, DIGITS_TEST_SIZE, seed=0)
    return from_arrays(
        "digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        source_note=_SPLIT_NOTE,
    )


def npz(path: Path) -> ImageData:
    """Reads `x_train`, `y_train`, `x_test`, `y_test` from an .npz file.

    The file may also hold `class_names` and `source_note` as arrays of strings.

    Raises:
      DataNotFound: there is no such file.
      DataError: it is no .npz file, lacks an array, or holds pickled objects.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array, not an .npz archive")
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path} as an .npz file: {error}") from None
    names = ["x_train", "y_train", "x_test", "y_test"]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays)}")
    class_names = arrays.get("class_names")
    return from_arrays(
        path.stem,
        *(arrays[name] for name in names),
        class_names=None if class_names is None else [str(name) for name in class_names],
        source_note=str(arrays.get("source_note", "")),
    )


def save_npz(data: ImageData, path: Path) -> None:
    """Writes a data set in memory to a file that `npz` reads, as for a machine without TFDS."""
    if not isinstance(data.train, Split) or not isinstance(data.test, Split):
        raise DataError(f"{data.name} is not in memory")
    np.savez(
        path,
        x_train=data.train.images,
        y_train=data.train.labels,
        x_test=data.test.images,
        y_test=data.test.labels,
        class_names=np.array(data.class_names),
        source_note=np.array(data.source_note),
    )


class ImageFiles:
    """Records of image files: each is decoded to RGB when it is asked for.

    Args:
      paths: the files.
      labels: one per file.
      image_size: every image is scaled so that its shorter side has this length and cropped about
        the centre to a square; without it all images must have one size.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], *, image_size: int | None):
        self._paths = list(paths)
        self._labels = list(labels)
        self._image_size = image_size
        self._image = require("PIL.Image", "a folder of images")
        self._ops = require("PIL.ImageOps", "a folder of images")
        self.image_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        try:
            with self._image.open(path) as file:
                image = file.convert("RGB")
                if self._image_size is not None:
                    size = (self._image_size, self._image_size)
                    image = self._ops.fit(image, size, method=self._image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, self._image.DecompressionBombError) as error:
            raise DataError(f"cannot read the image {path}: {error}") from None
        array = np.asarray(image)
        if self.image_shape is not None and array.shape != self.image_shape:
            raise DataError(
                f"{path} is {array.shape[1]} x {array.shape[0]} pixels, the first image is "
                f"{self.image_shape[1]} x {self.image_shape[0]}: give --image-size"
            )
        return {"image": array, "label": self._labels[index]}


def folder(path: Path, *, memory_limit_mib: int = 2048, image_size: int | None = None) -> ImageData:
    """Reads `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

    Images become RGB; classes are numbered in the order of their names. Without the two upper
    folders a fifth of the images, drawn with seed 0 and stratified by class, is the test split.

    Args:
      path: the folder.
      memory_limit_mib: a larger split is not read now; its files are decoded whenever asked for.
      image_size: see `ImageFiles`.

    Raises:
      DataNotFound: there is no such folder.
      DataError: a class is empty or unknown in training, or the first image cannot be read.
    """
    if not path.is_dir():
        raise DataNotFound(f"there is no folder {path}")
    if image_size is not None and image_size < 1:
        raise DataError(f"the image size must be at least 1, got {image_size}")
    note = ""
    if (path / "train").is_dir() != (path / "test").is_dir():
        raise DataError(f"{path} needs both train/ and test/, or neither")
    if (path / "train").is_dir():
        classes = _list_classes(path / "train")
        tests = _list_classes(path / "test")
        unknown = sorted(set(tests) - set(classes))
        if unknown:
            raise DataError(f"{path / 'test'} has classes that train/ lacks: {', '.join(unknown)}")
        names = list(classes)
        train = [(file, names.index(name)) for name in names for file in classes[name]]
        test = [(file, names.index(name)) for name, files in tests.items() for file in files]
    else:
        classes = _list_classes(path)
        for name, files in classes.items():
            if len(files) < 2:
                raise DataError(f"the class {path / name} needs two images to be split")
        names = list(classes)
        files = [(file, names.index(name)) for name in names for file in classes[name]]
        labels = np.array([label for _, label in files])
        parts = stratified_split(labels, round(len(files) / 5), seed=0)
        train, test = ([files[index] for index in part] for part in parts)
        note = _SPLIT_NOTE
        _log.info("%s: %s (%d of %d images)", path, note, len(test), len(files))
    sources = [
        ImageFiles([file for file, _ in part], [label for _, label in part], image_size=image_size)
        for part in (train, test)
    ]
    shape = sources[0][0]["image"].shape
    for source in sources:
        source.image_shape = shape
    splits = [fit_in_memory(RecordSplit(source, shape), memory_limit_mib) for source in sources]
    return image_data(path.resolve().name, names, *splits, source_note=note)


def _list_classes(path: Path) -> dict[str, list[Path]]:
    """Image files by class, both sorted by name."""
    classes = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            files = [
                file
                for file in sorted(entry.iterdir())
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            ]
            if not files:
                raise DataError(
                    f"the class {entry} has no image (looked for *{', *'.join(IMAGE_SUFFIXES)})"
                )
            classes[entry.name] = files
    if not classes:
        raise DataError(f"{path} has no folder of a class in it")
    return classes
