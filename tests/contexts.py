"""Lowers programs faster, in the processes of the tests: `python -m tests.contexts MODULE ...`.

JAX lowers every program in an MLIR context of its own, and making one takes longer than lowering a
small program: half of the time of tests that call many functions once. The function that makes them
is private. Where a version of JAX has none of that name, the tests take longer and are the same.
"""

import functools
import runpy
import sys

import jax
from jax._src.interpreters import mlir

make = functools.cache(getattr(mlir, "make_ir_context", object))


def share():
    """One context serves all programs until `forget` is called."""
    mlir.make_ir_context = make
    # Nor does anybody read from which line of Python an operation comes.
    jax.config.update("jax_traceback_in_locations_limit", 0)


def forget():
    """The next program gets a new one: the old one holds the constants of all before it."""
    make.cache_clear()


def run(module):
    """Runs a module with the arguments of this process, as `python -m` does."""
    share()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(sys.argv.pop(1))
