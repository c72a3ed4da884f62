"""A folder in a store that fsspec knows (gs://, s3://, file://), with patience for its failures."""

import contextlib
import posixpath
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from train.run.errors import UserError

T = TypeVar("T")

# Stores of objects show an object only when all of it is there, and know no moves.
_OBJECTS = ("gs", "gcs", "s3", "s3a", "abfs", "abfss", "az")

# Trying again gives the same answer.
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError)


class StoreError(UserError):
    """A store cannot be used, or an operation failed each time it was tried."""


def is_url(place: str) -> bool:
    """Whether this names a place in a store. `pathlib` would drop one of its slashes."""
    return "://" in place


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path of the URL in it.

    Raises:
        StoreError: fsspec does not know it, or the package for it is missing.
    """
    if not is_url(url):
        raise StoreError(
            f"{url} is no URL like gs://bucket/path. A folder of this machine is file:///path."
        )
    try:
        import fsspec
    except ModuleNotFoundError:
        raise StoreError(
            f'{url} needs the package fsspec, which is not installed: pip install -e ".[mirror]".'
        ) from None
    protocol = url.split("://", maxsplit=1)[0]
    # Listings that a store remembers miss what another machine has written.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True
    try:
        fs, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise StoreError(f"{url} cannot be used ({error}). {_how_to_install(protocol)}") from None
    # Each file system has its own errors for a URL or an account that it cannot use.
    except Exception as error:
        raise StoreError(f"{url} cannot be used ({_reason(error)}). Name another place.") from None
    return fs, path.rstrip("/")


class Store:
    """Operations on files below a URL, each of which is tried again for a while when it fails.

    Names are relative to the URL. All errors are `StoreError`.

    Args:
        url: the folder.
        tries: how often an operation is tried before its failure is reported.
        sleep: waits for some seconds between two tries.
    """

    def __init__(self, url: str, *, tries: int = 5, sleep: Callable[[float], None] = time.sleep):
        self.fs, self._root = filesystem(url)
        self._objects = url.startswith(tuple(f"{protocol}://" for protocol in _OBJECTS))
        self.url, self._tries, self._sleep = url.rstrip("/"), tries, sleep

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            return self._do("read", name, self.fs.cat_file, self._at(name))
        except _Missing:
            return None

    def get(self, name: str, path: Path) -> bool:
        """Copies a file of the store to `path`; False if there is none."""
        try:
            self._do("read", name, self.fs.get_file, self._at(name), str(path))
        except _Missing:
            return False
        return True

    def put(self, path: Path, name: str) -> None:
        """Copies a file to the store. On some stores, readers see half of it meanwhile."""
        self._do("written", name, self.fs.put_file, str(path), self._at(name))

    def write(self, content: bytes, name: str) -> None:
        """Writes a file whole or not at all."""
        part = name if self._objects else f"{name}.part"
        self._do("written", part, self.fs.pipe_file, self._at(part), content)
        if not self._objects:
            self.move(part, name)

    def move(self, name: str, to: str) -> None:
        """Moves a file, over another one if there is one."""
        if self._objects:
            self._do("copied", name, self.fs.cp_file, self._at(name), self._at(to))
            self.remove(name)
        else:
            self._do("moved", name, self.fs.mv, self._at(name), self._at(to))

    def remove(self, name: str) -> None:
        """Removes a file; there may be none."""
        self._forgiving(name, self.fs.rm_file, self._at(name))

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it; there may be none."""
        self._forgiving(name, lambda: self.fs.rm(self._at(name), recursive=True))

    def names(self, folder: str = "") -> list[str]:
        """The names of the files and folders in a folder."""
        at = self._at(folder)
        try:
            found = self._do("listed", folder, lambda: self.fs.ls(at, detail=False))
        except _Missing:
            return []
        # Some stores list a folder among what is in it.
        names = (posixpath.basename(path.rstrip("/")) for path in found if path.rstrip("/") != at)
        return sorted(names)

    def files(self, folder: str = "") -> dict[str, int]:
        """The sizes of the files in a folder and below, by their paths relative to it."""
        at = self._at(folder)
        try:
            found = self._do("listed", folder, lambda: self.fs.find(at, detail=True))
        except _Missing:
            return {}
        return {path.removeprefix(f"{at}/"): found[path]["size"] for path in sorted(found)}

    def _forgiving(self, name: str, operation: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(_Missing):
            self._do("removed", name, operation, *arguments)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _do(self, done: str, name: str, operation: Callable[..., T], *arguments: Any) -> T:
        """Calls the operation; waits about 1, 2, 4, 8 seconds between the tries."""
        for left in reversed(range(self._tries)):
            try:
                return operation(*arguments)
            except Exception as error:
                if isinstance(error, _FINAL) or not left:
                    kind = _Missing if isinstance(error, FileNotFoundError) else StoreError
                    place = f"{self.url}/{name}" if name else self.url
                    raise kind(f"{place} cannot be {done} ({_reason(error)})") from None
            # Not exactly: many runs that lost a store at once should not come back at once.
            self._sleep(random.uniform(0.5, 1.5) * 2 ** (self._tries - 1 - left))
        raise AssertionError("at least one try")


class _Missing(StoreError):
    """There is no such file or folder."""


def _how_to_install(protocol: str) -> str:
    from fsspec.registry import known_implementations

    package = known_implementations.get(protocol, {}).get("class", "").split(".")[0]
    if package == "gcsfs":
        return 'Install it: pip install -e ".[mirror]".'
    return f"Install it: pip install {package}." if package not in ("", "fsspec") else "Install it."


def _reason(error: BaseException) -> str:
    # Some stores give no more than the address of their own that they asked.
    if isinstance(error, FileNotFoundError):
        return "no such file, folder or bucket"
    return " ".join(str(error).split())[:300] or type(error).__name__
