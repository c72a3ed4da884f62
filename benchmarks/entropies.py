"""Rows about one batch: value, gradient, layers, half precision; and the two methods beside each other."""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mirjax
from benchmarks import peers
from benchmarks.timing import OURS, Row, measure, on_cpu, torch_device
from mirjax._linalg.spectrum import EntropyMethod

SHAPES = (
    (64, 128, 10),
    (256, 128, 10),
    (512, 128, 10),
    (512, 512, 100),
    (1024, 512, 100),
    (2048, 512, 100),
    (4096, 512, 100),
)
SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048)
PRODUCTS, EIGH = "mirjax, products", "mirjax, eigh"


def drawn(n: int, d: int, classes: int, layers: int = 1) -> tuple[np.ndarray, ...]:
    """Features `[layers, n, d]` or `[n, d]`, head and labels."""
    rng = np.random.default_rng(0)
    shape = (n, d) if layers == 1 else (layers, n, d)
    features = rng.normal(size=shape).astype(np.float32)
    head = rng.normal(size=(classes, d)).astype(np.float32)
    return features, head, rng.integers(0, classes, n)


def mir_plus_hdr(features, head, labels, method: EntropyMethod = "auto"):
    """By the library."""
    result = mirjax.interplay(features, head, labels, method=method)
    return result.mir + result.hdr


def in_jax(function: Callable, arrays: tuple[Any, ...], gradient: bool) -> Callable[[], float]:
    """A compiled call that waits for its value, and gradient in features and head."""
    if not gradient:
        value = jax.jit(function)
        return lambda: float(value(*arrays))
    both = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
    return lambda: float(jax.block_until_ready(both(*arrays))[0])


def in_torch(function: Callable, tensors: tuple[Any, ...], gradient: bool) -> Callable[[], float]:
    """The same in PyTorch; reading the value waits for it."""
    import torch

    def value() -> float:
        with torch.no_grad():
            return float(function(*tensors))

    def both() -> float:
        leaves = tuple(t.detach().clone().requires_grad_() for t in tensors[:2])
        value = function(*leaves, *tensors[2:])
        pulled = torch.autograd.grad(value, leaves)
        return float(value.detach()) + 0.0 * sum(float(p[0, 0]) for p in pulled)

    return both if gradient else value


def batch(options: argparse.Namespace) -> Iterator[Row]:
    """MIR + HDR of a batch, alone and with its gradient, beside every peer."""
    import torch

    for shape in SHAPES:
        if options.sides and shape[0] not in options.sides:
            continue
        # Minutes a call, for the peers, on a CPU.
        if on_cpu() and shape[0] > 2048:
            print(f"left out on a CPU: (n, d, C) = {shape}")
            continue
        rounds = 7 if shape[0] <= 512 else 3
        arrays = tuple(map(jnp.asarray, drawn(*shape)))
        tensors = tuple(torch.tensor(a, device=torch_device()) for a in drawn(*shape))
        for gradient in (False, True):
            what = "value and gradient" if gradient else "value"
            name = f"(n, d, C) = {shape}, {what}"
            calls = {OURS: in_jax(mir_plus_hdr, arrays, gradient)}
            # The other method, where it is not hopeless: see the group `methods`.
            if shape[0] <= (512 if on_cpu() else 1024):
                other = functools.partial(mir_plus_hdr, method="products" if on_cpu() else "eigh")
                calls[PRODUCTS if on_cpu() else EIGH] = in_jax(other, arrays, gradient)
            calls["plain JAX"] = in_jax(peers.plain_jax, arrays, gradient)
            calls["plain PyTorch"] = in_torch(peers.plain_torch, tensors, gradient)
            if shape[0] <= 512:
                compiled = torch.compile(peers.plain_torch, dynamic=False)
                calls["compiled PyTorch"] = in_torch(compiled, tensors, gradient)
            yield measure("batch", name, calls, seconds=options.seconds, rounds=rounds)
        # Another quantity (order 1.01, float64): close, not equal.
        calls = {
            OURS: in_jax(mir_plus_hdr, arrays, True),
            "Renyi 1.01, PyTorch": in_torch(peers.renyi_torch, tensors, True),
        }
        name = f"(n, d, C) = {shape}, value and gradient, order 1.01"
        if shape[0] <= 512:
            yield measure("batch", name, calls, seconds=options.seconds, rounds=3, tolerance=0.1)


def one_entropy(options: argparse.Namespace) -> Iterator[Row]:
    """Entropy of features by the small side."""
    import torch

    for n, d in ((512, 128), (50_000, 512)):
        features = drawn(n, d, 10)[0]
        array, tensor = jnp.asarray(features), torch.tensor(features, device=torch_device())
        value = jax.jit(functools.partial(mirjax.feature_entropy, method="auto"))
        calls = {
            OURS: lambda v=value, a=array: float(v(a)),
            "dual, PyTorch": lambda t=tensor: float(peers.dual_torch(t)),
        }
        yield measure("one", f"(n, d) = {(n, d)}, H(G(Z))", calls, seconds=options.seconds)


def half(options: argparse.Namespace) -> Iterator[Row]:
    """bfloat16 features and head, cast up by all."""
    import torch

    for shape in ((512, 128, 10), (512, 512, 100)):
        features, head, labels = drawn(*shape)
        arrays = (*(jnp.asarray(x, jnp.bfloat16) for x in (features, head)), jnp.asarray(labels))
        device = torch_device()
        tensors = (
            torch.tensor(features, device=device).bfloat16(),
            torch.tensor(head, device=device).bfloat16(),
            torch.tensor(labels, device=device),
        )
        calls = {
            OURS: in_jax(mir_plus_hdr, arrays, True),
            "plain JAX": in_jax(peers.plain_jax, arrays, True),
            "plain PyTorch": in_torch(peers.plain_torch, tensors, True),
        }
        name = f"(n, d, C) = {shape}, bfloat16, value and gradient"
        yield measure("half", name, calls, seconds=options.seconds)


def layers(options: argparse.Namespace) -> Iterator[Row]:
    """MIR + HDR of every layer against the head rows, in one call."""
    import torch

    for count in (1, 10, 50):
        features, head, labels = drawn(256, 64, 10, layers=count)
        features = features.reshape(count, 256, 64)
        device = torch_device()
        stacked = torch.tensor(features, device=device)
        shared = torch.tensor(head, device=device), torch.tensor(labels, device=device)

        @jax.jit
        def ours(stacked, head, labels, count=count):
            values = mirjax.layerwise(mir_plus_hdr)(
                [stacked[i] for i in range(count)], head, labels
            )
            return sum(values)

        @jax.jit
        def plain(stacked, head, labels):
            return jnp.sum(jax.vmap(peers.plain_jax, (0, None, None))(stacked, head, labels))

        def torch_loop(stacked=stacked, shared=shared):
            with torch.no_grad():
                return float(sum(peers.plain_torch(layer, *shared) for layer in stacked))

        arrays = tuple(map(jnp.asarray, (features, head, labels)))
        calls = {
            OURS: lambda f=ours, a=arrays: float(f(*a)),
            "plain JAX, vmapped": lambda f=plain, a=arrays: float(f(*a)),
            "plain PyTorch, loop": torch_loop,
        }
        name = f"{count} layers of (n, d, C) = (256, 64, 10), value"
        yield measure("layers", name, calls, seconds=options.seconds, tolerance=1e-3 * count)


def methods(options: argparse.Namespace) -> Iterator[Row]:
    """One entropy and its gradient by decomposition and by products, over the side of the matrix."""
    for side in options.sides or (SIDES[:-1] if on_cpu() else SIDES):
        rows = np.random.default_rng(0).normal(size=(side, 2 * side)).astype(np.float32)
        kernel = mirjax.gram(jnp.asarray(rows))

        def call(method, kernel=kernel):
            entropy = functools.partial(mirjax.matrix_entropy, method=method)
            both = jax.jit(jax.value_and_grad(entropy))
            return lambda: float(jax.block_until_ready(both(kernel))[0])

        calls = {OURS: call("eigh"), PRODUCTS: call("products")}
        yield measure("methods", f"side {side}, value and gradient", calls, seconds=options.seconds)


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "methods": methods,
    "batch": batch,
    "one": one_entropy,
    "half": half,
    "layers": layers,
}
"""By group, of the options of the command line."""
