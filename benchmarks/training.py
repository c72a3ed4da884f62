"""Rows about whole training steps: with and without the information terms, and beside PyTorch.

The images are noise of CIFAR's size: what a step costs does not depend on what they show.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.timing import OURS, Row, measure, torch_device
from train.data import DataNotFound, from_arrays, load
from train.feeds import feed_of
from train.lanes import lanes_of
from train.parallel import data_mesh, replicated
from train.pool import PoolFeed, pool_of
from train.randaugment import RANGES
from train.semisupervised import Semisupervised, start, unlabelled_batch
from train.state import Network, initial_state, optimizer
from train.step import information_loss, make_call, make_step
from train.supervised import Supervised

IMAGES, CLASSES = 10_000, 10
WITH = "mirjax, + MI + ED"
TERMS: dict[str, Any] = {"mi_weight": 0.1, "ed_weight": 0.1}


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    return images, (np.arange(IMAGES) % CLASSES).astype(np.int32)


def supervised(settings: Supervised, data: Any = None) -> Callable[[], float]:
    """A call that takes one step, on noise if no data are given, and waits for its loss."""
    if data is None:
        images, labels = noise()
        data = from_arrays("noise", images, labels, images[:100], labels[:100])
    lanes, network, transform = lanes_of(settings), Network.of(settings, data), optimizer(settings)
    mesh = data_mesh(settings.batch_size, 1)
    step = make_step(network, transform, information_loss(lanes), augment=True)
    feed = feed_of(data.train, settings.batch_size, mesh)
    return _caller(step, feed, lanes, initial_state(network, transform, lanes), mesh)


def semisupervised(settings: Semisupervised) -> Callable[[], float]:
    """The same of a semi-supervised step."""
    images, labels = noise()
    data = from_arrays("noise", images, labels, images[:100], labels[:100])
    pool, lanes = pool_of(settings, data, settings.labels), lanes_of(settings)
    _, step, states = start(settings, pool, lanes)
    mesh = data_mesh(settings.batch_size, 1)
    feed = PoolFeed(pool, settings.batch_size, unlabelled_batch(settings), mesh)
    return _caller(step, feed, lanes, states, mesh)


def _caller(step, feed, lanes, states, mesh) -> Callable[[], float]:
    call = make_call(step, feed.take, looped=False)
    batches = feed.of(lanes)
    held = [
        replicated(states, mesh),
        0,
    ]  # as they come back, so that the second call compiles nothing

    def take() -> float:
        sources, indices = batches(held[1], 1)
        held[0], progress = call(held[0], sources, indices, 1)
        held[1] += 1
        return float(progress.total.loss[0])

    return take


def of_supervised(seconds: float, model: str, batch: int) -> Iterator[Row]:
    """A supervised step without and with the terms."""
    common: dict[str, Any] = {
        "dataset": "npz:noise",
        "model": model,
        "batch_size": batch,
        "augment": True,
    }
    calls = {
        OURS: supervised(Supervised(**common)),
        WITH: supervised(Supervised(**common, **TERMS)),
    }
    name = f"supervised step, {model}, {batch} images"
    yield measure("supervised", name, calls, seconds=seconds, per=batch, tolerance=None)


def of_input(seconds: float, model: str, batch: int) -> Iterator[Row]:
    """A supervised step on images that are held on the device, and on images streamed from disk.

    Streamed CIFAR-10 has to be prepared (`python -m train.prepare cifar10`); without it there is no row.
    """
    settings = Supervised(model=model, batch_size=batch, augment=True)
    try:
        held = load("cifar10")
        streamed = load("cifar10", memory_limit_mib=1)
    except DataNotFound as error:
        print(f"left out: {error}")
        return
    calls = {
        OURS: supervised(settings, held),
        "mirjax, streamed from disk": supervised(settings, streamed),
    }
    name = f"supervised step, {model}, {batch} images of CIFAR-10"
    yield measure("input", name, calls, seconds=seconds, per=batch, tolerance=None)


def of_semisupervised(
    seconds: float, model: str, batch: int, ratio: int, workers: int | None
) -> Iterator[Row]:
    """A FreeMatch step without and with the terms, and in PyTorch with its loader (WideResNets only)."""
    common: dict[str, Any] = {
        "dataset": "npz:noise",
        "algorithm": "freematch",
        "labels": 40,
        "model": model,
        "batch_size": batch,
        "unlabelled_ratio": ratio,
    }
    calls = {
        OURS: semisupervised(Semisupervised(**common)),
        WITH: semisupervised(Semisupervised(**common, **TERMS)),
    }
    name = f"FreeMatch step, {model}, {batch} + {batch * ratio} images"
    per = batch * (1 + ratio)
    yield measure("semisupervised", name, calls, seconds=seconds, per=per, tolerance=None)
    if not model.startswith("wrn"):
        return
    from benchmarks.torch_freematch import FreeMatch

    depth, width = map(int, model.split("-")[1:])
    workers = (os.cpu_count() or 1) if workers is None else workers
    peer = FreeMatch(
        *noise(),
        dict(RANGES),
        labelled=batch,
        unlabelled=batch * ratio,
        depth=depth,
        width=width,
        workers=workers,
        device=torch_device(),
    )
    # Blocks of steps; the batches that the workers have read meanwhile are used up before.
    yield measure(
        "semisupervised",
        f"4 of them, Pillow with {workers} workers",
        {OURS: _block(calls[OURS], 4), "PyTorch with its loader": _block(peer.step, 4)},
        seconds=seconds,
        rounds=3,
        per=4 * per,
        tolerance=None,
        before={"PyTorch with its loader": _block(peer.step, 2 * workers + 1)},
    )


def _block(step: Callable[[], float], count: int) -> Callable[[], float]:
    def several() -> float:
        for _ in range(count - 1):
            step()
        return step()

    return several
