"""A one-layer transformer for sums of two numbers (Nanda et al. 2023, arXiv 2301.05217)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

TOKENS = 3


class ModularTransformer(nnx.Module):
    """Reads `a b =` and gives logits over all tokens at the last place.

    One block: causal attention and an MLP with ReLU, both added to the residual stream; no LayerNorm,
    learned positions, unembedding without bias and not tied. All weights are normal: of standard
    deviation `width^-1/2`, the unembedding of `vocabulary^-1/2`; biases (of the MLP alone) start at 0.

    Args:
        modulus: p; the vocabulary is p numbers and `=`.
        width: of the residual stream.
        heads: of `width / heads` each.
        rngs: for the initial weights.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, modulus: int, width: int = 128, heads: int = 4, *, rngs: nnx.Rngs):
        if heads < 1 or width % heads:
            raise ValueError(f"heads = {heads} must divide width = {width}.")
        vocabulary, hidden, inner = modulus + 1, 4 * width, width // heads
        self.modulus = modulus

        def normal(*shape: int, scale: float = width**-0.5) -> nnx.Param:
            return nnx.Param(scale * jax.random.normal(rngs.params(), shape))

        self.embedding = normal(vocabulary, width)
        self.positions = normal(TOKENS, width)
        self.query = normal(heads, inner, width)
        self.key = normal(heads, inner, width)
        self.value = normal(heads, inner, width)
        self.output = normal(heads, inner, width)
        self.hidden = normal(width, hidden)
        self.hidden_bias = nnx.Param(jnp.zeros(hidden))
        self.back = normal(hidden, width)
        self.back_bias = nnx.Param(jnp.zeros(width))
        self.unembedding = normal(width, vocabulary, scale=vocabulary**-0.5)

    def activations(self, pairs: jax.Array) -> dict[str, jax.Array]:
        """The residual stream at the last place `[n, width]`, and the hidden layer `[n, 4 width]`.

        The last place sees all others, and no other place is read out: with one block, attention and MLP
        are needed there alone.
        """
        equals = jnp.full((len(pairs), 1), self.modulus, pairs.dtype)
        tokens = jnp.concatenate([pairs, equals], axis=1)
        x = self.embedding[...][tokens] + self.positions[...]
        last = x[:, -1]
        query = jnp.einsum("nd,hid->nhi", last, self.query[...])
        key = jnp.einsum("ntd,hid->nhti", x, self.key[...])
        value = jnp.einsum("ntd,hid->nhti", x, self.value[...])
        scores = jnp.einsum("nhi,nhti->nht", query, key) / math.sqrt(self.query.shape[1])
        mixed = jnp.einsum("nht,nhti->nhi", jax.nn.softmax(scores), value)
        attended = last + jnp.einsum("nhi,hid->nd", mixed, self.output[...])
        hidden = jax.nn.relu(attended @ self.hidden[...] + self.hidden_bias[...])
        stream = attended + hidden @ self.back[...] + self.back_bias[...]
        return {"attention": attended, "hidden": hidden, "stream": stream}

    def __call__(self, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, modulus + 1]` and features `[n, width]` (the stream) of pairs `[n, 2]`."""
        features = self.activations(pairs)["stream"]
        return features @ self.unembedding[...], features

    @property
    def head(self) -> Any:
        """`[modulus + 1, width]`, one token a row."""
        return self.unembedding[...].T
