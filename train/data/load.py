"""Loads a data set by its name.

Arrays need NumPy alone: TFDS, grain, Pillow and scikit-learn are imported only where they are used.
"""

from pathlib import Path

from train.data import local, tfds
from train.data.types import DataError, ImageData


def load(
    name: str,
    *,
    data_dir: str | None = None,
    memory_limit_mib: int = 2048,
    image_size: int | None = None,
    unlabelled: bool = False,
) -> ImageData:
    """Loads a data set. Nothing is ever downloaded.

    Args:
      name: one of
        `digits`: the 1,797 digits of scikit-learn with a fixed split (see `local.digits`);
        `cifar10`, `cifar100`, `stl10`, `mnist`, `fashion_mnist`, `svhn_cropped`: prepared in the
        layout of TFDS, by `python -m train.prepare` or by TFDS itself as ArrayRecord;
        `folder:PATH`: a folder of images (see `local.folder`);
        `npz:PATH`: arrays in a file (see `local.npz`).
      data_dir: where prepared data lie; by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      memory_limit_mib: a split whose images need more than this as uint8 is streamed from disk.
      image_size: the side in pixels to which the images of a folder are scaled and cropped.
      unlabelled: also read the images without labels, which `stl10`, a folder or a file may have;
        the other sets have none.

    Returns:
      The data set. In memory, splits of CIFAR-10, CIFAR-100 and SVHN are in the published order;
      those of the other prepared sets, and all streamed ones, are in the order of TFDS's files.

    Raises:
      DataNotFound: the data are not on this machine; the message says how to prepare them.
      DataError: the name is unknown or the data cannot be used.
    """
    kind, _, path = name.partition(":")
    if image_size is not None and kind != "folder":
        raise DataError(f"an image size can only be given for folder:PATH, not for {name}")
    if name == "digits":
        return local.digits()
    if kind == "npz" and path:
        return local.npz(Path(path).expanduser(), unlabelled=unlabelled)
    if kind == "folder" and path:
        return local.folder(
            Path(path).expanduser(),
            memory_limit_mib=memory_limit_mib,
            image_size=image_size,
            unlabelled=unlabelled,
        )
    if name not in tfds.PUBLISHED:
        known = ", ".join(["digits", *tfds.PUBLISHED, "folder:PATH", "npz:PATH"])
        raise DataError(f"there is no data set {name!r}; choose from {known}")
    # For the messages of errors: it prepares the data where this run looks for them.
    command = f"python -m train.prepare {name} --from {tfds.PUBLISHED[name].argument}"
    if data_dir is not None:
        command += f" --data-dir {data_dir}"
    root = tfds.default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    version = tfds.find(name, root, prepare_command=command, unlabelled=unlabelled)
    return tfds.read(
        name, version.name, root, memory_limit_mib=memory_limit_mib, unlabelled=unlabelled
    )
