"""Brackets contain the entropy whatever was split off, however badly: random and adversarial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirjax._dataset.bounds import entropy_bounds, split
from mirjax._linalg.entropy_range import entropy_range

SIDE, RANK = 24, 5


def spectra(rng):
    """Named unit-trace spectra of length SIDE."""
    decay = np.arange(1, SIDE + 1.0)
    shapes = {
        "flat": np.ones(SIDE),
        "noise": rng.chisquare(3, SIDE),
        "slow decay": 1 / decay,
        "fast decay": np.exp(-decay),
        "rank one": decay == 1,
        "rank one and dust": np.where(decay == 1, 1.0, 1e-7 * rng.uniform(size=SIDE)),
        "low rank": decay <= 3,
        "half": decay <= SIDE // 2,
        "two levels": np.where(decay <= 4, 1.0, 0.01),
        "one huge": np.where(decay == 1, 50.0, 1.0),
        "cliff at the rank": np.where(decay <= RANK, 1.0, 1e-4),
        "collapse": np.where(decay <= 9, 1 / 9 * (1 - 1 / 81), np.where(decay == 10, 1 / 81, 0)),
        "geometric": 2.0**-decay,
        "random power": rng.uniform(size=SIDE) ** rng.uniform(0, 20),
    }
    return {name: np.asarray(s, float) / np.sum(s) for name, s in shapes.items()}


def bases(rng, matrix, vectors):
    """Orthonormal bases from useless to converged."""
    start = rng.normal(size=(SIDE, RANK))
    perturbed = vectors[:, ::-1][:, :RANK] + 10 ** rng.uniform(-8, 0) * start
    choices = {
        "random": start,
        "one step": matrix @ start,
        "converged": np.linalg.matrix_power(matrix, 6) @ start,
        "nearly exact": perturbed,
        "bottom": vectors[:, :RANK],
    }
    return {name: np.linalg.qr(b)[0] for name, b in choices.items()}


def cases():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for shape, values in spectra(rng).items():
            rotation = np.linalg.qr(rng.normal(size=(SIDE, SIDE)))[0]
            order = np.sort(values)
            matrix = rotation * order @ rotation.T
            positive = order[order > 0]
            entropy = -np.sum(positive * np.log(positive))
            for name, basis in bases(rng, matrix, rotation).items():
                yield f"{shape}, {name}", matrix, basis, entropy


CASES = list(cases())
NAMES = [name for name, *_ in CASES]
MATRICES, BASES, ENTROPIES = (np.stack(part) for part in list(zip(*CASES, strict=True))[1:])


def bracket(matrix, basis, loosen, *, exact):
    image = matrix @ basis
    theta, turn = jnp.linalg.eigh(basis.T @ image)
    leaks = jnp.sum(jnp.square(image @ turn), axis=0) - jnp.square(theta)
    purity = jnp.sum(jnp.square(matrix)) * loosen
    return entropy_bounds(split(theta, leaks, SIDE, purity, purity_is_exact=exact))


def test_there_are_enough_cases():
    assert len(CASES) >= 500


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_entropy_lies_inside(dtype, exact, x64):
    loosen = np.asarray(1.0 if exact else 1.7, dtype)
    run = jax.jit(jax.vmap(lambda m, b: bracket(m, b, loosen, exact=exact)))
    lower, upper = run(MATRICES.astype(dtype), BASES.astype(dtype))
    assert lower.dtype == dtype
    outside = (np.asarray(lower) > ENTROPIES) | (np.asarray(upper) < ENTROPIES)
    assert not outside.any(), [n for n, o in zip(NAMES, outside, strict=True) if o]


def test_the_bracket_is_tight_where_it_can_be(x64):
    run = jax.jit(jax.vmap(lambda m, b: bracket(m, b, 1.0, exact=True)))
    width = np.subtract(*reversed(run(MATRICES, BASES)))
    for name, w in zip(NAMES, width, strict=True):
        if name in ("cliff at the rank, converged", "low rank, converged", "rank one, converged"):
            assert w < 5e-3, name
        if name.startswith("flat"):
            assert w < 1e-7, name
    # All of them say more than 0 <= H <= log N.
    assert np.mean(width) < 0.2 * np.log(SIDE)


def test_entropy_range_is_attained_at_its_ends(x64):
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.dirichlet(10 ** rng.uniform(-2, 2) * np.ones(7))
        entropy = -np.sum(values * np.log(np.maximum(values, 1e-300)))
        lower, upper = entropy_range(1 - np.sum(values**2), np.sum(values**2), 7)
        assert lower - 1e-12 <= entropy <= upper + 1e-12
    one_large = np.array([0.6] + [0.4 / 6] * 6)
    entropy = -np.sum(one_large * np.log(one_large))
    assert entropy_range(1 - np.sum(one_large**2), np.sum(one_large**2), 7)[1] == pytest.approx(
        entropy, abs=1e-12
    )
    flat = np.array([0.25] * 4 + [0.0] * 3)
    assert entropy_range(1 - np.sum(flat**2), np.sum(flat**2), 7)[0] == pytest.approx(
        np.log(4), abs=1e-12
    )
