"""Timings beside peers: `python -m benchmarks.run`."""

import os

# PyTorch and JAX share a GPU here: JAX must not take most of its memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
