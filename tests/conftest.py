"""One numerical setting for all tests: float32 by default, no silent promotion, a compile cache."""

from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

MAPPINGS = Path("/proc/self/maps")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees compiled programs before there are too many.

    Each one of the CPU takes several memory mappings of the process. Linux allows 65,530 of them by
    default, the whole suite would need more, and at the limit LLVM crashes.
    """
    yield
    if MAPPINGS.exists() and len(MAPPINGS.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
