"""The command `mirjax`: reports of features in files, and reports beside each other."""

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence

EPILOG = """
examples:
  mirjax report features.npy
  mirjax report features.npy --labels labels.npy --head fc.safetensors --head-key fc.weight
  mirjax report "shards/part-*.npy" --labels labels.npy --out reports/resnet
  mirjax report hidden.npy --layers --mask mask.npy
  mirjax compare reports/resnet reports/vit
"""
ROLES = ("features", "labels", "head", "bias", "mask", "features2")


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    top = argparse.ArgumentParser(
        prog="mirjax",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="report | compare")
    one = commands.add_parser("report", help="measure features in files, and write a page")
    one.add_argument(
        "features",
        nargs="+",
        metavar="FEATURES",
        help="a file (.npy, .npz, .safetensors, .parquet, .arrow, .pt), a pattern or a folder, "
        "with rows [n, d]; several are parts of one array, in order",
    )
    one.add_argument("--labels", metavar="L", help="integers or text [n]")
    one.add_argument("--head", metavar="W", help="[C, d] or [d, C], such as PyTorch's fc.weight")
    one.add_argument("--bias", metavar="B", help="[C], of the head")
    one.add_argument("--mask", metavar="M", help="[n] or [n, tokens], 1 for what counts")
    one.add_argument("--features2", metavar="F2", help="another representation of the same samples")
    one.add_argument(
        "--layers", action="store_true", help="the features are [layers, n, d], or a file a layer"
    )
    one.add_argument("--out", metavar="DIR", default="report", help="folder of the pages")
    one.add_argument(
        "--tolerance", type=float, metavar="T", help="of the joint entropy where it is estimated"
    )
    one.add_argument("--batch-size", type=int, metavar="N", help="rows that are read at once")
    one.add_argument("--seed", type=int, default=0, help="draws samples where there are too many")
    for role in ROLES:
        one.add_argument(f"--{role}-key", metavar="NAME", help=f"array of the file of {role}")
    several = commands.add_parser("compare", help="reports beside each other")
    several.add_argument("folders", nargs="+", metavar="DIR", help="folders with a report.json")
    return top


class Bar:
    """How far a long task is, on one line of a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown, self._terminal = 0.0, sys.stderr.isatty()

    def __call__(self, what: str, share: float) -> None:
        """Shows a share from 0 to 1."""
        now = time.monotonic()
        if self._terminal and (now - self._shown > 0.2 or share >= 1.0):
            self._shown = now
            filled = "━" * round(30 * share)
            print(f"\r\033[K{what:22} {filled:30} {share:4.0%}", end="", file=sys.stderr)

    def clear(self) -> None:
        """Removes the line."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status."""
    # A terminal without Greek letters shows something in their place.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    # Imported late: the help needs no JAX.
    from pathlib import Path

    from mirjax.report import InputError, compare, new_place, report

    bar = Bar()
    try:
        if options.command == "compare":
            print(compare(options.folders).text(), flush=True)
            return 0
        if options.batch_size is not None and options.batch_size < 1:
            raise InputError(f"batch-size: {options.batch_size} was given; expected 1 or more.")
        # Asked first: nothing is measured that cannot be written.
        new_place(Path(options.out))
        features = options.features[0] if len(options.features) == 1 else options.features
        keys = {role: getattr(options, f"{role}_key") for role in ROLES}
        found = report(
            features,
            labels=options.labels,
            head=options.head,
            bias=options.bias,
            mask=options.mask,
            features2=options.features2,
            layers=options.layers,
            tolerance=options.tolerance,
            batch_size=options.batch_size,
            seed=options.seed,
            keys={role: key for role, key in keys.items() if key is not None},
            progress=bar,
        )
        bar.clear()
        # Written first, whatever becomes of the terminal.
        files = found.write(options.out)
        for table in found.tables():
            print(table.without("definition").text())
        for text in (*found.warnings, *found.notes):
            print(f"note: {text}")
        print("\n".join(map(str, files)), flush=True)
    except InputError as error:
        bar.clear()
        print(f"mirjax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `| head` has what it wants; nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        bar.clear()
        print("mirjax: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
