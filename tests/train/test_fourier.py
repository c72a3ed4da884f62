import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.modular.fourier import (
    excluded_logits,
    fourier_norms,
    frequency_shares,
    gini,
    key_frequencies,
    restricted_logits,
    sum_waves,
)
from train.modular.network import ModularTransformer
from train.modular.step import precise_cross_entropy

P = 11
GRID = np.stack(np.divmod(np.arange(P**2), P), axis=1).astype(np.int32)
LABELS = GRID.sum(1) % P


@pytest.mark.parametrize("p", [2, 6, 11])
def test_waves_are_orthonormal_and_span_all_functions_of_the_sum(p):
    waves = sum_waves(p).reshape(-1, p**2)
    waves = waves[np.abs(waves).max(1) > 0]
    np.testing.assert_allclose(waves @ waves.T, np.eye(p - 1), atol=1e-5)
    np.testing.assert_allclose(waves.sum(1), 0, atol=1e-4)
    a, b = np.divmod(np.arange(p**2), p)
    exact = jax.nn.one_hot((a + b) % p, p)
    assert float(jnp.sum(frequency_shares(exact, sum_waves(p)))) == pytest.approx(1, abs=1e-4)


def network_that_adds(frequencies, directions=64):
    """A transformer that computes the sum exactly, by hand.

    Attention is uniform: the last place gets the mean of cos, sin(2πka/p) over the two numbers, which is
    |cos(πk(a-b)/p)| times a unit vector of angle ±πk(a+b)/p. The MLP doubles the angle: Σ |v·e_j| e_{2j}
    over evenly spread directions e_j is |v| times the vector of twice the angle. The unembedding reads off
    cos(2πk(a+b-c)/p).
    """
    count = len(frequencies)
    width = 2 * count
    model = ModularTransformer(P, width, 1, rngs=nnx.Rngs(0))
    angle = 2 * np.pi * np.outer(np.arange(P), frequencies) / P
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(P, width)
    model.embedding[...] = jnp.asarray(np.vstack([circle, np.zeros(width)]), jnp.float32)
    model.positions[...] = jnp.zeros((3, width))
    model.query[...] = jnp.zeros((1, width, width))
    model.value[...] = model.output[...] = jnp.eye(width)[None]
    turn = np.pi * np.arange(directions) / directions
    hidden, back = (
        np.zeros((width, 2 * directions * count)),
        np.zeros((2 * directions * count, width)),
    )
    for i in range(count):
        for sign in (0, 1):
            columns = slice((2 * i + sign) * directions, (2 * i + sign + 1) * directions)
            hidden[2 * i : 2 * i + 2, columns] = (-1) ** sign * np.stack(
                [np.cos(turn), np.sin(turn)]
            )
            back[columns, 2 * i : 2 * i + 2] = np.stack(
                [np.cos(2 * turn), np.sin(2 * turn)], axis=1
            )
    model.hidden = nnx.Param(jnp.asarray(hidden, jnp.float32))
    model.hidden_bias = nnx.Param(jnp.zeros(hidden.shape[1]))
    # Large beside what attention left in the stream.
    model.back = nnx.Param(jnp.asarray(100 * back, jnp.float32))
    model.back_bias[...] = jnp.zeros(width)
    model.unembedding[...] = jnp.asarray(np.vstack([circle, np.zeros(width)]).T)
    return model


def test_measures_of_a_network_that_adds_by_hand():
    frequencies = np.array([1, 3])
    model = network_that_adds(frequencies)
    logits = model(jnp.asarray(GRID))[0][:, :P]
    assert np.array_equal(np.argmax(logits, 1), LABELS)
    waves = sum_waves(P)
    shares = np.asarray(frequency_shares(logits, waves))
    keys = key_frequencies(shares)
    assert np.array_equal(np.flatnonzero(keys) + 1, frequencies)
    assert shares[keys].sum() > 0.75
    assert np.all(shares[~keys] < 1e-3)

    def loss(logits):
        return float(jnp.mean(precise_cross_entropy(logits, LABELS)))

    # Its key frequencies alone answer, and without them nothing does.
    restricted = restricted_logits(logits, waves, keys)
    assert np.array_equal(np.argmax(restricted, 1), LABELS)
    assert loss(restricted) < 1e-6
    excluded = excluded_logits(logits, waves, keys)
    assert loss(excluded) > 0.8 * np.log(P)
    assert np.mean(np.argmax(excluded, 1) == LABELS) < 0.5
    np.testing.assert_allclose(
        restricted + excluded, logits + jnp.mean(logits, 0), rtol=1e-4, atol=1e-2
    )
    # Its embedding has two of five frequencies, of equal norm: Gini 3/5.
    norms = fourier_norms(model.embedding[...][:P])
    assert float(gini(norms)) == pytest.approx(0.6, abs=1e-3)


def test_key_frequencies_are_few_and_large():
    shares = np.array([0.3, 0.01, 0.2, 0.1, 0.1, 0.1, 0.1])
    assert np.flatnonzero(key_frequencies(shares)).tolist() == [0, 2, 3, 4, 5]
    assert np.flatnonzero(key_frequencies(shares, count=9)).tolist() == [0, 2, 3, 4, 5, 6]
    assert not key_frequencies(np.zeros(3)).any()


def test_gini():
    assert float(gini(jnp.ones(5))) == pytest.approx(0, abs=1e-6)
    assert float(gini(jnp.array([0.0, 0, 0, 1]))) == pytest.approx(0.75)
    assert float(gini(jnp.zeros(4))) == 0
    values = np.asarray(jax.random.uniform(jax.random.key(0), (20,)))
    by_hand = np.abs(np.subtract.outer(values, values)).sum() / (2 * 20**2 * np.mean(values))
    assert float(gini(jnp.asarray(values))) == pytest.approx(by_hand, rel=1e-5)
