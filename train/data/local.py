"""Data sets that are read where they lie: the digits, an .npz file, a folder of images."""

import glob
import io
import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from train.data import remote
from train.data.image_files import IMAGE_SUFFIXES, is_image, kind_of, read_image, report_left_out
from train.data.subsets import stratified_split
from train.data.types import (
    DataError,
    DataNotFound,
    ImageData,
    RecordSplit,
    fit_in_memory,
    from_arrays,
    image_data,
    require,
)

_log = logging.getLogger(__name__)

DIGITS_TEST_SIZE = 360

# Grey or colours, with or without transparency.
_USUAL_CHANNELS = range(1, 5)

_UNLABELLED = "unlabelled"
_LOOKED_FOR = f"looked for *{', *'.join(IMAGE_SUFFIXES)}"
_SPLIT_NOTE = "no published split: a stratified fifth, drawn with seed 0, is the test split"


def digits() -> ImageData:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8, one channel.

    The values 0 to 16 are scaled to 0 to 255. There is no official split: 360 examples are drawn
    with seed 0 as the test part, to which each class gives a fifth of its images to within one; the
    other 1,437 are the training part. The split is the same on every machine.
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


def npz(path: Path | str, *, unlabelled: bool = False) -> ImageData:
    """Reads `x_train`, `y_train`, `x_test`, `y_test` from an .npz file or the URL of one.

    The file may also hold `class_names` and `source_note` as arrays of strings, and images without
    labels in `x_unlabelled`, which are read only if `unlabelled` is set.

    Raises:
      DataNotFound: there is no such file.
      DataError: the file is no .npz archive, lacks an array, or holds pickled objects; images have
        their channels first; or, without `class_names`, labels leave out a class.
    """
    if isinstance(path, Path) and not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    source = path if isinstance(path, Path) else io.BytesIO(remote.content(path))
    try:
        # Unpickling could run code of whoever wrote the file.
        with np.load(source, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array, not an .npz archive")
            wanted = [key for key in file.files if unlabelled or key != "x_unlabelled"]
            arrays = {key: file[key] for key in wanted}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path} as an .npz file: {error}") from None
    names = ["x_train", "y_train", "x_test", "y_test"]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays)}")
    for name, images in arrays.items():
        if name in ("x_train", "x_test", "x_unlabelled") and _is_channels_first(images):
            raise DataError(
                f"{path}: {name} is {images.shape}, channels first, but images are read as "
                f"[n, h, w, c]: store {name}.transpose(0, 2, 3, 1)"
            )
    class_names = arrays.get("class_names")
    _check_labels(path, arrays["y_train"], arrays["y_test"], class_names)
    return from_arrays(
        PurePath(path).stem,
        *(arrays[name] for name in names),
        class_names=None if class_names is None else [str(name) for name in class_names],
        source_note=str(arrays.get("source_note", "")),
        unlabelled=arrays.get("x_unlabelled"),
    )


def _is_channels_first(images: np.ndarray) -> bool:
    """Whether the shape `[n, first, second, last]` shows that the channels come first.

    It does if `last` is no usual number of channels, and either `first` is one or the other two are
    a square. A square of the first two is an image of many channels, as in [n, 9, 9, 200].
    """
    if images.ndim != 4 or images.shape[3] in _USUAL_CHANNELS:
        return False
    first, second, last = images.shape[1:]
    return first != second and (first in _USUAL_CHANNELS or second == last)


def _check_labels(
    path: Path | str, train: np.ndarray, test: np.ndarray, class_names: np.ndarray | None
) -> None:
    """Raises `DataError` if labels count from 1, or leave out a class that `class_names` lacks.

    What else labels can be wrong in is checked where they are put together with their images.
    """
    if any(labels.dtype.kind not in "iu" or labels.size == 0 for labels in (train, test)):
        return
    low, high = (int(end) for end in (min(train.min(), test.min()), max(train.max(), test.max())))
    if class_names is not None:
        if low == 1 and high == len(class_names):
            raise DataError(
                f"{path}: labels are from 1 to {high}, but those of {high} classes are from 0 to "
                f"{high - 1}: subtract 1 from y_train and y_test"
            )
        return
    present = len(np.unique(train))
    if low >= 0 and present <= high:
        todo = "subtract 1 from y_train and y_test" if low == 1 else "number the classes from 0"
        raise DataError(
            f"{path}: labels are from {low} to {high}, but y_train has only {present} of the "
            f"{high + 1} classes from 0 to {high}: {todo}, or name all classes in class_names"
        )


class ImageFiles:
    """Records of image files, each of which is decoded to RGB when it is asked for.

    Args:
      paths: the files.
      labels: one label per file.
      image_size: side of the squares to which images are scaled (by their shorter side) and cropped
        about the centre; if None, all images must have the same size.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], *, image_size: int | None):
        self._paths = list(paths)
        self._labels = list(labels)
        self._image_size = image_size
        self._ops = require("PIL.ImageOps", "a folder of images")
        self._resampling = require("PIL.Image", "a folder of images").Resampling.BILINEAR
        # Set once the first image is read, which all others must match.
        self.image_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        image = read_image(path, str(path), "RGB")
        if self._image_size is not None:
            size = (self._image_size, self._image_size)
            image = self._ops.fit(image, size, method=self._resampling)
        array = np.asarray(image)
        if self.image_shape is not None and array.shape != self.image_shape:
            raise DataError(
                f"{path} is {array.shape[1]} x {array.shape[0]} pixels, the first image is "
                f"{self.image_shape[1]} x {self.image_shape[0]}: give --image-size"
            )
        return {"image": array, "label": self._labels[index]}


def folder(
    path: Path,
    *,
    memory_limit_mib: int = 2048,
    image_size: int | None = None,
    unlabelled: bool = False,
) -> ImageData:
    """Reads `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone.

    Images become RGB with 8 bits, see `image_files.read_image`; classes are numbered in the order
    of their names. Without `train/` and `test/`, a fifth of the images, drawn with seed 0 and
    stratified by class, is the test split. A folder `unlabelled/` beside the others is never a
    class. How many files of other suffixes were left out is logged, and is part of the note.

    Args:
      path: the folder.
      memory_limit_mib: a larger split is not read now; its files are decoded when they are needed.
      image_size: see `ImageFiles`.
      unlabelled: also read the images in `unlabelled/`, if there is one, and in its subfolders,
        whose names mean nothing.

    Raises:
      DataNotFound: there is no such folder.
      DataError: a class is empty or missing in training, `unlabelled/` is empty, or an image
        cannot be read.
    """
    if not path.is_dir():
        raise DataNotFound(f"there is no folder {path}")
    if image_size is not None and image_size < 1:
        raise DataError(f"the image size must be at least 1, got {image_size}")
    note = ""
    left_out: list[str] = []
    if (path / "train").is_dir() != (path / "test").is_dir():
        missing = "test" if (path / "train").is_dir() else "train"
        raise DataError(
            f"{path} needs both train/ and test/, or neither; it has {_folders_in(path)}: rename "
            f"one of them to {missing}/, or add it"
        )
    if (path / "train").is_dir():
        classes = _list_classes(path / "train", left_out)
        tests = _list_classes(path / "test", left_out)
        # A class may lack test images, but not training images.
        unknown = sorted(set(tests) - set(classes))
        if unknown:
            raise DataError(f"{path / 'test'} has classes that train/ lacks: {', '.join(unknown)}")
        names = list(classes)
        train = [(file, names.index(name)) for name in names for file in classes[name]]
        test = [(file, names.index(name)) for name, files in tests.items() for file in files]
    else:
        classes = _list_classes(path, left_out, ignore=_UNLABELLED)
        for name, files in classes.items():
            if len(files) < 2:
                raise DataError(f"the class {path / name} needs at least two images to be split")
        names = list(classes)
        files = [(file, names.index(name)) for name in names for file in classes[name]]
        labels = np.array([label for _, label in files])
        parts = stratified_split(labels, round(len(files) / 5), seed=0)
        # The split is not published, so it is announced here and noted beside every result.
        train, test = ([files[index] for index in part] for part in parts)
        note = _SPLIT_NOTE
        _log.info("%s: %s (%d of %d images)", path, note, len(test), len(files))
    parts = [train, test]
    if unlabelled and (path / _UNLABELLED).is_dir():
        parts.append([(file, -1) for file in _list_unlabelled(path / _UNLABELLED, left_out)])
    omission = report_left_out(path, left_out, sum(map(len, parts)))
    sources = [
        ImageFiles([file for file, _ in part], [label for _, label in part], image_size=image_size)
        for part in parts
    ]
    # Streamed images are read later: each is then compared with the first.
    shape = sources[0][0]["image"].shape
    for source in sources:
        source.image_shape = shape
    splits = [fit_in_memory(RecordSplit(source, shape), memory_limit_mib) for source in sources]
    return image_data(
        path.resolve().name,
        names,
        *splits[:2],
        source_note="; ".join(filter(None, [note, omission])),
        unlabelled=splits[2] if len(splits) > 2 else None,
    )


def _folders_in(path: Path) -> str:
    """The folders that a user sees there, for messages."""
    names = (entry.name for entry in sorted(path.iterdir()) if entry.is_dir())
    return ", ".join(f"{name}/" for name in names if not name.startswith("."))


def _list_unlabelled(path: Path, left_out: list[str]) -> list[Path]:
    # Unlike Path.rglob this also follows links to folders, as the reading of classes does.
    names = sorted(glob.glob("**/*", root_dir=path, recursive=True))
    files = _images_of([file for name in names if not (file := path / name).is_dir()], left_out)
    if not files:
        raise DataError(f"{path} has no image ({_LOOKED_FOR}): put one there or remove the folder")
    return files


def _list_classes(
    path: Path, left_out: list[str], *, ignore: str | None = None
) -> dict[str, list[Path]]:
    """Image files by class, both sorted by name; adds the kinds of other files to `left_out`."""
    classes = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != ignore:
            files = _images_of(sorted(entry.iterdir()), left_out)
            if not files and (inside := _folders_in(entry)):
                raise DataError(
                    f"the folder {entry} has no image but the folders {inside}: those of the "
                    "classes must lie in train/ and test/, or all in one folder"
                )
            if not files:
                raise DataError(
                    f"the class {entry.name} has no labelled image in {entry} ({_LOOKED_FOR}): "
                    "put one there or remove the folder"
                )
            classes[entry.name] = files
    if not classes:
        raise DataError(f"{path} has no folder of a class in it")
    return classes


def _images_of(files: list[Path], left_out: list[str]) -> list[Path]:
    """Those of the files that are images; adds the kinds of the others to `left_out`."""
    visible = [file for file in files if not file.name.startswith(".")]
    # Images in a folder of a class folder are not read: that it is one tells more than its name.
    left_out += [
        "folders" if file.is_dir() else kind_of(file) for file in visible if not is_image(file)
    ]
    return [file for file in visible if is_image(file)]
