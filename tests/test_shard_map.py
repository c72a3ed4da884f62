"""Everything traces inside `jax.shard_map`, with its check of what varies over devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this JAX has no jax.shard_map")
@pytest.mark.parametrize("devices", [2, 8])
def test_values_and_gradients_inside_shard_map(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.shard_map_script"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name, (value, gradient) in json.loads(finished.stdout).items():
        assert value < 1e-4, name
        assert gradient < 1e-3, name
