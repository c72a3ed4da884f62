"""Progress measures of modular addition (Nanda et al. 2023, arXiv 2301.05217, section 5 and
appendix).

A network that adds modulo p writes its logits with a few frequencies k, as waves
`cos(2πk(a+b-c)/p)`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array


def sum_waves(modulus: int) -> np.ndarray:
    """Waves of `a + b`: `[K, 2, p²]`, cosine and sine of `2πk(a+b)/p` for k = 1 to `K = p // 2`.

    Over all pairs, in the order `p a + b`, they are orthonormal and orthogonal to constants. (If p
    is even, the sine of the last frequency is 0.)
    """
    a, b = np.divmod(np.arange(modulus**2), modulus)
    k = np.arange(1, modulus // 2 + 1)[:, None]
    # The remainder is taken of whole numbers, so that large angles lose no digits.
    angle = 2 * np.pi / modulus * ((k * (a + b)) % modulus)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(2) / modulus
    # Its cosine alternates between 1 and -1, with twice the power of the others.
    if modulus % 2 == 0:
        waves[-1] *= [[np.sqrt(0.5)], [0.0]]
    return waves.astype(np.float32)


def frequency_shares(logits: Array, waves: Array) -> Array:
    """The share of the logits' variance over pairs that each frequency of `a + b` carries, `[K]`.

    Args:
        logits: `[p², p]`, the logits of all pairs in the order `p a + b`.
        waves: the waves from `sum_waves`.
    """
    varied = logits - jnp.mean(logits, axis=0)
    power = jnp.sum(jnp.square(jnp.einsum("kwn,nc->kwc", waves, varied)), axis=(1, 2))
    total = jnp.sum(jnp.square(varied))
    return power / jnp.where(total > 0, total, 1.0)


def key_frequencies(shares: np.ndarray, *, count: int = 5, least: float = 0.02) -> np.ndarray:
    """A mask `[K]` of the frequencies in use: the `count` largest shares, if at least `least`."""
    shares = np.asarray(shares)
    # Ranks by a stable sort: of equal shares the lower frequency comes first.
    rank = np.argsort(np.argsort(-shares, kind="stable"), kind="stable")
    return (rank < count) & (shares >= least)


def restricted_logits(logits: Array, waves: Array, keys: Array) -> Array:
    """The logits reduced to their mean and the key frequencies of `a + b`."""
    return jnp.mean(logits, axis=0) + _part(logits, waves, keys)


def excluded_logits(logits: Array, waves: Array, keys: Array) -> Array:
    """The logits without the key frequencies of `a + b`."""
    return logits - _part(logits, waves, keys)


def _part(logits: Array, waves: Array, keys: Array) -> Array:
    weights = jnp.einsum("kwn,nc->kwc", waves, logits) * jnp.asarray(keys)[:, None, None]
    return jnp.einsum("kwn,kwc->nc", waves, weights)


def fourier_norms(weights: Array) -> Array:
    """Norms `[K]` of the Fourier components of weights `[p, ...]` over tokens, from k = 1 on."""
    # Real weights: negative frequencies repeat the positive ones.
    spectrum = jnp.fft.rfft(weights.reshape(len(weights), -1), axis=0)
    return jnp.linalg.norm(spectrum[1:], axis=1)


def gini(values: Array) -> Array:
    """Gini coefficient of non-negative numbers: 0 if all are equal, near 1 if one has all."""
    values = jnp.sort(values)
    n = len(values)
    total = jnp.sum(values)
    ranks = jnp.arange(1, n + 1)
    return jnp.sum((2 * ranks - n - 1) * values) / (n * jnp.where(total > 0, total, 1.0))
