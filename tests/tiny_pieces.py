"""Pieces for tests of the agenda: one that trains on digits, and some that only write."""

import sys
import time

from benchmarks.pieces import Piece, do


def _train(folder, _):
    from train.supervised import Supervised, fit, load_data

    settings = Supervised(
        steps=20_000, eval_every=10_000, steps_per_call=10, eval_train=False,
        out=folder / "runs" / "digits", resume=True,
    )  # fmt: skip
    # As many steps as a short piece of time lets through, and few enough for two of them.
    fit(settings, load_data(settings), quiet=True)


def _write(name, *, awaits=None):
    def run(folder, data):
        while awaits and not (folder / awaits).exists():
            time.sleep(0.05)
        (folder / f"{name}.txt").write_text(",".join(sorted(data)), encoding="utf-8")

    return run


def _fail(folder, _):
    raise ValueError("this piece cannot be done")


PIECES = (
    Piece("first", 0.01, "writes", _write("first")),
    Piece("fails", 0.01, "raises an error", _fail),
    Piece("long", 60, "has no room", _write("long")),
    Piece("reader", 0.01, "needs images", _write("reader"), ("images",)),
    Piece("train", 0.05, "trains on digits", _train),
    Piece("last", 0.01, "writes when it may", _write("last", awaits="go.txt")),
)

if __name__ == "__main__":
    do(PIECES, sys.argv[1:])
