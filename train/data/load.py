"""Loads a data set by its name.

Arrays need NumPy alone: TFDS, grain, Pillow and scikit-learn are imported only where they are used.
"""

from pathlib import Path

from train.data import local, remote, tfds
from train.data.types import DataError, DataNotFound, ImageData
from train.run.store import is_url


def load(
    name: str,
    *,
    data_dir: str | None = None,
    memory_limit_mib: int = 2048,
    image_size: int | None = None,
    unlabelled: bool = False,
) -> ImageData:
    """Loads a data set. Nothing is ever downloaded, except from a URL that the user names.

    Args:
      name: one of
        `digits`: the 1,797 digits of scikit-learn with a fixed split (see `local.digits`);
        `cifar10`, `cifar100`, `stl10`, `mnist`, `fashion_mnist`, `svhn_cropped`: prepared in the
        layout of TFDS, by `python -m train.prepare` or by TFDS itself as ArrayRecord;
        `folder:PATH`: a folder of images (see `local.folder`);
        `npz:PATH`: arrays in a file (see `local.npz`), also at a URL such as gs://BUCKET/FILE.npz.
      data_dir: where prepared data lie; by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Of
        a URL such as gs://BUCKET/PATH, the set is copied to a cache (see `remote.local_copy`).
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
        # A URL stays a string: a path would lose one of its slashes.
        place = path if is_url(path) else Path(path).expanduser()
        return local.npz(place, unlabelled=unlabelled)
    if kind == "folder" and path:
        if is_url(path):
            raise DataError(
                f"images are read from a folder of this machine only, not from {path}: copy them "
                "here, or store arrays and give npz:URL"
            )
        return local.folder(
            Path(path).expanduser(),
            memory_limit_mib=memory_limit_mib,
            image_size=image_size,
            unlabelled=unlabelled,
        )
    if name not in tfds.PUBLISHED:
        known = ", ".join(["digits", *tfds.PUBLISHED, "folder:PATH", "npz:PATH"])
        raise DataError(f"there is no data set {name!r}; choose from {known}")
    root, version = _found(name, data_dir, unlabelled=unlabelled)
    return tfds.read(name, version, root, memory_limit_mib=memory_limit_mib, unlabelled=unlabelled)


def _found(name: str, data_dir: str | None, *, unlabelled: bool) -> tuple[Path, str]:
    """The folder on this machine that has a prepared set, and its version."""
    published = tfds.PUBLISHED[name]
    # For the messages of errors: it prepares the data where this run looks for them.
    command = f"python -m train.prepare {name} --from {published.argument}"
    if data_dir is None or not is_url(data_dir):
        if data_dir is not None:
            command += f" --data-dir {data_dir}"
        root = tfds.default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        return root, tfds.find(name, root, prepare_command=command, unlabelled=unlabelled).name
    command += " --data-dir FOLDER"
    then = f"then copy FOLDER/{name} to {data_dir.rstrip('/')}/{name}"
    try:
        root = remote.local_copy(data_dir, name, unlabelled=unlabelled)
    except DataNotFound as error:
        raise DataNotFound(f"{error} Get {published.source}, run: {command}, {then}") from None
    try:
        return root, tfds.find(name, root, prepare_command=command, unlabelled=unlabelled).name
    except DataError as error:
        raise DataError(f"{error}, {then}") from None
