"""What accelerators have still to settle, done piece by piece in the minutes that there are.

    python -m benchmarks.agenda --minutes 25 [--folder agenda] [--dry-run] [--only NAME ...]
        [--images cifar10_jpg.tar.xz --labels labels.npz]

The pieces are benchmark groups and training runs, in the order of their worth. A piece is begun only
if its estimate fits into what is left of `--minutes`; one that takes longer than there is time is
ended, and what it has written stays. State, results and XLA's compilation cache lie in the folder,
which can be carried to another machine and back: the next call goes on where this one ended, and
compiles nothing twice. Needs JAX, Flax, Optax, Orbax, NumPy, SciPy, Matplotlib and Pillow, and
PyTorch for the pieces that compare with it.
"""

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pieces import Piece

LIMIT_MIB, FILE_MIB = 60, 15
"""What the folder, and a file in it, may have at most, so that they can be carried."""

_STATE = "agenda.json"
# A child that is asked to end has this long to save what it has.
_PATIENCE = 30


@dataclasses.dataclass
class Agenda:
    """The pieces, and how far each of them is."""

    folder: Path
    pieces: Sequence[Piece]
    module: str
    """The module that does a piece by its name, in a process of its own."""
    data: dict[str, Path]

    def state(self) -> dict[str, dict[str, Any]]:
        """What earlier calls have noted of each piece."""
        place = self.folder / _STATE
        return json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}

    def note(self, name: str, **values: Any) -> None:
        """Adds to what is noted of a piece; whole or not at all."""
        state = self.state()
        state[name] = {**state.get(name, {}), **values}
        part = self.folder / f"{_STATE}.part"
        part.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.folder / _STATE)

    def open(self) -> list[Piece]:
        """The pieces that are not done, in the order of their worth."""
        state = self.state()
        return [p for p in self.pieces if state.get(p.name, {}).get("state") != "done"]

    def minutes(self, piece: Piece) -> float:
        """The estimate of a piece; what it took at least, if it was begun before."""
        return max(piece.minutes, self.state().get(piece.name, {}).get("took", 0) / 60)

    def run(self, minutes: float) -> None:
        """Does what is open and fits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * minutes
        for piece in self.open():
            left = (end - time.monotonic()) / 60
            if self.minutes(piece) > left:
                print(
                    f"{piece.name}: needs {self.minutes(piece):g} of {left:.1f} minutes, left out"
                )
                continue
            if missing := [name for name in piece.needs if name not in self.data]:
                print(f"{piece.name}: needs --{' and --'.join(missing)}, left out")
                continue
            self._do(piece, end)
            slim(self.folder)

    def _do(self, piece: Piece, end: float) -> None:
        print(f"{piece.name}: {piece.what}", flush=True)
        began = time.monotonic()
        self.note(piece.name, state="begun", date=time.strftime("%Y-%m-%d %H:%M"))
        log = self.folder / "logs" / f"{piece.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", self.module, piece.name, str(self.folder)]
        arguments += [f"{name}={path}" for name, path in self.data.items()]
        with log.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(arguments, stdout=file, stderr=file)
            try:
                status = child.wait(timeout=max(end - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                status = _end(child)
            except BaseException:
                _end(child)
                raise
        took = time.monotonic() - began
        # A run that was ended in time has saved its state.
        state = {0: "done", 128 + signal.SIGTERM: "cut"}.get(status, "failed")
        self.note(piece.name, state=state, took=round(took), status=status)
        print(f"{piece.name}: {state} after {took / 60:.1f} minutes", flush=True)


def _end(child: subprocess.Popen) -> int:
    child.send_signal(signal.SIGTERM)
    try:
        status = child.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        status = child.wait()
    # Ended by the signal itself or, if it listens to it, after it has saved its state.
    return 128 + signal.SIGTERM if status in (-signal.SIGTERM, 128 + signal.SIGTERM) else status


def slim(folder: Path, *, limit_mib: float = LIMIT_MIB, file_mib: float = FILE_MIB) -> list[str]:
    """Removes what cannot be carried: checkpoints and compiled programs, the largest first.

    Results stay whatever their size. Returns what was removed.
    """
    removed = []

    def size(path: Path) -> int:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size

    def remove(path: Path) -> None:
        removed.append(str(path.relative_to(folder)))
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    for checkpoints in sorted(folder.rglob("checkpoints")):
        files = [file for file in checkpoints.rglob("*") if file.is_file()]
        if any(size(file) > file_mib * 2**20 for file in files):
            remove(checkpoints)
    cache = folder / "cache"
    programs = sorted((f for f in cache.rglob("*") if f.is_file()), key=size, reverse=True)
    for program in programs:
        if size(program) > file_mib * 2**20 or size(folder) > limit_mib * 2**20:
            remove(program)
    # What is left beyond the limit are checkpoints.
    for checkpoints in sorted(folder.rglob("checkpoints"), key=size, reverse=True):
        if size(folder) > limit_mib * 2**20:
            remove(checkpoints)
    return removed


def main(arguments: Sequence[str] | None = None, module: str = "benchmarks.pieces") -> None:
    """Command line; the pieces are those of a module."""
    pieces: Sequence[Piece] = importlib.import_module(module).PIECES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25, help="how long to work")
    parser.add_argument("--folder", type=Path, default=Path("runs/agenda"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the pieces")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--images", type=Path, help="the archive of CIFAR-10 as images")
    parser.add_argument("--labels", type=Path, help="their labels in the published order")
    options = parser.parse_args(arguments)
    known = [piece.name for piece in pieces]
    if unknown := set(options.only or ()) - set(known):
        parser.error(
            f"there is no piece {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    chosen = [piece for piece in pieces if piece.name in (options.only or known)]
    data = {k: getattr(options, k) for k in ("images", "labels") if getattr(options, k)}
    agenda = Agenda(options.folder, chosen, module, data)
    if not options.dry_run:
        agenda.run(options.minutes)
    state = agenda.state()
    for piece in chosen:
        about = state.get(piece.name, {"state": "open"})
        took = f", took {about['took'] / 60:.1f}" if "took" in about else ""
        print(
            f"{about['state']:7} {agenda.minutes(piece):4.0f} min{took}  {piece.name}: {piece.what}"
        )


if __name__ == "__main__":
    main()
