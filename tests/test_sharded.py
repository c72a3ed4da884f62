"""One device, eight, two processes: the same numbers. And what the compiler makes of sharded rows."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def start(devices, process=0, port=0, kind="all"):
    arguments = (str(devices), str(process), str(port), kind)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sharded_script", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return json.loads(next(line for line in out.splitlines() if line.startswith("RESULT"))[6:])


def assert_same(result, single):
    del result["processes"]
    assert len(result) >= 4
    for name, values in result.items():
        np.testing.assert_allclose(values, single[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_one_device_eight_and_two_processes():
    single = result_of(start(1))
    assert (single["devices"], single["processes"]) == (1, 1)
    for kind in ("all", "explicit"):
        result = result_of(start(8, kind=kind))
        assert result.pop("devices") == 8
        assert_same(result, single)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(2, process, port, "few") for process in (0, 1)]
    for result in map(result_of, processes):
        assert (result.pop("devices"), result["processes"]) == (4, 2)
        assert_same(result, single)


def test_rows_never_leave_their_device():
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mirjax._dataset import dataset, lanczos, marginals
import numpy as np
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
z = jax.device_put(np.random.default_rng(0).normal(size=(1600, 16)).astype(np.float32), rows)
y, one = (jax.device_put(x, rows) for x in (np.arange(1600) % 40, np.ones(1600, np.float32)))
head = jnp.ones((40, 16))
operator = marginals.of_rows(z, head, y, one, shards=8).operator
assert operator.rows.sharding.spec[0] == "data", operator.rows.sharding
key = jax.random.key(0)
for lowered in (
    dataset._sums.lower(z, y, one, 40, 8),
    marginals.of_rows.lower(z, head, y, one, shards=8),
    lanczos.top_subspace.lower(operator, key, rank=8, iterations=1),
    lanczos.probe_complement.lower(operator, jnp.zeros((operator.size, 2)), key, probes=2, degree=4),
):
    text = lowered.compile().as_text()
    assert "all-reduce" in text
    for line in text.splitlines():
        assert not any(f"{op}(" in line for op in ("all-gather", "all-to-all")), line
pair = marginals.of_pair(z, jax.device_put(np.ones((1600, 64), np.float32), rows), one, shards=8).operator
assert pair.purity_is_exact
pieces = jax.jit(lambda o: o.purity()).lower(pair).compile().as_text()
for line in pieces.splitlines():
    assert not any(f"{op}(" in line for op in ("all-gather", "all-to-all")), line
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "fine", done.stderr[-3000:]
