"""Times a full-batch step of the transformer of `train.grokking` beside the same one in PyTorch.

    python benchmarks/grokking.py [--json FILE] [--seeds 1 8] [--steps 50] [--rounds 7] [--threads N]

The network and its training are those of Nanda et al. (arXiv 2301.05217), by default in their size.
One process, the rounds interleaved, so that a busy machine slows all alike; what counts are the
ratios. A step trains every seed once: for eight seeds it is eight updates. Ours computes the last
place alone, and the keys and values of a number once for all pairs. The peers, in PyTorch:

    plain      as published: all three places, cross-entropy in float64, AdamW; seeds in a loop
    vmapped    the same loss under `torch.func`, for all seeds at once
    compiled   that under `torch.compile`; left out, with a note, where it does not work

All start from our initial parameters, and have to give our losses before anything is timed. On a CPU
that others use, PyTorch with all cores can be slower than with --threads 1: try both.
"""

import argparse
import dataclasses
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from train.engine.optimizers import adamw_with_warmup
from train.engine.sharding import mesh_of
from train.engine.state import initial_state
from train.grokking import PRESETS, Grokking, lanes_of_kinds, make_trainer, task_of
from train.modular.network import ModularNetwork

OURS, PLAIN, VMAPPED, COMPILED = "ours", "plain PyTorch", "vmapped PyTorch", "compiled PyTorch"
TOLERANCE = 1e-6
"""Of the losses, relative: other betas, or no decay, make more than that in three steps."""

Advance = Callable[[int], np.ndarray]
"""Takes so many steps; the mean loss of each seed over them."""


class Data(NamedTuple):
    """The training pairs and labels, stacked over the seeds."""

    inputs: np.ndarray
    labels: np.ndarray


def ours(settings: Grokking) -> tuple[Advance, dict[str, np.ndarray], Data]:
    """Training by `train.grokking`; also initial parameters and data, stacked over the seeds."""
    lanes = lanes_of_kinds(settings)
    tasks = [task_of(settings, lane) for lane in lanes]
    size = tasks[0].train_size
    data = Data(
        np.stack([task.pairs[:size] for task in tasks]),
        np.stack([task.labels[:size] for task in tasks]),
    )
    network = ModularNetwork(settings.modulus, settings.width, settings.heads)
    optimizer = adamw_with_warmup(warmup_steps=10)
    states = initial_state(network, optimizer, lanes)
    # Copies: the states are donated.
    initial = {str(k): np.array(v) for k, v in nnx.to_pure_dict(states.params).items()}
    trainer = make_trainer(
        settings, network, optimizer, lanes, tasks, states, mesh_of(len(lanes), 1, devices=1)
    )
    step = 0

    def advance(count: int) -> np.ndarray:
        nonlocal step
        step += count
        terms = trainer.advance(step)
        jax.block_until_ready([group.states for group in trainer.groups])
        return np.array([of_lane["step_loss"] for of_lane in terms])

    return advance, initial, data


def torch_loss(device: str) -> Callable[..., Any]:
    """`(weights, tokens [n, 3], labels [n]) -> loss`, all places computed, as usual."""
    import torch
    from torch.nn import functional

    future = torch.ones(3, 3, dtype=torch.bool, device=device).triu(1)

    def loss(weights: dict[str, Any], tokens: Any, labels: Any) -> Any:
        x = functional.embedding(tokens, weights["embedding"]) + weights["positions"]
        query, key, value = (
            torch.einsum("npd,hid->nhpi", x, weights[name]) for name in ("query", "key", "value")
        )
        scores = torch.einsum("nhpi,nhqi->nhpq", query, key) / math.sqrt(query.shape[-1])
        shares = scores.masked_fill(future, -math.inf).softmax(-1)
        mixed = torch.einsum("nhpq,nhqi->nhpi", shares, value)
        x = x + torch.einsum("nhpi,hid->npd", mixed, weights["output"])
        hidden = torch.relu(x @ weights["hidden"] + weights["hidden_bias"])
        x = x + hidden @ weights["back"] + weights["back_bias"]
        logits = x[:, -1] @ weights["unembedding"]
        return functional.cross_entropy(logits.double(), labels)

    return loss


def in_torch(
    settings: Grokking, initial: dict[str, np.ndarray], data: Data, peer: str, mode: str
) -> Advance:
    """Training by a peer; the mode is that of `torch.compile`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = torch_loss(device)
    tokens = np.pad(data.inputs, ((0, 0), (0, 0), (0, 1)), constant_values=settings.modulus)
    tokens, labels = (torch.tensor(x, dtype=torch.long, device=device) for x in (tokens, data[1]))
    stacked = {name: torch.tensor(x, device=device) for name, x in initial.items()}
    together: Any = torch.func.vmap(torch.func.grad_and_value(loss))
    if peer == COMPILED:
        together = torch.compile(together, fullgraph=True, mode=mode)

    def backward(weights: dict[str, Any], *batch: Any) -> Any:
        value = loss(weights, *batch)
        value.backward()
        return value.detach()

    def backward_together(weights: dict[str, Any], *batch: Any) -> Any:
        gradients, values = together(weights, *batch)
        for name, weight in weights.items():
            weight.grad = gradients[name]
        return values

    if peer == PLAIN:
        step, parts = backward, []
        for i in range(settings.seeds):
            weights = {name: x[i].clone().requires_grad_() for name, x in stacked.items()}
            parts.append((weights, tokens[i], labels[i]))
    else:
        step, parts = backward_together, [(stacked, tokens, labels)]
    # AdamW treats each entry on its own, so that it may have the stacked parameters.
    optimizers: list[Any] = [
        torch.optim.AdamW(
            list(weights.values()),
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decays[0],
        )
        for weights, _, _ in parts
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(x, lambda n: min((n + 1) / 10, 1.0)) for x in optimizers
    ]

    def advance(count: int) -> np.ndarray:
        totals = []
        for part, optimizer, schedule in zip(parts, optimizers, schedules, strict=True):
            total = torch.zeros(len(labels) // len(parts), dtype=torch.float64, device=device)
            for _ in range(count):
                optimizer.zero_grad()
                total += step(*part)
                optimizer.step()
                schedule.step()
            totals.append(total)
        if device == "cuda":
            torch.cuda.synchronize()
        return torch.cat(totals).cpu().numpy() / count

    return advance


def warm_up(calls: dict[str, Advance]) -> dict[str, float]:
    """Takes four steps with each; seconds of the first. Stops unless all give our losses.

    Compared are the losses of the first step and of the fourth, which three updates precede. What
    does not compile is taken out of `calls`.
    """
    seconds, losses = {}, {}
    for name, advance in list(calls.items()):
        started = time.perf_counter()
        try:
            first = advance(1)
        except Exception as error:
            if name != COMPILED:
                raise
            message = (str(error).splitlines() or [""])[0]
            print(f"  {name} is left out: {type(error).__name__}: {message}", flush=True)
            del calls[name]
            continue
        seconds[name] = time.perf_counter() - started
        advance(2)
        losses[name] = np.stack([first, advance(1)])
    for name, theirs in losses.items():
        # The negation also stops at NaN.
        if not np.all(np.abs(theirs / losses[OURS] - 1) <= TOLERANCE):
            raise SystemExit(
                f"{name} has other losses at step 0 and after 3 steps (a column for each seed):\n"
                f"{theirs}\nours:\n{losses[OURS]}"
            )
    worst = max(float(np.max(np.abs(x / losses[OURS] - 1))) for x in losses.values())
    print(
        f"  losses at step 0 and after 3 steps agree: {worst:.0e} relative (at most {TOLERANCE:.0e})"
    )
    return seconds


def measure(settings: Grokking, steps: int, rounds: int, mode: str) -> dict[str, Any]:
    """Steps a second of interleaved rounds, for `settings.seeds` seeds at once."""
    advance, initial, data = ours(settings)
    calls = {OURS: advance}
    for peer in (PLAIN, VMAPPED) if mode == "none" else (PLAIN, VMAPPED, COMPILED):
        calls[peer] = in_torch(settings, initial, data, peer, mode)
    print(f"seeds = {settings.seeds}, {data[1].shape[1]} pairs", flush=True)
    warm = warm_up(calls)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(steps)
            rates[name].append(steps / (time.perf_counter() - started))
    peers = {}
    for name, theirs in rates.items():
        ratios = [mine / rate for mine, rate in zip(rates[OURS], theirs, strict=True)]
        peers[name] = {
            "first_step_seconds": warm[name],
            "steps_per_second": theirs,
            "ours_over_this": ratios,
        }
        print(
            f"  {name:16s} {statistics.median(theirs):9.3f} ({min(theirs):.3f} to {max(theirs):.3f})   "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"first step {warm[name]:.2f} s",
            flush=True,
        )
    return {"seeds": settings.seeds, "pairs": int(data[1].shape[1]), "results": peers}


def main() -> None:
    """Command line."""
    import torch

    paper = PRESETS["paper"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modulus", type=int, default=paper.modulus)
    parser.add_argument("--width", type=int, default=paper.width, help="of the residual stream")
    parser.add_argument("--fraction", type=float, default=paper.fractions[0], help="trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8], help="how many at once")
    parser.add_argument("--steps", type=int, default=50, help="of each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", default="default", help="mode of torch.compile, or none")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; by default all cores")
    parser.add_argument("--json", type=Path, help="also write the rates to this file")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if options.threads:
        torch.set_num_threads(options.threads)
    jax_kind, on_gpu = jax.devices()[0].device_kind, torch.cuda.is_available()
    torch_kind = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(
        f"{platform.machine()}, JAX {jax.__version__} on {jax_kind}, PyTorch {torch.__version__} "
        f"on {torch_kind} with {torch.get_num_threads()} threads, Python {platform.python_version()}"
    )
    if (jax.default_backend() == "gpu") != on_gpu:
        print("JAX and PyTorch are on different devices: the ratios compare those.")
    print(
        f"p = {options.modulus}, width {options.width}, fraction {options.fraction}; steps a second: "
        f"median (min to max) of {options.rounds} rounds of {options.steps} steps;\n"
        "ratio: ours / this in the same round; first step: with compilation\n"
    )
    rows = []
    for seeds in options.seeds:
        settings = dataclasses.replace(
            paper,
            modulus=options.modulus,
            width=options.width,
            fractions=(options.fraction,),
            seeds=seeds,
            controls=False,
            interventions=False,
        )
        with jax.default_matmul_precision("highest"):
            rows.append(measure(settings, options.steps, options.rounds, options.compile))
    if options.json:
        about = {"jax": jax.__version__, "torch": torch.__version__, "jax_device": jax_kind}
        about |= {"torch_device": torch_kind}
        chosen = {k: v for k, v in vars(options).items() if k not in ("json", "seeds")}
        chosen["threads"] = torch.get_num_threads()
        options.json.write_text(
            json.dumps({**about, **chosen, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
