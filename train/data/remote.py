"""Data in a store such as gs://: files are read through memory, prepared sets are copied once."""

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from train.data.types import DataError, DataNotFound
from train.run.store import Store, StoreError

_log = logging.getLogger(__name__)

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
    """The folder of prepared sets on this machine that has the set `name` of the one at `url`.

    Its newest version is copied at the first use: records are read in a random order, for which
    array_record needs files of this machine. A file that is there with its size is not copied
    again, unless `dataset_info.json` has changed.

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
        complete = [
            version
            for path in sizes
            if path.endswith("/dataset_info.json") and _VERSION.fullmatch(version := path[:-18])
        ]
        if not complete:
            raise DataNotFound(f"{name} is not in {url}/{name}.")
        version = max(complete, key=lambda text: [int(part) for part in text.split(".")])
        files = {
            file.removeprefix(f"{version}/"): size
            for file, size in sizes.items()
            if file.startswith(f"{version}/")
        }
        if not unlabelled:
            files = {k: v for k, v in files.items() if not k.startswith(f"{name}-unlabelled.")}
        root = (
            _cache() / f"{posixpath.basename(url)}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        )
        _copy(store, f"{name}/{version}", files, root / name / version)
    for other in (root / name).iterdir():
        if other.name != version:
            shutil.rmtree(other)
    return root


def _copy(store: Store, source: str, files: dict[str, int], target: Path) -> None:
    """Copies what is missing; `dataset_info.json`, without which a version is none, comes last."""
    last = "dataset_info.json"
    info = store.read(f"{source}/{last}")
    noted = target / last
    if target.exists() and not (noted.is_file() and noted.read_bytes() == info):
        # Of another preparation, or of a copy that was cut off, whose files may be those of one.
        shutil.rmtree(target)
    missing = [file for file, size in files.items() if _size(target / file) != size]
    if missing:
        total = sum(files[file] for file in missing) / 2**20
        # A warning, since that is what is shown: it may take a while, and fill the disk.
        _log.warning("copying %s/%s (%.1f MiB) to %s", store.url, source, total, target)
    for file in sorted(missing, key=lambda file: (file == last, file)):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        part = target / f"{file}.{os.getpid()}.part"
        try:
            if not store.get(f"{source}/{file}", part) or _size(part) != files[file]:
                raise DataError(
                    f"{store.url}/{source}/{file} changed while it was copied: try again"
                )
            os.replace(part, target / file)
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
