"""A small convolutional network."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx


class ConvNet(nnx.Module):
    """Three 3 × 3 convolutions of stride 2 with batch norm and ReLU, average pool, linear head."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (32, 64, 128),
        momentum: float = 0.9,
        rngs: nnx.Rngs,
    ):
        sizes = (channels, *widths)
        self.convs = nnx.List(
            nnx.Conv(inputs, outputs, (3, 3), strides=2, use_bias=False, rngs=rngs)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(
            nnx.BatchNorm(width, momentum=momentum, rngs=rngs) for width in widths
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x), use_running_average=not train))
        features = jnp.mean(x, axis=(1, 2))
        return self.head(features), features
