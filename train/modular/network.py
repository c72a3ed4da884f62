"""A one-layer transformer for sums of two numbers (Nanda et al. 2023, arXiv 2301.05217)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

TOKENS = 3


class ModularTransformer(nnx.Module):
    """Reads `a b =` and gives logits over all tokens at the last place.

    It has one block: causal attention and an MLP with ReLU, both added to the residual stream.
    There is no LayerNorm; positions are learned, and the unembedding has no bias and is not tied.
    All weights start normally distributed with standard deviation `width^-1/2` (the unembedding
    with `vocabulary^-1/2`). Only the MLP has biases, which start at 0.

    Args:
        modulus: p; the vocabulary is p numbers and `=`.
        width: width of the residual stream.
        heads: number of heads, of width `width / heads`.
        rngs: source of the initial weights.

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
        """The activations at the last position, by layer.

        These are the residual stream after attention (`attention`) and at the end (`stream`),
        `[n, width]`, and the hidden layer between them (`hidden`), `[n, 4 width]`. The last
        position sees all others, and no other one is read out: only there attention and MLP are
        needed.
        """
        numbers, equals = self.embedding[...][:-1], self.embedding[...][-1]
        places = self.positions[...]
        last = equals + places[2]
        query = jnp.einsum("d,hid->hi", last, self.query[...]) / math.sqrt(self.query.shape[1])
        # With one block, a number has the same key and value in all pairs: p rows, not p².
        rows = [numbers + places[0], numbers + places[1], last[None]]
        keys = [jnp.einsum("td,hid->thi", x, self.key[...]) for x in rows]
        scores = [jnp.einsum("hi,thi->th", query, key) for key in keys]
        values = [jnp.einsum("td,hid->thi", x, self.value[...]) for x in rows]
        # Of the numbers, each pair picks two rows; the row of `=` is that of all pairs.
        picked = [scores[0][pairs[:, 0]], scores[1][pairs[:, 1]]]
        picked.append(jnp.broadcast_to(scores[2], picked[0].shape))
        shares = jax.nn.softmax(jnp.stack(picked), axis=0)[..., None]
        mixed = shares[0] * values[0][pairs[:, 0]] + shares[1] * values[1][pairs[:, 1]]
        mixed += shares[2] * values[2]
        attended = last + jnp.einsum("nhi,hid->nd", mixed, self.output[...])
        hidden = jax.nn.relu(attended @ self.hidden[...] + self.hidden_bias[...])
        stream = attended + hidden @ self.back[...] + self.back_bias[...]
        return {"attention": attended, "hidden": hidden, "stream": stream}

    def __call__(self, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, modulus + 1]` and features `[n, width]` (the stream) of pairs `[n, 2]`."""
        features = self.activations(pairs)["stream"]
        return features @ self.unembedding[...], features

    @property
    def head(self) -> jax.Array:
        """Weights of the unembedding `[modulus + 1, width]`, one token per row."""
        return self.unembedding[...].T


class ModularNetwork:
    """The transformer as pure functions of its parameters."""

    def __init__(self, modulus: int, width: int, heads: int):
        self.modulus = modulus
        self._build = lambda rngs: ModularTransformer(modulus, width, heads, rngs=rngs)
        # The structure alone: no weights are made.
        self._graphdef = nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))[0]

    def init(self, key: jax.Array) -> tuple[Any, tuple[()]]:
        """Initial parameters, and an empty tuple: there is no other state."""
        return nnx.split(self._build(nnx.Rngs(key)))[1], ()

    def model(self, params: Any) -> ModularTransformer:
        """The module with these parameters."""
        return nnx.merge(self._graphdef, params)

    def forward(self, params: Any, pairs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits, features, head."""
        model = self.model(params)
        return *model(pairs), model.head
