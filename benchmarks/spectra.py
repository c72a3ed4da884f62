"""Times all measures of spectra of a set seen in chunks, beside one SVD of all rows.

    python benchmarks/spectra.py [--json FILE] [--rows N,D,C ...]

Each row runs in a process of its own for each way, whose peak memory is that of the way: `chunks`
updates `ClassMoments` with chunks and takes `spectra` at the end, everything in one pass; `rows` is
`mirjax.spectra.measure` of all rows, `numpy` and `torch` gather all rows and take the singular values
that RankMe needs, which is one of the measures, of three decompositions for all of them. The data
are drawn chunk by chunk; drawing is not counted. Sizes that gathering does not fit are run in chunks
alone.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Run as a script, it finds its neighbour all the same.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dataset import draw

ROWS = ("262144,512,1000", "1281167,512,1000")
WAYS = ("chunks", "rows", "numpy", "torch")
CHUNK = 2**16
# Beyond so many bytes of features the ways that gather are left out.
GATHERED = 2**30


def chunks(n: int, d: int, classes: int):
    """Features and labels, a chunk at a time; the last one is filled up with weight 0."""
    import numpy as np

    for seed, start in enumerate(range(0, n, CHUNK)):
        features, _, labels = draw(seed, min(CHUNK, n - start), d, classes)
        weights = np.ones(len(labels), np.float32)
        missing = CHUNK - len(labels) if n > CHUNK else 0
        yield (
            np.pad(features, ((0, missing), (0, 0))),
            np.pad(labels, (0, missing)),
            np.pad(weights, (0, missing)),
        )


def in_chunks(n: int, d: int, classes: int) -> dict[str, Any]:
    """Moments of chunks, and all measures at the end. Compilation is left out."""
    import jax

    import mirjax

    update: Any = jax.jit(mirjax.ClassMoments.update, donate_argnums=0)
    spectra: Any = jax.jit(mirjax.ClassMoments.spectra)
    moments, taken = mirjax.ClassMoments.zeros(classes, d, second=False), 0.0
    for number, arrays in enumerate(chunks(n, d, classes)):
        if number == 0:
            update = update.lower(moments, *arrays).compile()
            spectra = spectra.lower(moments).compile()
        started = time.perf_counter()
        moments = jax.block_until_ready(update(moments, *arrays))
        taken += time.perf_counter() - started
    started = time.perf_counter()
    found = jax.block_until_ready(spectra(moments))
    last = time.perf_counter() - started
    return {"seconds": taken + last, "spectra_seconds": last, "values": values_of(found)}


def gathered(n: int, d: int, classes: int, way: str) -> dict[str, Any]:
    """All rows in one array."""
    import numpy as np

    features, labels = np.empty((n, d), np.float32), np.empty(n, np.int32)
    start = 0
    for rows, own, weights in chunks(n, d, classes):
        size = int(weights.sum())
        features[start : start + size], labels[start : start + size] = rows[:size], own[:size]
        start += size
    if way == "rows":
        import jax

        import mirjax

        measure = jax.jit(mirjax.spectra.measure, static_argnames="num_classes")
        program = measure.lower(features, labels, num_classes=classes).compile()
        started = time.perf_counter()
        found = jax.block_until_ready(program(features, labels))
        return {"seconds": time.perf_counter() - started, "values": values_of(found)}
    if way == "torch":
        import torch

        rows = torch.from_numpy(features)
        started = time.perf_counter()
        sigma = torch.linalg.svdvals(rows).numpy()
    else:
        started = time.perf_counter()
        sigma = np.linalg.svd(features, compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    rankme = float(np.exp(-np.sum(share * np.log(share))))
    return {"seconds": time.perf_counter() - started, "values": {"rankme": rankme}}


def values_of(found: Any) -> dict[str, float]:
    """The measures that are there, as floats."""
    named = found._replace(eigenvalues=None)._asdict()
    return {name: float(value) for name, value in named.items() if value is not None}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=ROWS, help="n,d,C of each row")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, row = options.one.split(":")
        n, d, classes = map(int, row.split(","))
        outcome = in_chunks(n, d, classes) if way == "chunks" else gathered(n, d, classes, way)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(outcome | {"peak_gib": peak}))
        return
    rows = []
    for row in options.rows:
        n, d, _ = map(int, row.split(","))
        fits = 4 * n * d <= GATHERED
        found: dict[str, list[dict[str, Any]]] = {}
        # In turn, so that what else the machine does falls on all of them.
        for _ in range(options.repeats):
            for way in WAYS if fits else WAYS[:1]:
                command = [sys.executable, __file__, "--one", f"{way}:{row}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{row}, {way} failed:\n{done.stderr[-2000:]}")
                found.setdefault(way, []).append(json.loads(done.stdout.splitlines()[-1]))
        for way, outcomes in found.items():
            seconds = [outcome["seconds"] for outcome in outcomes]
            ratios = [s / c["seconds"] for s, c in zip(seconds, found["chunks"], strict=True)]
            peak = max(outcome["peak_gib"] for outcome in outcomes)
            print(
                f"({row}) {way:7s} {statistics.median(seconds):7.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f}), of the time of chunks "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
                f"{peak:.2f} GiB, " + json.dumps(outcomes[0]["values"]),
                flush=True,
            )
            rows.append({"row": row, "way": way, "outcomes": outcomes})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
