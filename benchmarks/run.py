"""All comparisons in one command: JSON and a Markdown table.

    python -m benchmarks.run [GROUP ...] [--seconds S] [--json FILE]

Groups, all of them if none is named:

    errors          of the two methods for an entropy, against float64, from initialisation to collapse
    methods         decomposition and products over the side of the matrix: where one overtakes the other
    batch           MIR + HDR of a batch, value and gradient, n = 64 to 4096, beside every peer
    one             one entropy by the small side
    half            bfloat16 input
    layers          1, 10 and 50 layers at once
    classes         10 to 50,257 classes, time and peak memory; runs without PyTorch too
    orders          the MI and ED terms of order 1, of order 2, and debiased
    supervised      a training step without and with the MI and ED terms
    input           images held on the device and streamed from disk: whether the input keeps up
    semisupervised  a FreeMatch step without and with the terms
    loader          FreeMatch steps beside those of PyTorch, whose images come from Pillow in workers
    profile         how busy these steps keep the device, and with what
    dataset         whole data sets (benchmarks/dataset.py)

Every row times ours and its peers in turn in one process, after a first call that compiles and is told
apart. On the machine of others only the ratios within a round mean something. On an accelerator the steps
are those of WideResNet-28-2 with 64 and 64 + 448 images, ten in a call (training takes up to 100); on a CPU FreeMatch has 8 + 56,
one in a call.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GROUPS = (
    "errors",
    "methods",
    "batch",
    "one",
    "half",
    "layers",
    "classes",
    "orders",
    "supervised",
    "input",
    "semisupervised",
    "loader",
    "profile",
    "dataset",
)


def whole_sets() -> list[dict[str, Any]]:
    """The rows of `benchmarks/dataset.py`, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        script = Path(__file__).with_name("dataset.py")
        subprocess.run([sys.executable, str(script), "--json", str(rows)], check=True)
        return json.loads(rows.read_text(encoding="utf-8"))


def main() -> None:
    """Command line."""
    # Not above: the workers of PyTorch's loader import this module again, and need none of it.
    import jax

    from benchmarks import classes, entropies, errors, orders, profiling, training
    from benchmarks.timing import HEADER, machine, save
    from train.run.command import enable_cache

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each row, at least 3 rounds"
    )
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument(
        "--sides", type=int, nargs="+", help="of `errors` and `methods`, n of `batch`"
    )
    parser.add_argument(
        "--model", default="wrn-28-2", help="of the training steps; `loader` needs wrn-DEPTH-WIDTH"
    )
    small = jax.default_backend() == "cpu"
    parser.add_argument(
        "--labelled",
        type=int,
        default=8 if small else 64,
        help="labelled images of a FreeMatch step",
    )
    parser.add_argument("--ratio", type=int, default=7, help="unlabelled images for each of them")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="of PyTorch's loader; one a core, if not given"
    )
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--images", default="cifar10", help="data set of `input` and `profile`, or folder:PATH"
    )
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(
            f"there is no group {', '.join(sorted(unknown))}; choose from {', '.join(GROUPS)}"
        )
    enable_cache()
    about, rows, tables = machine(), [], {}
    rows_of = entropies.ROWS | classes.ROWS | orders.ROWS | training.ROWS
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for group in options.groups or GROUPS:
        print(f"\n## {group}\n", flush=True)
        if group == "errors":
            tables["errors"] = errors.table(options.sides or errors.SIDES)
            errors.show(tables["errors"])
        elif group == "profile":
            profiles = training.profiles(options)
            tables["profile"] = {name: one._asdict() for name, one in profiles.items()}
            profiling.show(profiles)
        elif group == "dataset":
            tables["dataset"] = whole_sets()
        else:
            print(HEADER, flush=True)
            for row in rows_of[group](options):
                rows.append(row)
                print("\n".join(row.lines()), flush=True)
                if options.json:
                    save(options.json, about, rows, tables)
        if options.json:
            save(options.json, about, rows, tables)
    if any(row.differing for row in rows):
        raise SystemExit("some calls do not compute the same, see above")


if __name__ == "__main__":
    main()
