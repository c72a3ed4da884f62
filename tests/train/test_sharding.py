"""A step on eight devices is the step on one, to rounding."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from train.engine.loader import loader_of
from train.engine.sharding import data_mesh
from train.engine.state import Network, initial_state
from train.engine.step import UsedTerms
from train.engine.trainer import Trainer, largest_that_fits
from train.run.lanes import lanes_of
from train.supervised import make_step, optimizer_of

ROOT = Path(__file__).parents[2]


def result_of(devices, out):
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.parallel_script", str(devices), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))[6:])


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
    one, eight = (result_of(k, tmp_path / f"run{k}") for k in (1, 8))
    assert (one["devices"], one["lie_on"]) == (1, [1])
    assert (eight["devices"], eight["lie_on"]) == (8, [8])
    # Each device works on its part of the batch, and gradients are added over the devices.
    assert eight["adds_over_devices"]
    assert not one["adds_over_devices"]
    assert one["maps"]
    assert eight["maps"]
    # The moving averages of FreeMatch are of the whole batch, its draws of the sample.
    for name in ("params", "few"):
        for mine, theirs in zip(one[name], eight[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(one["records"], eight["records"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("test_loss", "test_mir", "test_hdr", "test_mir_batch", "test_nc1"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), name


def test_the_mesh_divides_the_batch():
    assert data_mesh(12, None).size == 1
    assert data_mesh(12, 1).size == 1
    with pytest.raises(ValueError, match="devices is 2, but JAX sees 1"):
        data_mesh(12, 2)


def test_devices_that_do_not_divide_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    with pytest.raises(ValueError, match="batch_size 12 cannot be cut into devices = 8 equal"):
        data_mesh(12, 8)


def test_as_many_lanes_as_fit():
    asked = []

    def needs(size):
        asked.append(size)
        return 100 * size

    assert largest_that_fits(12, needs, available=500) == 4
    assert asked == [12, 6, 4]
    assert largest_that_fits(12, needs, available=10) == 1
    assert largest_that_fits(12, needs) == 12  # a CPU does not say what it has
    asked.clear()
    assert largest_that_fits(1, needs, available=10) == 1
    assert not asked


def test_the_next_call_begins_before_the_last_is_waited_for(tiny, settings, monkeypatch):
    one = dataclasses.replace(settings, seeds=1)
    lanes = lanes_of(one)
    network, transform = Network.of(one, tiny), optimizer_of(one)
    step = make_step(network, transform, UsedTerms.of(lanes))
    mesh = data_mesh(one.batch_size, None)
    loader = loader_of(tiny.train, one.batch_size, mesh)
    states = initial_state(network, transform, lanes)
    trainer = Trainer(jax.vmap(step), loader, lanes, states, mesh, steps_per_call=1)
    order, call, get = [], trainer._call, jax.device_get
    monkeypatch.setattr(trainer, "_call", lambda *args: order.append("call") or call(*args))
    monkeypatch.setattr(jax, "device_get", lambda x: order.append("get") or get(x))
    trainer.advance(3)
    assert order == ["call", "call", "get", "call", "get", "get"]


def test_what_a_call_needs_grows_with_its_lanes(tiny, settings):
    lanes = lanes_of(dataclasses.replace(settings, seeds=4, mi_weight=0.0, ed_weight=0.0))
    network, transform = Network.of(settings, tiny), optimizer_of(settings)
    states = initial_state(network, transform, lanes)
    step = make_step(network, transform, UsedTerms.of(lanes))
    mesh = data_mesh(settings.batch_size, None)
    loader = loader_of(tiny.train, settings.batch_size, mesh)
    trainer = Trainer(jax.vmap(step), loader, lanes, states, mesh)
    one, four = (trainer._needs(lanes[:size], states) for size in (1, 4))
    weights = 4 * sum(x[0].size for x in jax.tree.leaves(states.params))
    # States in and out, each with weights and momentum.
    assert one > 4 * weights
    assert 3 * 4 * weights < four - one < 40 * weights
