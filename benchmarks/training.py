"""Rows about whole training steps: with and without the information terms, and beside PyTorch.

The images are noise of CIFAR's size: what a step costs does not depend on what they show.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.profiling import Profile, profiled
from benchmarks.timing import OURS, Calls, Row, measure, on_cpu, torch_device
from train.data.load import load
from train.data.randaugment import RANGES
from train.data.types import DataNotFound, from_arrays
from train.engine.loader import loader_of
from train.engine.sharding import mesh_of
from train.engine.state import Network, initial_state
from train.engine.step import TermForm, UsedTerms
from train.engine.trainer import Trainer, is_slow
from train.run.lanes import lanes_of
from train.semisupervised import start
from train.ssl.pool import PoolLoader, pool_of
from train.ssl.settings import Semisupervised
from train.supervised import Supervised, make_step, optimizer_of

IMAGES, CLASSES, SUPERVISED = 10_000, 10, 64
WITH = "mirjax, + MI + ED"
DEBIASED = "mirjax, + MI + ED, debiased"
TERMS: dict[str, Any] = {"mi_weight": 0.1, "ed_weight": 0.1}
ORDER_TWO: dict[str, Any] = {**TERMS, "order": 2, "debiased": True}


def steps_a_call() -> int:
    """Single steps on a CPU, several in one call elsewhere, as in training (which takes up to 100)."""
    return 1 if on_cpu() else 10


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    return images, (np.arange(IMAGES) % CLASSES).astype(np.int32)


def supervised(settings: Supervised, data: Any = None) -> Callable[[], float]:
    """A call that takes `steps_a_call()` steps, on noise if no data are given, and waits for their loss."""
    if data is None:
        images, labels = noise()
        data = from_arrays("noise", images, labels, images[:100], labels[:100])
    lanes, network = lanes_of(settings), Network.of(settings, data)
    optimizer = optimizer_of(settings)
    form = TermForm(settings.order, settings.debiased)
    step = make_step(network, optimizer, UsedTerms.of(lanes), form=form, augment=True)
    states = initial_state(network, optimizer, lanes)
    mesh = mesh_of(1, settings.batch_size, devices=1)
    loader = loader_of(data.train, settings.batch_size, mesh)
    slow = is_slow(settings.model)
    return _caller(Trainer(jax.vmap(step), loader, lanes, states, mesh, slow_together=slow))


def semisupervised(settings: Semisupervised) -> Callable[[], float]:
    """The same of semi-supervised steps."""
    images, labels = noise()
    data = from_arrays("noise", images, labels, images[:100], labels[:100])
    pool, lanes = pool_of(settings, data, settings.labels), lanes_of(settings)
    _, step, states = start(settings, pool, lanes)
    mesh = mesh_of(1, settings.batch_size, devices=1)
    loader = PoolLoader(pool, settings.batch_size, settings.unlabelled_batch(), mesh)
    slow = is_slow(settings.model)
    return _caller(Trainer(jax.vmap(step), loader, lanes, states, mesh, slow_together=slow))


def _caller(trainer: Trainer) -> Callable[[], float]:
    done, count = 0, steps_a_call()

    def take() -> float:
        nonlocal done
        done += count
        return trainer.advance(done)[0]["step_loss"]

    return take


def of_supervised(options: argparse.Namespace) -> Iterator[Row]:
    """Supervised steps without and with the terms."""
    common: dict[str, Any] = {
        "dataset": "npz:noise",
        "model": options.model,
        "batch_size": SUPERVISED,
        "augment": True,
        "precision": options.precision,
    }
    calls = {
        OURS: supervised(Supervised(**common)),
        WITH: supervised(Supervised(**common, **TERMS)),
        DEBIASED: supervised(Supervised(**common, **ORDER_TWO)),
    }
    name = f"supervised, {_described(options)}, {SUPERVISED} images"
    yield _measured("supervised", name, calls, options, SUPERVISED)


def of_input(options: argparse.Namespace) -> Iterator[Row]:
    """Supervised steps on images that are held on the device, and on images streamed from disk.

    CIFAR-10 has to be prepared (`python -m train.prepare cifar10`); without it there is no row.
    """
    calls = _inputs(options)
    if calls:
        name = f"supervised, {_described(options)}, {SUPERVISED} images of {options.images}"
        yield _measured("input", name, calls, options, SUPERVISED)


def of_semisupervised(options: argparse.Namespace) -> Iterator[Row]:
    """FreeMatch steps without and with the terms."""
    images = options.labelled * (1 + options.ratio)
    calls = {OURS: _freematch(options), WITH: _freematch(options, **TERMS)}
    calls[DEBIASED] = _freematch(options, **ORDER_TWO)
    name = f"FreeMatch, {_described(options)}, {images} images"
    yield _measured("semisupervised", name, calls, options, images)


def of_loader(options: argparse.Namespace) -> Iterator[Row]:
    """FreeMatch steps, and those of PyTorch with its loader (WideResNets only)."""
    if not options.model.startswith("wrn-"):
        print(f"left out: the peer is a WideResNet, not {options.model}")
        return
    from benchmarks.torch_freematch import FreeMatch

    per_call, depth_and_width = steps_a_call(), options.model.split("-")[1:]
    images = options.labelled * (1 + options.ratio)
    # Blocks of steps; the batches that the workers have read meanwhile are used up before.
    count = 4 if on_cpu() else 4 * per_call
    ours, theirs = _block(_freematch(options), count // per_call), "PyTorch with its loader"
    for workers in options.workers or [os.cpu_count() or 1]:
        peer = FreeMatch(
            *noise(),
            dict(RANGES),
            labelled=options.labelled,
            unlabelled=images - options.labelled,
            depth=int(depth_and_width[0]),
            width=int(depth_and_width[1]),
            workers=workers,
            device=torch_device(),
            half=options.precision == "bfloat16",
        )
        yield measure(
            "loader",
            f"{count} steps of FreeMatch, {_described(options)}, Pillow with {workers} workers",
            {OURS: ours, theirs: _block(peer.step, count)},
            seconds=options.seconds,
            rounds=3,
            per=count * images,
            tolerance=None,
            before={theirs: _block(peer.step, 2 * workers + 1)},
        )
        peer.close()


def profiles(options: argparse.Namespace) -> dict[str, Profile]:
    """How busy the device is in a call: images held, images streamed, FreeMatch without and with the terms."""
    calls = {f"supervised, {name}": call for name, call in _inputs(options).items()}
    calls["FreeMatch"] = _freematch(options)
    calls["FreeMatch, + MI + ED"] = _freematch(options, **TERMS)
    return {name: profiled(call, 3) for name, call in calls.items()}


def _freematch(options: argparse.Namespace, **terms: Any) -> Callable[[], float]:
    settings = Semisupervised(
        dataset="npz:noise",
        algorithm="freematch",
        labels=40,
        model=options.model,
        batch_size=options.labelled,
        unlabelled_ratio=options.ratio,
        precision=options.precision,
        **terms,
    )
    return semisupervised(settings)


def _inputs(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    settings = Supervised(
        model=options.model, batch_size=SUPERVISED, augment=True, precision=options.precision
    )
    try:
        held, streamed = (load(options.images, memory_limit_mib=limit) for limit in (2048, 1))
    except DataNotFound as error:
        print(f"left out: {error}")
        return {}
    return {
        OURS: supervised(settings, held),
        "mirjax, streamed from disk": supervised(settings, streamed),
    }


def _described(options: argparse.Namespace) -> str:
    return f"{options.model}, {options.precision}"


def _measured(group: str, name: str, calls: Calls, options: argparse.Namespace, images: int) -> Row:
    steps = steps_a_call()
    name = name if steps == 1 else f"{steps} steps: {name}"
    return measure(group, name, calls, seconds=options.seconds, per=steps * images, tolerance=None)


def _block(step: Callable[[], float], count: int) -> Callable[[], float]:
    def several() -> float:
        for _ in range(count - 1):
            step()
        return step()

    return several


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "supervised": of_supervised,
    "input": of_input,
    "semisupervised": of_semisupervised,
    "loader": of_loader,
}
"""By group, of the options of the command line."""
