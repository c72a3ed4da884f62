"""The same numbers on explicit axes of a mesh, inside and outside of `jax.set_mesh`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(jax.sharding, "auto_axes"), reason="this JAX cannot leave explicit axes"
)
def test_every_function_on_explicit_axes():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.explicit_script"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    line = next(x for x in finished.stdout.splitlines() if x.startswith("RESULT"))
    errors = json.loads(line.removeprefix("RESULT"))
    assert len(errors) > 25
    for name, size in errors.items():
        assert size < 1e-3, (name, size)
