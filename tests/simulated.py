"""Scripts of the tests on simulated devices, whose number is fixed when a process starts."""

import os
import subprocess
import sys
from pathlib import Path


def printed_on_devices(module, devices, *arguments):
    """What `python -m MODULE ARGUMENTS` prints on so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.contexts", module, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout
