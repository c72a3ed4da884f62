"""Data in a store such as gs://: files are read through memory, prepared sets are copied once."""

import contextlib
import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from train.data.types import DataError, DataNotFound
from train.run.store import Store, StoreError

_log = logging.getLogger(__name__)

_INFO = "/dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def content(url: str) -> bytes:
    """The content of a file in a store.

    Raises:
      DataNotFound: there is no such file.
      DataError: the store cannot be read, or the package for it is missing.
    """
    folder, name = posixpath.split(url)
    with _as_data_error():
        found = Store(folder).read(name)
    if found is None:
        raise DataNotFound(f"there is no file {url}")
    return found


def local_copy(url: str, name: str, *, unlabelled: bool = False) -> Path:
    """A folder of prepared sets on this machine with the newest version of a set at `url`.

    It is copied at the first use, and only what is missing at later ones: records are read in a
    random order, and array_record opens gs:// with a client and an account of its own, if at all.
    Sizes are compared; a set whose `dataset_info.json` differs is another one.

    Args:
      url: a folder of prepared sets.
      name: the data set.
      unlabelled: also copy the images without labels, if there are any.

    Raises:
      DataNotFound: the set is not there.
      DataError: the store cannot be read, or the package for it is missing.
    """
    url = url.rstrip("/")
    with _as_data_error():
        store = Store(url)
        sizes = store.files(name)
        infos = [path.removesuffix(_INFO) for path in sizes if path.endswith(_INFO)]
        versions = [path for path in infos if _VERSION.fullmatch(path)]
        if not versions:
            raise DataNotFound(f"{name} is not in {url}/{name}.")
        version = max(versions, key=lambda text: [int(part) for part in text.split(".")])
        info = store.read(f"{name}/{version}{_INFO}") or b""
        root = _cache() / f"{name}-{hashlib.sha256(url.encode() + info).hexdigest()[:16]}"
        # As long as the last is missing, there is no version: so that it is complete or none.
        wanted = sorted(
            (path.endswith(_INFO), f"{name}/{path}", size)
            for path, size in sizes.items()
            if path.startswith(f"{version}/")
            and (unlabelled or not path.startswith(f"{version}/{name}-unlabelled."))
        )
        missing = {path: size for _, path, size in wanted if _size(root / path) != size}
        if missing:
            # A warning, since those are shown: it may take a while, and it takes room on the disk.
            total = sum(missing.values()) / 2**20
            _log.warning("copying %s/%s (%.1f MiB) to %s", url, name, total, root)
        for path, size in missing.items():
            _copy(store, path, size, root)
    return root


def _copy(store: Store, path: str, size: int, root: Path) -> None:
    """Copies a file, whole or not at all."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    # Other runs may copy the same set at this moment.
    part = root / f"{os.getpid()}.part"
    try:
        if not store.get(path, part) or _size(part) != size:
            raise DataError(f"{store.url}/{path} was changed while it was copied: try again")
        os.replace(part, root / path)
    finally:
        part.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mirjax" / "data"


@contextlib.contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise DataError(str(error)) from None
