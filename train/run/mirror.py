"""A copy of a run's folder in a store such as gs://, from which another machine can continue it.

How a copy stays usable, whenever the process is killed: one small object, `mirror.json`, lists the
files that the copy consists of, with their digests, and no file on that list is overwritten or
removed before the next list has been written. New files go to their place at once, since no list
names them. A new version of a listed file (metrics, events) is put aside, in `.incoming/`; it moves
to its place after the list that names its digest. What was listed is thus found in one of the two
places at every moment, and one that is half written is on no list.
"""

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from train.run.errors import RunError, message_of
from train.run.manifest import INCOMING, NAME, Manifest, Stored, parsed, waiting
from train.run.snapshot import Signature, Snapshot, checkpoint_folder, discard_all, sha256, take
from train.run.snapshot import steps as steps_in
from train.run.store import Store, StoreError


class Mirror:
    """The copy of one run's folder, with the runs in folders below it.

    ```python
    mirror = Mirror(url, folder)
    if resume:
        mirror.bring_back()
    mirror.claim(resume=resume)
    ...  # after each checkpoint:
    mirror.copy()
    ...
    problem = mirror.close()
    ```

    Args:
        url: where the copy lies: gs://BUCKET/PATH, s3://..., file:///...
        folder: the folder of the run, which need not exist yet.
        background: whether `copy` leaves the store to a thread; otherwise it waits.
        limit: seconds for which `close` waits.
        sleep: waits between two tries of an operation on the store.

    Raises:
        StoreError: the URL cannot be used, or the package that it needs is missing.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        background: bool = True,
        limit: float = 600,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.store, self.folder = Store(url, sleep=sleep), Path(folder).absolute()
        self._background, self._limit = background, limit
        self._id, self._claimed = uuid.uuid4().hex, False
        self._stored: dict[str, tuple[Signature, str]] = {}
        self._problem: str | None = None
        self._taken = 0
        # Of what the thread shares, all is read and written under this lock.
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next: Snapshot | None = None
        self._busy = False

    def bring_back(self) -> bool:
        """Copies the run in the store to the folder, if that is missing or empty.

        A folder that holds something is left alone. A crash leaves `NAME.mirror.part` beside it.

        Returns:
            Whether a run was brought back.

        Raises:
            RunError: the copy is damaged.
            StoreError: the store cannot be read.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            return False
        manifest = self._manifest()
        if manifest is None or not manifest.files:
            return False
        # Of a link to an empty folder, that folder is replaced and not the link.
        folder = self.folder.resolve()
        part = folder.with_name(f"{folder.name}.mirror.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            for path, file in manifest.files.items():
                self._get(path, file, part / path)
            if folder.exists():
                folder.rmdir()
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def claim(self, *, resume: bool) -> None:
        """Makes the mirror that of the run in the folder; from then on no other process writes it.

        To be called before a run starts, and after `bring_back` if it is resumed.

        Raises:
            RunError: the mirror holds another run or a later state of this one, a run although
                `resume` is not set, or something else.
            StoreError: the store cannot be read or written.
        """
        manifest = self._manifest()
        if manifest is None and set(self.store.names()) - {f"{NAME}.part"}:
            raise RunError(
                f"{self.store.url} holds something else than the copy of a run. It was left as it "
                "is; name another place with --mirror."
            )
        if manifest is not None and manifest.files:
            self._check_continued(manifest, resume=resume)
        discard_all(self.folder)
        # Written now, so that a store without room or permission is noticed before the training.
        self._write(Manifest(self._id, {} if manifest is None else manifest.files))
        self._claimed = True

    def copy(self) -> None:
        """Copies what has changed since the last copy.

        It returns at once: what the folder holds now is held by links and copies on the same disk,
        and a thread brings it to the store. If that is still busy when the next copy is due, it
        goes on with the latest. A failure is remembered; the next copy includes what is missing.
        """
        self._taken += 1
        with self._change:
            known = dict(self._stored)
        try:
            snapshot = take(self.folder, known, self._taken)
        except OSError as error:
            self._failed(message_of(error))
            return
        if not self._background:
            self._bring(snapshot)
            return
        with self._change:
            dropped, self._next = self._next, snapshot
            if self._thread is None:
                # The end of the program does not wait for it: a cut-off copy does no harm.
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()
            self._change.notify_all()
        if dropped is not None:
            dropped.discard()

    def close(self, *, limit: float | None = None) -> str | None:
        """Waits for the last copy, and tries once more if it failed.

        Args:
            limit: seconds to wait at most; if None, those of the mirror.

        Returns:
            A sentence for the user if the copy lacks something that the folder has.
        """
        if not self._claimed:
            return None
        limit = self._limit if limit is None else limit
        until = time.monotonic() + limit
        self.copy()
        finished = self._wait(until)
        with self._change:
            problem = self._problem
        if finished:
            discard_all(self.folder)
        else:
            problem = f"it was not finished within {limit:g} seconds"
        if problem is None:
            return None
        return (
            f"The copy in {self.store.url} is behind {self.folder}: {problem.rstrip('.')}. Give "
            "the same command with --resume to copy the rest."
        )

    def _work(self) -> None:
        while True:
            with self._change:
                while self._next is None:
                    self._change.wait()
                snapshot, self._next, self._busy = self._next, None, True
            try:
                self._bring(snapshot)
            finally:
                with self._change:
                    self._busy = False
                    self._change.notify_all()

    def _wait(self, until: float) -> bool:
        with self._change:
            return self._change.wait_for(
                lambda: self._next is None and not self._busy, until - time.monotonic()
            )

    def _bring(self, snapshot: Snapshot) -> None:
        """Brings the store up to date, and notes a failure or what is there now."""
        try:
            problem = self._bring_or_raise(snapshot)
        # Whatever it is, training goes on.
        except Exception as error:
            self._failed(message_of(error))
        else:
            with self._change:
                self._problem = problem
        finally:
            snapshot.discard()

    def _failed(self, problem: str) -> None:
        with self._change:
            self._problem = problem
            # The store may have lost files: the next copy compares all of them with its list.
            self._stored = {}

    def _bring_or_raise(self, snapshot: Snapshot) -> str | None:
        old = self._manifest()
        if old is None or old.writer != self._id:
            raise StoreError(
                f"{self.store.url}/{NAME} was removed, or another process continues this run there"
            )
        files, contents, problem = _described(snapshot)
        # A folder of checkpoints without a complete one: that in the store is still the last.
        complete = {checkpoint_folder(path) for path in files}
        for path, file in old.files.items():
            folder = checkpoint_folder(path)
            if folder is not None and folder not in complete:
                files[path] = file
        new = Manifest(self._id, files)
        for path, file in files.items():
            if old.files.get(path) != file:
                self._put(path, file, contents, taken=path in old.files)
        if new != old:
            self._write(new)
        self._tidy(old, new)
        with self._change:
            self._stored = {
                path: (held.signature, files[path].sha256)
                for path, held in snapshot.files.items()
                if path in files
            }
        return problem

    def _put(self, path: str, file: Stored, contents: dict[str, Path], *, taken: bool) -> None:
        if path not in contents:
            raise StoreError(f"{self.store.url}/{path} is no longer in {NAME}")
        self.store.put(contents[path], waiting(path, file) if taken else path)

    def _tidy(self, old: Manifest, new: Manifest) -> None:
        """Moves what waits to its place, and removes what is on the list no more."""
        incoming = self.store.files(INCOMING)
        places = {waiting(path, file): path for path, file in new.files.items()}
        for name in incoming:
            # Also those of a copy that was killed after it had written its list.
            if (place := places.get(f"{INCOMING}/{name}")) is not None:
                self.store.move(f"{INCOMING}/{name}", place)
        if incoming:
            self.store.remove_folder(INCOMING)
        # Also checkpoints of a copy that was killed before it had written its list.
        stale = []
        for folder, steps in new.steps().items():
            kept = {str(step) for step in steps}
            stale += [f"{folder}/{n}" for n in self.store.names(folder) if n not in kept]
        for folder in stale:
            self.store.remove_folder(folder)
        for path in old.files.keys() - new.files.keys():
            if not path.startswith(tuple(f"{folder}/" for folder in stale)):
                self.store.remove(path)

    def _check_continued(self, manifest: Manifest, *, resume: bool) -> None:
        url = self.store.url
        if not resume:
            raise RunError(
                f"{url} holds a run already. Continue it with --resume, or name another place with "
                "--mirror."
            )
        own = self.folder / "settings.json"
        if not own.is_file() or manifest.files.get("settings.json") != _described_file(own):
            raise RunError(
                f"{url} holds another run than {self.folder}. Name another place with --mirror, or "
                "another folder with --out to continue the run that is there."
            )
        for folder, steps in manifest.steps().items():
            here = steps_in(self.folder / folder)
            if not here or max(here) < max(steps):
                raise RunError(
                    f"{url}/{folder} has a later checkpoint (step {max(steps):,}) than "
                    f"{self.folder}, which was continued elsewhere. Move that folder away to "
                    "continue from the mirror, or name another place with --mirror."
                )

    def _manifest(self) -> Manifest | None:
        content = self.store.read(NAME)
        return None if content is None else parsed(content, f"{self.store.url}/{NAME}")

    def _write(self, manifest: Manifest) -> None:
        self.store.write(manifest.as_bytes(), NAME)

    def _get(self, path: str, file: Stored, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in (path, waiting(path, file)):
            if self.store.get(name, target) and _described_file(target) == file:
                return
        raise RunError(
            f"{self.store.url}/{path} is missing or not what was copied there, so that the run "
            "cannot be continued from it. Restore that object (an older version, if the store "
            "keeps them), or begin again with another --out and --mirror."
        )


def _described(snapshot: Snapshot) -> tuple[dict[str, Stored], dict[str, Path], str | None]:
    """The files of a snapshot, where their contents are held, and what is wrong with them."""
    files, contents, damaged = {}, {}, {}
    for path, held in snapshot.files.items():
        if held.content is None:
            files[path] = Stored(held.signature[0], str(held.digest))
            continue
        files[path], contents[path] = _described_file(held.content), held.content
        if held.digest not in (None, files[path].sha256):
            damaged[checkpoint_folder(path)] = f"{path} is not what was written, so was not copied"
    kept = {path: file for path, file in files.items() if checkpoint_folder(path) not in damaged}
    return kept, contents, next(iter(damaged.values()), None)


def _described_file(path: Path) -> Stored:
    return Stored(path.stat().st_size, sha256(path))
