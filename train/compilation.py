"""Compiled programs are kept on disk, so that the second run starts at once."""

import os
from pathlib import Path

import jax


def enable_cache() -> None:
    """Uses `JAX_COMPILATION_CACHE_DIR`, or `.cache/jax` below the working directory."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
