"""Puts a published data set into the layout of TFDS, without TensorFlow and without a network.

Example:
  python -m train.prepare cifar10 --from cifar-10-binary.tar.gz

The files are those that TFDS itself would write as ArrayRecord: `tfds.data_source("cifar10",
data_dir=..., download=False)` reads them. What to give as PATH depends on the data set:
  cifar10, cifar100: the binary version of the archive (the Python version is refused: it consists
    of pickles, which can run code when they are read);
  stl10: stl10_binary.tar.gz;
  mnist, fashion_mnist: the folder with the four idx files, compressed or not;
  svhn_cropped: the folder with train_32x32.mat and test_32x32.mat; the split `extra` of TFDS is
    left out;
  cifar10, mnist, fashion_mnist: also a folder or a tar archive of {train,test}/<class>/<image>,
    which are read as those of `folder:PATH` are.
"""

import contextlib
import dataclasses
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from train.data import archives
from train.data.archives import Archive, ArchiveSplit
from train.data.image_tree import holds_images, image_tree
from train.data.tfds import PUBLISHED, SOURCE_NOTE_FILE, default_data_dir, import_tfds
from train.data.types import DataError, require
from train.run.errors import UserError, message_of

Counts = Mapping[str, Sequence[int]]
"""Images per class, for each split."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Puts a published data set into the layout of TFDS, without TensorFlow or a network."""

    name: tyro.conf.Positional[
        Literal["cifar10", "cifar100", "stl10", "mnist", "fashion_mnist", "svhn_cropped"]
    ]
    """Name of the data set in TFDS."""
    source: Annotated[Path, tyro.conf.arg(name="from", metavar="PATH")]
    """The published archive, or the folder with the published files."""
    data_dir: Path | None = None
    """Folder to write the data set to; if not given, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    labels: Annotated[Path | None, tyro.conf.arg(metavar="NPZ")] = None
    """An .npz file with the labels `train` and `test` in the published order, for images that are
    in a folder for each class."""
    overwrite: bool = False
    """Whether to replace data that are already there."""


def prepare(
    name: str,
    source: Path,
    *,
    data_dir: Path | None = None,
    labels: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a published data set in the layout of TFDS.

    Everything is written to a hidden folder beside the result, which is renamed when it is
    complete: an interruption leaves nothing that looks like data.

    Args:
      name: a key of `train.data.tfds.PUBLISHED`.
      source: the published archive or folder.
      data_dir: the folder to write to; see `train.data.tfds.default_data_dir`.
      labels: an .npz file of labels; see `image_tree.image_tree`.
      overwrite: whether to replace data that are already there.

    Returns:
      The folder that now holds the data.

    Raises:
      DataError: the source is not what it should be, or the data are already there.
    """
    root = (default_data_dir() if data_dir is None else data_dir).expanduser()
    source = source.expanduser()
    if not source.exists():
        raise DataError(f"there is no {source}; {name} needs {PUBLISHED[name].source}")
    if labels is not None and not labels.is_file():
        raise DataError(f"there is no file {labels}")
    tfds = import_tfds()
    official = tfds.builder_cls(name)
    target = root / name / str(official.VERSION)
    if target.exists() and not overwrite:
        raise DataError(f"{target} is already there; --overwrite replaces it")
    # Only a builder knows the shape of the images, and it wants a folder.
    with tempfile.TemporaryDirectory() as empty:
        shape = tuple(official(data_dir=empty).info.features["image"].shape)
    archive = _open(name, source, shape, labels)
    _check_counts(source, archive, PUBLISHED[name].counts())

    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-partial-", dir=root))
    try:
        written = _write(tfds, official, archive, partial)
        if archive.note:
            (written / SOURCE_NOTE_FILE).write_text(archive.note + "\n", encoding="utf-8")
        target.parent.mkdir(exist_ok=True)
        # The old data are moved away and not deleted first: a moment later the new ones are there.
        if target.exists():
            target.rename(partial / "replaced")
        written.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _open(name: str, source: Path, shape: tuple[int, int, int], labels: Path | None) -> Archive:
    """The content of a source, whose kind is told by the data set and by what the source holds."""
    if name == "svhn_cropped":
        if not source.is_dir():
            raise DataError(
                f"{source}: {name} is read from the folder with train_32x32.mat and test_32x32.mat"
            )
        archive = archives.svhn(source)
    elif source.is_dir():
        if archives.has_idx(source):
            if not name.endswith("mnist"):
                raise DataError(f"{source} holds idx files, which {name} is not published as")
            archive = archives.idx(source)
        else:
            return image_tree(source, name, shape, labels)
    elif holds_images(source):
        return image_tree(source, name, shape, labels)
    elif name in ("cifar10", "cifar100"):
        archive = archives.cifar(source, name)
    elif name == "stl10":
        archive = archives.stl10(source)
    else:
        raise DataError(f"{source}: {name} is read from a folder with its four idx files")
    if labels is not None:
        raise DataError(f"--labels goes with images in folders; {source} has its own labels")
    return archive


def _check_counts(source: Path, archive: Archive, counts: Counts) -> None:
    """Raises `DataError` if a split does not have the published number of images of each class."""
    for split, expected in counts.items():
        if split not in archive.splits:
            raise DataError(f"{source} has no split {split}")
        images = archive.splits[split]
        if len(images) != sum(expected):
            raise DataError(
                f"{source} has {len(images):,} images in {split}, the published data have "
                f"{sum(expected):,}"
            )
        # All labels of the split without labels are -1, which counts as one class.
        values, present = np.unique(images.labels["label"], return_counts=True)
        nonempty = [count for count in expected if count]
        if present.tolist() != nonempty or values.max() >= len(expected):
            raise DataError(
                f"{source}: the images per class of {split} are not those of the published data"
            )


def _write(tfds: Any, official: Any, archive: Archive, root: Path) -> Path:
    """Writes the records below `root`, by the official builder with only its reading replaced."""

    class Local(official, skip_registration=True):
        VERSION = official.VERSION
        name = official.name
        # Where the description of the data set lies. A subclass does not inherit it.
        pkg_dir_path = official.pkg_dir_path

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            del dl_manager
            for feature, names in archive.class_names.items():
                self.info.features[feature].names = names
            digits = PUBLISHED[self.name].id_digits
            with_id = "id" in self.info.features
            return {
                split: _examples(
                    f"{self.name} {split}",
                    images,
                    f"{split}_{{:0{digits}d}}" if with_id else None,
                )
                for split, images in archive.splits.items()
            }

    # The module is noted in the metadata, and `tfds.builder` compares it with the official one.
    Local.__module__ = official.__module__
    tfds.disable_progress_bar()
    builder = Local(data_dir=str(root), file_format="array_record")
    # What TFDS prints is wrong here: it announces a download, and the hidden folder.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return Path(builder.data_dir)


def _examples(
    title: str, split: ArchiveSplit, id_format: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a split with their keys, as TFDS takes them; reports the progress."""
    pillow = require("PIL.Image", "writing PNG")
    labels = {feature: values.tolist() for feature, values in split.labels.items()}
    for index, image in enumerate(split.images()):
        example = {feature: values[index] for feature, values in labels.items()}
        if id_format is not None:
            example["id"] = id_format.format(index)
        # A Pillow image, since TFDS encodes arrays with TensorFlow. Pillow wants a single channel
        # as an array of two axes.
        example["image"] = pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        yield index, example
        if (index + 1) % 1000 == 0 or index + 1 == len(split):
            _progress(title, index + 1, len(split))


def _progress(title: str, done: int, total: int) -> None:
    # A line that is written over and over belongs on a terminal, not in a log file.
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{title}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{title}: {total:,}", file=sys.stderr)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    config = tyro.cli(Config, args=args, prog="python -m train.prepare")
    try:
        path = prepare(
            config.name,
            config.source,
            data_dir=config.data_dir,
            labels=config.labels,
            overwrite=config.overwrite,
        )
    except (UserError, OSError) as error:
        print("error:", message_of(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nerror: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{config.name} is in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
