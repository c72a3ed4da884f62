"""What is public is documented, runs as documented, and depends on little."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mirjax

ROOT = Path(__file__).parents[1]
MODULES = ["mirjax", *(module.name for module in pkgutil.walk_packages(mirjax.__path__, "mirjax."))]


def public_functions():
    modules = {"": mirjax} | {f"{m}.": getattr(mirjax, m) for m in ("losses", "spectra", "theory")}
    for prefix, module in modules.items():
        for name, member in vars(module).items():
            own = module is not mirjax or name in mirjax.__all__
            local = inspect.isfunction(member) and member.__module__.startswith("mirjax")
            if own and local and not name.startswith("_"):
                inside = not prefix or member.__module__ == module.__name__
                if inside:
                    yield f"mirjax.{prefix}{name}", member


FUNCTIONS = dict(public_functions())


def test_all_is_what_is_there():
    assert set(mirjax.__all__) <= set(vars(mirjax))
    assert mirjax.__all__ == sorted(mirjax.__all__)
    imported = {
        name
        for name, member in vars(mirjax).items()
        if getattr(member, "__module__", "").startswith("mirjax.") and not name.startswith("_")
    }
    assert imported <= set(mirjax.__all__)


@pytest.mark.parametrize("name", mirjax.__all__)
def test_public_name_is_documented(name):
    assert inspect.getdoc(getattr(mirjax, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_has_an_example(name):
    assert ">>>" in inspect.getdoc(FUNCTIONS[name])
    assert "Example:" in inspect.getdoc(FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(
        parameter.annotation is not inspect.Parameter.empty
        for parameter in signature.parameters.values()
    )


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.failed == 0


def test_examples_are_collected():
    finder = doctest.DocTestFinder()
    found = [t for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples]
    assert len(found) >= len(FUNCTIONS)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def test_annotations_hold_at_run_time():
    code = """
import tests.typecheck
from jaxtyping import install_import_hook
with install_import_hook("mirjax", "tests.typecheck.checked"):
    import mirjax
import functools
import jax
import jax.numpy as jnp
import numpy as np
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError
z = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
w, y, m = z[:2], jnp.arange(8) % 2, jnp.ones(8)
k = mirjax.gram(z)
mirjax.matrix_entropy(k, order=2)
mirjax.theory.simplex_etf(3, 4)
for form in ("entropy", "mutual_information", "mir"):
    getattr(mirjax.theory, f"collapsed_{form}")(3)
mirjax.check(z, w, y, weights=m, kernel=k)
def traced(function, *arguments, **options):
    # Annotations are checked without a computation.
    jax.eval_shape(functools.partial(function, **options), *arguments)
traced(mirjax.normalize_rows, z)
traced(mirjax.feature_entropy, z, weights=m)
traced(mirjax.effective_rank, z)
for kernel in (mirjax.mutual_information, mirjax.mir, mirjax.hdr, mirjax.kernel_interplay):
    traced(kernel, k, k)
traced(mirjax.interplay, z, w, y, weights=m)
traced(lambda: mirjax.interplay(np.asarray(z), np.asarray(w), np.asarray(y)))
traced(mirjax.feature_interplay, z, z)
traced(mirjax.class_interplay, w, w, global_mean=jnp.ones(3))
traced(mirjax.class_means, z, y, num_classes=2, weights=m)
traced(mirjax.neural_collapse, z, y, w, num_classes=2, bias=jnp.ones(2), weights=m)
traced(mirjax.losses.mutual_information_loss, z, w, y, weights=m, stop_gradient="head")
traced(mirjax.losses.entropy_difference_loss, z, w, y)
traced(mirjax.spectra.measure, z, y, num_classes=2, weights=m)
traced(lambda z: mirjax.layerwise(mirjax.effective_rank)({"a": z}), z)
try:
    mirjax.mir(z, k)
except (TypeCheckError, BeartypeCallHintParamViolation):
    print("checked")
"""
    outcome = run(code)
    assert outcome.stdout.strip() == "checked", outcome.stderr[-3000:]
