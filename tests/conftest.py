"""One numerical setting for all tests: float32 by default, no silent promotion, a compile cache."""

import gc
import os
import time
from pathlib import Path

import jax
import pytest

from tests import contexts
from tests.versions import enable_x64

contexts.share()
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

# Most of the time of the tests is compilation: without these passes it takes a quarter as long.
UNOPTIMISED = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# Newer versions do not know this one, and end the process when they meet it.
if jax.__version_info__ < (0, 11):
    UNOPTIMISED.append("--xla_cpu_use_fusion_emitters=false")
MAPPINGS = Path("/proc/self/maps")
BEGUN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--optimised",
        action="store_true",
        help="compile with all of XLA's optimisations, as users do",
    )
    parser.addoption(
        "--minutes",
        type=float,
        default=float("inf"),
        help="skip, and count as skipped, the tests that would begin later than this",
    )


def pytest_configure(config):
    # Programs and what they are traced from pile up: looking through all of it often is slow.
    gc.set_threshold(100_000, 20, 20)
    # Before the first computation, when XLA reads its flags. Processes of tests inherit them.
    if not config.getoption("--optimised"):
        flags = os.environ.get("XLA_FLAGS", "").split()
        # Once, although workers inherit them: the flags are part of the key of the cache.
        os.environ["XLA_FLAGS"] = " ".join([*flags, *(x for x in UNOPTIMISED if x not in flags)])


def pytest_runtest_setup(item):
    if time.monotonic() - BEGUN > 60 * item.config.getoption("--minutes"):
        pytest.skip("no time was left for it")


@pytest.fixture
def x64():
    with enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees compiled programs before there are too many.

    Each one of the CPU takes several memory mappings of the process. Linux allows 65,530 of them by
    default, the whole suite would need more, and at the limit LLVM crashes.
    """
    yield
    contexts.forget()
    if MAPPINGS.exists() and len(MAPPINGS.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
