"""What `import mirjax` does and costs, and that its version is the same wherever it is written."""

import os
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mirjax

ROOT = Path(__file__).parents[1]
SEMANTIC = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
)
HEAVY = (
    "chex",
    "flax",
    "grain",
    "matplotlib",
    "optax",
    "scipy.stats",
    "tensorflow",
    "torch",
    "train",
)
SECONDS = 0.2


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_computes_nothing():
    # No device has this name: whatever asks for one, an array at module level for example, fails.
    code = """
import jax, mirjax
try:
    jax.devices()
except RuntimeError:
    print("no such device")
"""
    assert run(code, JAX_PLATFORMS="nowhere") == "no such device"


def test_the_import_brings_nothing_heavy():
    code = f"import sys, mirjax; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.slow
def test_the_import_is_quick():
    # Beside `import jax` in turn, and of the processor's time: what else the machine does must not count.
    def seconds(modules):
        return float(
            run(
                f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
            )
        )

    differences = [seconds("jax, mirjax") - seconds("jax") for _ in range(7)]
    assert statistics.median(differences) < SECONDS, differences


def test_the_version_is_the_same_everywhere():
    project, citation, changelog = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    )
    project = tomllib.loads(project)["project"]["version"]
    citation = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    newest = next(h for h in headings if "unreleased" not in h.lower().split()[0])
    assert SEMANTIC.fullmatch(project)
    assert citation.group(1) == project
    assert newest.strip("[]").split()[0].strip("[]") == project
    assert mirjax.__version__ == project
