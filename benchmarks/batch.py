"""Times `interplay` on a batch beside the plain definition in JAX and in PyTorch, in one process.

    make benchmark        (installs PyTorch too), or   python benchmarks/batch.py [--json FILE]

The plain definition is what the paper prints: three n x n Gram matrices and their eigenvalues. All
three compute MIR + HDR of the same float32 arrays, alone and with the gradient in features and head.
The calls are interleaved, so that a busy machine slows them alike; what counts are the ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mirjax

SHAPES = ((64, 128, 10), (512, 128, 10), (512, 512, 100), (2048, 512, 100))


def ours(features, head, labels):
    """MIR + HDR by the library."""
    result = mirjax.interplay(features, head, labels)
    return result.mir + result.hdr


def plain_jax(features, head, labels):
    """MIR + HDR by the definition: three decompositions of side n."""

    def gram(z):
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return jnp.matmul(z, z.T, precision="highest")

    def entropy(kernel):
        values = jnp.linalg.eigvalsh(kernel / kernel.shape[0])
        positive = values > 0
        return -jnp.sum(
            jnp.where(positive, values * jnp.log(jnp.where(positive, values, 1.0)), 0.0)
        )

    k1, k2 = gram(features), gram(head[labels])
    h1, h2, joint = entropy(k1), entropy(k2), entropy(k1 * k2)
    return (h1 + h2 - joint) / jnp.minimum(h1, h2) + jnp.abs(h1 - h2) / jnp.maximum(h1, h2)


def plain_torch(features, head, labels):
    """The same in PyTorch."""
    import torch

    def gram(z):
        z = z / torch.linalg.norm(z, dim=1, keepdim=True)
        return z @ z.T

    def entropy(kernel):
        values = torch.linalg.eigvalsh(kernel / kernel.shape[0])
        return torch.special.entr(values.clamp(min=1e-12)).sum()

    k1, k2 = gram(features), gram(head[labels])
    h1, h2, joint = entropy(k1), entropy(k2), entropy(k1 * k2)
    return (h1 + h2 - joint) / torch.minimum(h1, h2) + (h1 - h2).abs() / torch.maximum(h1, h2)


def contestants(shape: tuple[int, int, int]) -> dict[str, dict[str, Callable[[], float]]]:
    """For value and gradient: the name of each and a call that returns MIR + HDR when it is done."""
    import torch

    n, d, classes = shape
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, d)).astype(np.float32)
    head = rng.normal(size=(classes, d)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    arrays = jnp.asarray(features), jnp.asarray(head), jnp.asarray(labels)
    tensors = torch.tensor(features), torch.tensor(head), torch.tensor(labels)

    def jax_value(function):
        compiled = jax.jit(function)
        return lambda: float(compiled(*arrays))

    def jax_gradient(function):
        compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        return lambda: float(jax.block_until_ready(compiled(*arrays))[0])

    def torch_value():
        with torch.no_grad():
            return float(plain_torch(*tensors))

    def torch_gradient():
        leaves = tuple(t.clone().requires_grad_() for t in tensors[:2])
        value = plain_torch(leaves[0], leaves[1], tensors[2])
        torch.autograd.grad(value, leaves)
        return float(value.detach())

    return {
        "value": {
            "mirjax": jax_value(ours),
            "plain JAX": jax_value(plain_jax),
            "plain PyTorch": torch_value,
        },
        "value and gradient": {
            "mirjax": jax_gradient(ours),
            "plain JAX": jax_gradient(plain_jax),
            "plain PyTorch": torch_gradient,
        },
    }


def measure(calls: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of interleaved calls, after a warm-up that compiles."""
    values = {name: call() for name, call in calls.items()}
    for name, value in values.items():
        if abs(value - values["mirjax"]) > 1e-3:
            raise SystemExit(f"{name} computes {value}, mirjax {values['mirjax']}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    while len(times["mirjax"]) < 5 or time.perf_counter() - started < seconds:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - before))
    return times


def main() -> None:
    """Command line."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each row, at least 5 rounds"
    )
    parser.add_argument("--json", type=Path, help="also write the times to this file")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {jax.default_backend()}, "
        f"JAX {jax.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    )
    print("milliseconds: median (min to max); ratio: median over the rounds of peer / mirjax\n")
    rows = []
    for shape in SHAPES:
        for what, calls in contestants(shape).items():
            times = measure(calls, options.seconds)
            print(f"n, d, C = {shape}, {what}, {len(times['mirjax'])} rounds")
            for name, taken in times.items():
                ratios = [t / own for t, own in zip(taken, times["mirjax"], strict=True)]
                print(
                    f"  {name:14s} {statistics.median(taken):9.2f} "
                    f"({min(taken):.2f} to {max(taken):.2f})   ratio {statistics.median(ratios):.2f}"
                )
            rows.append({"shape": shape, "what": what, "milliseconds": times})
    if options.json:
        options.json.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
