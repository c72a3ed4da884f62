"""Every public function is lowered for TPUs and NVIDIA GPUs, without one at hand."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import losses, spectra, theory, tokens
from tests.explicit_script import SMOOTH, WHOLE, C, D, W, Y, Z
from tests.lowering import PLATFORMS, assert_runs_there, decomposed, lowered

MASK = np.ones((8, 6), bool)

# Public functions that the shared tables leave out, of features, head and labels.
MORE = {
    "mir": lambda z, _w, _y: mirjax.mir(mirjax.gram(z), mirjax.gram(z) + 1),
    "hdr": lambda z, _w, _y: mirjax.hdr(mirjax.gram(z), mirjax.gram(z) + 1),
    "mutual_information": lambda z, _w, _y: mirjax.mutual_information(
        mirjax.gram(z), mirjax.gram(z) + 1
    ),
    "debiased_feature_interplay": lambda z, _w, _y: mirjax.debiased_feature_interplay(z, z[:, 1:]),
    "spectra.measure": SMOOTH["spectra"],
    "spectra.eigenvalues": lambda z, _w, _y: spectra.eigenvalues(z),
    "spectra.rankme": lambda z, _w, _y: spectra.rankme(z),
    "spectra.alpha_req": lambda z, _w, _y: spectra.alpha_req(z),
    "spectra.participation_ratio": lambda z, _w, _y: spectra.participation_ratio(z),
    "spectra.stable_rank": lambda z, _w, _y: spectra.stable_rank(z),
    "spectra.nesum": lambda z, _w, _y: spectra.nesum(z),
    "spectra.diff_effective_rank": lambda z, _w, _y: spectra.diff_effective_rank(z, 2 * z + 1),
    "spectra.lidar": lambda z, _w, y: spectra.lidar(z, y, num_classes=C),
    "tokens.measure": lambda z, _w, _y: tokens.measure(z.reshape(2, 4, 6, D), MASK[:4]),
    "tokens.curvature": lambda z, _w, _y: tokens.curvature(z.reshape(8, 6, D), MASK),
    "tokens.prompt_entropy": lambda z, _w, _y: tokens.prompt_entropy(z.reshape(8, 6, D), MASK),
    "tokens.dataset_entropy": lambda z, _w, _y: tokens.dataset_entropy(z.reshape(8, 6, D), MASK),
    "tokens.pool": lambda z, _w, _y: tokens.pool(z.reshape(8, 6, D), MASK),
    "theory.simplex_etf": lambda z, _w, _y: theory.simplex_etf(C, D) + jnp.mean(z),
    "losses.mutual_information_loss": SMOOTH["mutual_information_loss"],
    "losses.entropy_difference_loss": SMOOTH["entropy_difference_loss"],
}
EVERY = {**SMOOTH, **WHOLE, **MORE}
# Closed forms are numbers, and `check` reads values: neither has anything to lower.
LEFT_OUT = {"check", "theory.collapsed_entropy", "theory.collapsed_mir"}
LEFT_OUT |= {"theory.collapsed_mutual_information"}


def test_every_public_function_is_lowered_here():
    there = {
        name for name in mirjax.__all__ if inspect.isroutine(inspect.unwrap(getattr(mirjax, name)))
    }
    for module in (losses, spectra, theory, tokens):
        short = module.__name__.rpartition(".")[2]
        there |= {
            f"{short}.{name}"
            for name, value in vars(module).items()
            if not name.startswith("_")
            and inspect.isroutine(inspect.unwrap(value))
            and getattr(value, "__module__", "") == module.__name__
        }
    # What a private module offers under a second name of the same module is listed there.
    own = {name for name in there if "." not in name or _is_documented(name)}
    assert own - LEFT_OUT <= EVERY.keys(), own - LEFT_OUT - EVERY.keys()


def _is_documented(name):
    module, _, function = name.partition(".")
    return bool(inspect.getdoc(getattr(getattr(mirjax, module), function)))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_values(name, platform):
    assert_runs_there(lowered(EVERY[name], Z, W, Y, platform=platform), platform)


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "chance_interplay"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_gradients(name, platform):
    def total(z, w):
        return sum(jnp.sum(part) for part in jax.tree.leaves(SMOOTH[name](z, w, Y)))

    text = lowered(jax.grad(total, argnums=(0, 1), allow_int=True), Z, W, platform=platform)
    assert_runs_there(text, platform)


@pytest.mark.parametrize("n", [64, 256])
def test_a_step_on_an_accelerator_decomposes_nothing(n):
    z = jnp.zeros((n, 128))
    w, y = jnp.zeros((10, 128)), jnp.arange(n) % 10

    def loss(z, w):
        terms = losses.mutual_information_loss(z, w, y, method="auto")
        return terms + losses.entropy_difference_loss(z, w, y, method="auto")

    # The rows of ten classes span few dimensions, which a QR or an SVD of side 10 would find.
    sides = [min(shape[-2:]) for _, shape in decomposed(jax.grad(loss, argnums=(0, 1)), z, w)]
    assert max(sides, default=0) <= 10
    on_cpu = decomposed(jax.grad(loss, argnums=(0, 1)), z, w, platform="cpu")
    assert max(min(shape[-2:]) for _, shape in on_cpu) > 10


def test_the_limit_of_exact_decompositions(monkeypatch):
    z = jax.ShapeDtypeStruct((4000, 300), jnp.float32)
    w, y = jax.ShapeDtypeStruct((10, 300), jnp.float32), jnp.arange(4000) % 10

    def largest(**options):
        found = decomposed(lambda z, w: mirjax.dataset_interplay(z, w, y, **options), z, w)
        return max(min(shape[-2:]) for _, shape in found)

    # d times C is 3,000: below the limit on a CPU or GPU, above that on a TPU.
    assert largest() == 3000
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert largest() == 300
    assert largest(exact_side=3000) == 3000
    assert largest(method="exact") == 3000
    moments = mirjax.ClassMoments.zeros(3, 4).update(jnp.ones((2, 4)), jnp.arange(2))
    assert moments.interplay(jnp.ones((3, 4))).method == "exact"
    assert moments.interplay(jnp.ones((3, 4)), exact_side=11).method == "lanczos"
    with pytest.raises(ValueError, match="exact_side must be at least 0, got -1"):
        moments.interplay(jnp.ones((3, 4)), exact_side=-1)
