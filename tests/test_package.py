"""What `import mirjax` does and costs, and that its version is the same wherever it is written."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

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
