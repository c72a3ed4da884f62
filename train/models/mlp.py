"""A multilayer perceptron for small images."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class MLP(nnx.Module):
    """Flattened images, hidden layers with ReLU (features are the last one), and a linear head."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: tuple[int, ...] = (256, 64),
        dtype: DTypeLike = jnp.float32,
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
        x, outputs = images.reshape(len(images), -1), {}
        for number, layer in enumerate(self.layers, 1):
            x = outputs[f"layer{number}"] = nnx.relu(layer(x))
        return outputs

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        # The head and what is measured are float32, whatever the precision of the layers.
        features = list(self.activations(images, train=train).values())[-1].astype(jnp.float32)
        return self.head(features), features
