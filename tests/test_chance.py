"""The level that permuted labels reach, and MIR adjusted for it."""

import functools

import jax
import numpy as np
import pytest

import mirjax
from tests.tolerances import assert_near


def test_batches_of_chance():
    rng = np.random.default_rng(11)
    z, w = rng.normal(size=(64, 12)).astype(np.float32), rng.normal(size=(6, 12)).astype(np.float32)
    y = (np.arange(64) % 6).astype(np.int32)
    chance = jax.jit(functools.partial(mirjax.chance_interplay, key=jax.random.key(0)))
    noise, related = chance(z, w, y), chance(2 * w[y] + z, w, y)
    assert noise.plain.mir > 0.2
    assert abs(noise.adjusted_mir) < 0.05
    assert abs(noise.chance.mutual_information - noise.plain.mutual_information) < 0.05
    assert 0.5 < related.adjusted_mir < related.plain.mir
    assert related.standard_error.mir > 0
    shared = related.plain.mutual_information - related.chance.mutual_information
    most = min(related.plain.entropy1, related.plain.entropy2) - related.chance.mutual_information
    assert_near(related.adjusted_mir, shared / most, 1e-6)
    # What is dropped takes no part in the permutations.
    weights = (np.arange(64) < 40).astype(np.float32)
    y = np.where(weights > 0, y, -1).astype(np.int32)
    z[40:] = np.nan
    masked = chance(z, w, y, weights=weights)
    assert np.isfinite(masked.chance.mir)
    assert_near(masked.chance.entropy2, masked.plain.entropy2, 1e-5)
    both = chance(np.stack([z, z]), np.stack([w, w]), np.stack([y, y]), weights=weights[None])
    assert_near(both.adjusted_mir, [masked.adjusted_mir] * 2, 1e-5)
    # A zero row is dropped too, and its label stays with it.
    z[40:], weights = 0, np.ones(64, np.float32)
    zeros = chance(z, w, y, weights=weights)
    assert_near(zeros.adjusted_mir, masked.adjusted_mir, 1e-5)
    # One class shares nothing by chance or otherwise.
    assert chance(z[:40], w, np.zeros(40, np.int32)).adjusted_mir == 0
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        mirjax.chance_interplay(z, w, y, key=jax.random.key(0), permutations=0)
