import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.modular.network import ModularTransformer


def by_numpy(weights, pairs, modulus):
    """The whole network in float64, all places, with its causal mask."""
    tokens = np.concatenate([pairs, np.full((len(pairs), 1), modulus)], axis=1)
    x = weights["embedding"][tokens] + weights["positions"]
    mixed = np.zeros_like(x)
    for q, k, v, o in zip(*(weights[n] for n in ("query", "key", "value", "output")), strict=True):
        queries, keys, values = x @ q.T, x @ k.T, x @ v.T
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(len(q))
        scores = np.where(np.tril(np.ones((3, 3), bool)), scores, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed += (share / share.sum(-1, keepdims=True)) @ values @ o
    x = x + mixed
    hidden = np.maximum(x @ weights["hidden"] + weights["hidden_bias"], 0)
    x = x + hidden @ weights["back"] + weights["back_bias"]
    return (x @ weights["unembedding"])[:, -1], x[:, -1]


def parameters(model):
    return {
        name: np.asarray(value[...], np.float64)
        for name, value in vars(model).items()
        if isinstance(value, nnx.Param)
    }


def test_logits_equal_an_independent_forward_pass():
    model = ModularTransformer(7, 16, 4, rngs=nnx.Rngs(0))
    model.hidden_bias[...] = jax.random.normal(jax.random.key(1), (64,))
    model.back_bias[...] = jax.random.normal(jax.random.key(2), (16,))
    pairs = np.stack(np.divmod(np.arange(49), 7), axis=1).astype(np.int32)
    logits, features = model(jnp.asarray(pairs))
    expected_logits, expected_features = by_numpy(parameters(model), pairs, 7)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, expected_features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features @ model.head.T, logits, rtol=1e-4, atol=1e-5)


def test_parameters_and_their_spread_are_as_published():
    model = ModularTransformer(113, rngs=nnx.Rngs(0))
    found = parameters(model)
    assert {name: value.shape for name, value in found.items()} == {
        "embedding": (114, 128),
        "positions": (3, 128),
        "query": (4, 32, 128),
        "key": (4, 32, 128),
        "value": (4, 32, 128),
        "output": (4, 32, 128),
        "hidden": (128, 512),
        "hidden_bias": (512,),
        "back": (512, 128),
        "back_bias": (128,),
        "unembedding": (128, 114),
    }
    for name, value in found.items():
        if name.endswith("bias"):
            assert not value.any()
            continue
        expected = 1 / math.sqrt(114 if name == "unembedding" else 128)
        assert value.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * value.size))
        assert abs(value.mean()) < 5 * expected / math.sqrt(value.size)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads = 3 must divide width = 16"):
        ModularTransformer(7, 16, 3, rngs=nnx.Rngs(0))
