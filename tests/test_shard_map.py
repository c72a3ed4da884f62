"""Everything traces inside `jax.shard_map`, with its check of what varies over devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="this JAX has no jax.shard_map"
)


def run(devices, *arguments):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.shard_map_script", *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def test_every_function_and_gradient_is_traced_inside_shard_map():
    run(2, "trace")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_values_and_gradients_inside_shard_map(devices):
    for name, (value, gradient) in json.loads(run(devices)).items():
        assert value < 1e-4, name
        assert gradient < 1e-3, name
