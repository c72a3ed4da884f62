"""Reader of published data as images in `{train,test}/<class>/`, in a folder or tar archive."""

import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train.data.archives import Archive, ArchiveSplit, damage, members
from train.data.image_files import is_image, kind_of, read_image, report_left_out
from train.data.types import DataError, require

_JPEG = (".jpg", ".jpeg")
# Name and content of the image files, by split and class.
_Files = dict[tuple[str, str], list[tuple[str, bytes]]]

TITLES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_DIGITS = [str(digit) for digit in range(10)]
_CIFAR10 = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
CLASSES = {"cifar10": list(_CIFAR10), "mnist": _DIGITS, "fashion_mnist": _DIGITS}


def holds_images(path: Path) -> bool:
    """Whether the first file of a tar archive is an image."""
    with damage(path):
        for name, _, _ in members(path):
            return is_image(Path(name))
    return False


def image_tree(path: Path, name: str, shape: tuple[int, int, int], labels: Path | None) -> Archive:
    """Reads a tree of images.

    Args:
      path: the folder or the tar archive.
      name: the data set that it holds. Its folders must be named after the classes (by numbers for
        MNIST and its variants).
      shape: the shape of the images.
      labels: an .npz file with `train` and `test`, the labels in the published order. The k-th
        image of a class, by file name, then goes to the k-th place of that class. If None, the
        images are in the order of the classes.
    """
    if name not in CLASSES:
        raise DataError(f"{name} cannot be prepared from images; choose from {', '.join(CLASSES)}")
    files = _read_files(path)
    given = {label for _, label in files}
    if given != set(CLASSES[name]):
        raise DataError(f"{path} has the classes {sorted(given)}, {name} has {CLASSES[name]}")
    order = _read_labels(labels) if labels is not None else {}
    splits = {}
    for split in ("train", "test"):
        by_class = [sorted(files.get((split, label), []), key=_number) for label in CLASSES[name]]
        counts = [len(images) for images in by_class]
        sequence = order.get(split, np.repeat(np.arange(len(by_class)), counts))
        if np.bincount(sequence, minlength=len(by_class)).tolist() != counts:
            raise DataError(f"{labels} does not match the images of {split} in {path}")
        # Each label of the published order takes the next image of its class.
        queues = [iter(images) for images in by_class]
        queue = [next(queues[label]) for label in sequence]
        splits[split] = ArchiveSplit(
            {"label": sequence}, functools.partial(_decode, path, tuple(queue), shape)
        )
    class_names = {"label": CLASSES[name]} if name == "cifar10" else {}
    return Archive(splits, class_names, _note(name, files, labels))


def _read_files(path: Path) -> _Files:
    files: _Files = {}
    left_out, seen = [], set()
    with damage(path):
        if path.is_dir():
            inside = filter(Path.is_file, sorted(path.glob("*/*/*")))
            entries = ((file, file.read_bytes) for file in inside)
        else:
            entries = ((Path(member), file.read) for member, _, file in members(path))
        for file, read in entries:
            split, label = file.parts[-3:-1] if len(file.parts) > 2 else ("", "")
            if file.name.startswith("."):
                continue
            if is_image(file) and split:
                seen.add(split)
            if split not in ("train", "test"):
                continue
            if is_image(file):
                files.setdefault((split, label), []).append((file.name, read()))
            else:
                left_out.append(kind_of(file))
    missing = [split for split in ("train", "test") if split not in seen]
    if missing:
        there = f"; it has images in {', '.join(f'{name}/' for name in sorted(seen))}"
        raise DataError(f"{path} holds no {missing[0]}/<class>/<image>{there if seen else ''}")
    # No part of the note: the number of images is compared with that of the published data.
    report_left_out(path, left_out, sum(map(len, files.values())))
    return files


def _number(file: tuple[str, bytes]) -> tuple[int, str]:
    # By value: as text, 10 would come before 9.
    stem = Path(file[0]).stem
    return (int(stem), stem) if stem.isdecimal() else (-1, stem)


def _read_labels(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = {split: file[split] for split in ("train", "test")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read train and test from {path}: {error}") from None
    for values in labels.values():
        if values.dtype.kind not in "iu" or values.ndim != 1 or values.min(initial=0) < 0:
            raise DataError(f"{path} does not hold one class number per image")
    return {split: values.astype(np.int64) for split, values in labels.items()}


def _decode(
    path: Path, files: tuple[tuple[str, bytes], ...], shape: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    mode = "L" if shape[-1] == 1 else "RGB"
    for name, content in files:
        image = np.asarray(read_image(io.BytesIO(content), f"{name} in {path}", mode))
        image = image.reshape(*image.shape[:2], -1)
        if image.shape != shape:
            raise DataError(f"the image {name} in {path} is {image.shape}, not {shape}")
        yield image


def _note(name: str, files: _Files, labels: Path | None) -> str:
    notes = []
    jpegs = [
        content
        for images in files.values()
        for file, content in images
        if file.lower().endswith(_JPEG)
    ]
    if jpegs:
        quality = " quality 75" if _is_quality_75(jpegs[0]) else ""
        notes.append(f"{TITLES[name]} (JPEG): images re-encoded as JPEG{quality}")
    if labels is None:
        notes.append(f"{TITLES[name]} in the order of its classes, not in the published order")
    return "; ".join(notes)


def _is_quality_75(content: bytes) -> bool:
    # A JPEG stores no quality but tables, which are compared with those that Pillow writes at 75.
    pillow = require("PIL.Image", "an archive of images")
    sample = io.BytesIO()
    pillow.new("RGB", (8, 8)).save(sample, "JPEG", quality=75)
    try:
        with pillow.open(io.BytesIO(content)) as one, pillow.open(sample) as other:
            return one.quantization == other.quantization
    except (OSError, SyntaxError, ValueError):
        return False
