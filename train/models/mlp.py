"""A multilayer perceptron for small images."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class MLP(nnx.Module):
    """Flattens, two hidden layers with ReLU, features of width `widths[-1]`, linear head."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: tuple[int, ...] = (256, 64),
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = (math.prod(image_shape), *widths)
        initializer = nnx.initializers.he_normal()
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, kernel_init=initializer, dtype=dtype, rngs=rngs)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """The output `[n, width]` of each hidden layer."""
        del train  # nothing here behaves differently in training
        x, found = images.reshape(len(images), -1), {}
        for number, layer in enumerate(self.layers, 1):
            x = found[f"layer{number}"] = nnx.relu(layer(x))
        return found

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        features = list(self.activations(images, train=train).values())[-1].astype(jnp.float32)
        return self.head(features), features
