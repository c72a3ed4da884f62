"""A multilayer perceptron for small images."""

import itertools
import math

import jax
from flax import nnx


class MLP(nnx.Module):
    """Flattens, two hidden layers with ReLU, features of width `widths[-1]`, linear head."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: tuple[int, ...] = (256, 64),
        rngs: nnx.Rngs,
    ):
        sizes = (math.prod(image_shape), *widths)
        initializer = nnx.initializers.he_normal()
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, kernel_init=initializer, rngs=rngs)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        del train  # nothing here behaves differently in training
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x), x
