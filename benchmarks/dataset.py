"""Times the interplay of whole data sets: time, peak memory, value, bracket and standard error.

    python benchmarks/dataset.py [--json FILE] [--rows N,D,C ...]

Each row runs in a process of its own, whose peak memory is that of the row (Python, JAX and the data
included). Features are drawn around class means with a decaying spectrum. The first call compiles;
the time is that of the calls after it. The largest row is generated in chunks that go into
`ClassMoments`, since nothing has to hold all of it; its generation is not counted. On a GPU also run
--rows 1281167,2048,1000; the peak is that of the host's memory there.
"""

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROWS = ("4000,512,100", "50000,128,10", "50000,512,100", "1281167,512,1000")
SCALING = tuple(f"{n},128,100" for n in (10_000, 30_000, 100_000, 300_000, 1_000_000))
CHUNK = 2**18


def draw(seed: int, n: int, d: int, classes: int):
    """Features `[n, d]`, head and labels as NumPy arrays; the head does not depend on the seed."""
    import numpy as np

    rng = np.random.default_rng((1, seed))
    head = np.random.default_rng(0).standard_normal((classes, d), dtype=np.float32)
    labels = rng.integers(0, classes, n, dtype=np.int32)
    features = rng.standard_normal((n, d), dtype=np.float32)
    features *= 4 * np.arange(1, d + 1, dtype=np.float32) ** -0.5
    features += 0.5 * head[labels]
    return features, head, labels


def measure(n: int, d: int, classes: int, repeats: int) -> dict:
    """One row, in this process."""
    import jax
    import jax.numpy as jnp

    import mirjax

    row: dict[str, Any] = {"n": n, "d": d, "C": classes, "backend": jax.default_backend()}
    if n * d > 2**28:
        times, result = in_chunks(n, d, classes)
    else:
        arrays = features, head, labels = [jnp.asarray(x) for x in draw(0, n, d, classes)]
        if n <= 4000:
            row["dense"] = dense(*arrays)
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            result = mirjax.dataset_interplay(features, head, labels, method="lanczos")
            jax.block_until_ready(result.mir)
            times.append(time.perf_counter() - started)
        times = times[1:]
    row |= {"seconds": times, "method": result.method, "products": result.products}
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name in ("joint_entropy", "mir", "hdr"):
        for part, holder in (("", result), ("_lower", result.lower), ("_upper", result.upper)):
            row[name + part] = float(getattr(holder, name))
    row["relative_error"] = float(result.standard_error.joint_entropy / result.joint_entropy)
    return row


def in_chunks(n: int, d: int, classes: int):
    """The row of a million: moments of chunks, then the estimate. Once, compilation left out."""
    import jax
    import numpy as np

    import mirjax

    update: Any = jax.jit(mirjax.ClassMoments.update, donate_argnums=0)
    moments = mirjax.ClassMoments.zeros(classes, d)
    taken, head = 0.0, draw(0, 1, d, classes)[1]
    for seed, start in enumerate(range(0, n, CHUNK)):
        features, _, labels = draw(seed, min(CHUNK, n - start), d, classes)
        weights = (labels >= 0).astype("float32")
        if len(features) < CHUNK:
            # Filled up, so that the last chunk needs no compilation of its own.
            missing = CHUNK - len(features)
            features = np.pad(features, ((0, missing), (0, 0)))
            labels, weights = np.pad(labels, (0, missing)), np.pad(weights, (0, missing))
        if start == 0:
            update = update.lower(moments, features, labels, weights).compile()
        started = time.perf_counter()
        moments = jax.block_until_ready(update(moments, features, labels, weights))
        taken += time.perf_counter() - started
        del features
    result = moments.interplay(head, method="lanczos")
    jax.block_until_ready(result.mir)
    started = time.perf_counter()
    result = moments.interplay(head, method="lanczos")
    jax.block_until_ready(result.mir)
    return [taken + time.perf_counter() - started], result


def dense(features, head, labels) -> dict:
    """The definition: three n × n matrices and their eigenvalues, in float32 and (as value) float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    @jax.jit
    def entropies(z, w, y):
        def gram(rows):
            rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
            return jnp.matmul(rows, rows.T, precision="highest")

        k1, k2 = gram(z), gram(w[y])
        values = [jnp.linalg.eigvalsh(k / len(z)) for k in (k1, k2, k1 * k2)]
        return [-jnp.sum(v * jnp.log(jnp.where(v > 0, v, 1.0)) * (v > 0)) for v in values]

    jax.block_until_ready(entropies(features, head, labels))
    started = time.perf_counter()
    jax.block_until_ready(entropies(features, head, labels))
    seconds = time.perf_counter() - started
    z, w = (np.asarray(x, np.float64) for x in (features, head))
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, w))
    y = np.asarray(labels)
    values = np.linalg.eigvalsh((z @ z.T) * (w[y] @ w[y].T) / len(z))
    values = values[values > 1e-15]
    return {"seconds": seconds, "joint_entropy": float(-np.sum(values * np.log(values)))}


def exponent(rows: list[dict]) -> float:
    """Slope of log time over log n, by least squares."""
    x = [math.log(row["n"]) for row in rows]
    y = [math.log(statistics.median(row["seconds"])) for row in rows]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def show(row: dict) -> None:
    """One line, and a second one for the dense definition."""
    seconds = row["seconds"]
    size = f"({row['n']:,}, {row['d']}, {row['C']})"
    print(
        f"{size:24s} {statistics.median(seconds):7.2f} ({min(seconds):.2f} to {max(seconds):.2f})  "
        f"{row['peak_gib']:5.2f}  {row['joint_entropy']:.4f} "
        f"[{row['joint_entropy_lower']:.4f}, {row['joint_entropy_upper']:.4f}]  "
        f"{row['relative_error']:.1e}  {row['mir']:.4f} [{row['mir_lower']:.4f}, {row['mir_upper']:.4f}]",
        flush=True,
    )
    if "dense" in row:
        print(
            f"{'  dense definition':24s} {row['dense']['seconds']:7.2f}{'':26s}"
            f"{row['dense']['joint_entropy']:.4f} (float64)",
            flush=True,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=ROWS, help="n,d,C of each row")
    parser.add_argument("--scaling", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repeats", type=int, default=5, help="calls after the one that compiles")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n, d, classes = map(int, options.one.split(","))
        print(json.dumps(measure(n, d, classes, options.repeats)))
        return

    def run(row: str) -> dict:
        command = [sys.executable, __file__, "--one", row, "--repeats", str(options.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{row} failed:\n{done.stderr[-2000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        show(measured)
        return measured

    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(
        "(n, d, C), seconds: median (min to max), peak GiB, joint entropy [bracket], standard error "
        "(relative), MIR [bracket]\n"
    )
    rows = [run(row) for row in options.rows]
    scaling = [run(row) for row in SCALING] if options.scaling else []
    if scaling:
        print(f"\nfitted exponent of time over n, 10,000 to 1,000,000: {exponent(scaling):.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": rows, "scaling": scaling}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
