"""A step on eight devices is the step on one, to rounding."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from train.engine import sharding
from train.engine import trainer as trainer_module
from train.engine.loader import loader_of
from train.engine.sharding import mesh_of
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
    # Eight networks lie on a device each, and have nothing to tell one another.
    assert eight["lanes_on_a_device"] == [1] * 8
    assert eight["exchanged"] == []
    # The moving averages of FreeMatch are of the whole batch, its draws of the sample.
    for name in ("params", "few"):
        for mine, theirs in zip(one[name], eight[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(one["records"], eight["records"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("test_loss", "test_mir", "test_hdr", "test_mir_batch", "test_nc1"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), name


def test_the_mesh_divides_the_batch():
    assert mesh_of(1, 12).size == 1
    assert mesh_of(1, 12, devices=1).size == 1
    with pytest.raises(ValueError, match="devices is 2, but JAX sees 1"):
        mesh_of(1, 12, devices=2)


def test_devices_that_do_not_divide_the_batch(monkeypatch):
    eight = [SimpleNamespace(process_index=0, id=i) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: eight)
    with pytest.raises(ValueError, match="batch_size 12 cannot be cut into devices = 8 equal"):
        mesh_of(1, 12, devices=8)


@pytest.mark.parametrize(
    ("networks", "batch", "devices", "expected"),
    [
        (8, 64, {}, (8, 1)),
        (3, 64, {}, (3, 2)),
        (16, 64, {}, (8, 1)),
        (1, 64, {}, (1, 8)),
        (1, 12, {}, (1, 6)),
        (9, 64, {}, (5, 1)),
        (5, 1, {}, (5, 1)),
        (8, 64, {"lane_devices": 2}, (2, 4)),
        (3, 64, {"devices": 4}, (2, 2)),
        (1, 64, {"devices": 2}, (1, 2)),
    ],
)
def test_lanes_come_first_and_batches_take_what_is_left(
    networks, batch, devices, expected, monkeypatch
):
    eight = [SimpleNamespace(process_index=i // 4, id=i) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: eight)
    monkeypatch.setattr(sharding, "Mesh", lambda devices, axes: (devices, axes))
    mesh, axes = mesh_of(networks, batch, **devices)
    assert (mesh.shape, axes) == (expected, ("lanes", "data"))
    # Both processes take part, and a row of the mesh lies in one of them where it can.
    assert {device.process_index for device in mesh.flat} == {0, 1}
    assert list(mesh.flat) == sorted(mesh.flat, key=lambda device: device.id)


def test_what_cannot_be_divided_evenly(monkeypatch):
    two = [SimpleNamespace(process_index=i, id=i) for i in range(2)]
    monkeypatch.setattr(jax, "devices", lambda: two)
    monkeypatch.setattr(sharding, "Mesh", lambda devices, _: devices)
    # A table cannot be divided: the second process trains a copy, and takes part in all else.
    assert mesh_of(1, 1).shape == (2, 1)
    with pytest.raises(ValueError, match="devices is 1, but there are 2 processes"):
        mesh_of(1, 64, devices=1)
    with pytest.raises(ValueError, match="lane_devices is 3, but there are 2 devices"):
        mesh_of(4, 64, lane_devices=3)


def test_as_many_lanes_as_fit():
    asked = []

    def needs(size):
        asked.append(size)
        return 100 * size

    assert largest_that_fits(12, needs, available=500) == 4
    assert asked == [12, 6, 4]
    assert largest_that_fits(12, needs, available=10) == 1
    # Whole rows of a mesh.
    assert largest_that_fits(12, needs, available=700, multiple_of=4) == 4
    assert largest_that_fits(12, needs, available=10, multiple_of=4) == 4
    assert largest_that_fits(12, needs) == 12  # a CPU does not say what it has
    asked.clear()
    assert largest_that_fits(1, needs, available=10) == 1
    assert not asked


def test_the_next_call_begins_before_the_last_is_waited_for(tiny, settings, monkeypatch):
    one = dataclasses.replace(settings, seeds=1)
    lanes = lanes_of(one)
    network, transform = Network.of(one, tiny), optimizer_of(one)
    step = make_step(network, transform, UsedTerms.of(lanes))
    mesh = mesh_of(1, one.batch_size)
    loader = loader_of(tiny.train, one.batch_size, mesh)
    states = initial_state(network, transform, lanes)
    trainer = Trainer(jax.vmap(step), loader, lanes, states, mesh, steps_per_call=1)
    order, call = [], trainer._call
    monkeypatch.setattr(trainer, "_call", lambda *args: order.append("call") or call(*args))
    monkeypatch.setattr(trainer, "_stop_if_not_finite", lambda *_: order.append("get"))
    trainer.advance(3)
    assert order == ["call", "call", "get", "call", "get", "get"]


def test_what_a_call_needs_grows_with_its_lanes(tiny, settings):
    lanes = lanes_of(dataclasses.replace(settings, seeds=4, mi_weight=0.0, ed_weight=0.0))
    network, transform = Network.of(settings, tiny), optimizer_of(settings)
    states = initial_state(network, transform, lanes)
    step = make_step(network, transform, UsedTerms.of(lanes))
    mesh = mesh_of(1, settings.batch_size)
    loader = loader_of(tiny.train, settings.batch_size, mesh)
    trainer = Trainer(jax.vmap(step), loader, lanes, states, mesh)
    one, four = (trainer._needs(lanes[:size], states) for size in (1, 4))
    weights = 4 * sum(x[0].size for x in jax.tree.leaves(states.params))
    # States in and out, each with weights and momentum.
    assert one > 4 * weights
    assert 3 * 4 * weights < four - one < 40 * weights


def test_hosts_with_different_memory_come_to_the_same_groups(monkeypatch):
    monkeypatch.setattr(trainer_module.hosts, "gathered", lambda _: [1000, 500])
    assert largest_that_fits(12, lambda size: 100 * size) == 4
    monkeypatch.setattr(trainer_module.hosts, "gathered", lambda _: [1000, None])
    assert largest_that_fits(12, lambda size: 100 * size) == 12
