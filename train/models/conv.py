"""A small convolutional network."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class ConvNet(nnx.Module):
    """Three 3 × 3 convolutions of stride 2 with batch norm and ReLU, average pool, linear head."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (32, 64, 128),
        momentum: float = 0.9,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = (channels, *widths)
        self.convs = nnx.List(
            nnx.Conv(inputs, outputs, (3, 3), strides=2, use_bias=False, dtype=dtype, rngs=rngs)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(
            nnx.BatchNorm(width, momentum=momentum, dtype=dtype, rngs=rngs) for width in widths
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """The output `[n, h, w, width]` of each convolution, after batch norm and ReLU."""
        x, outputs = images, {}
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = outputs[f"conv{number}"] = nnx.relu(norm(conv(x), use_running_average=not train))
        return outputs

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        # The head and what is measured are float32, whatever the precision of the convolutions.
        last = list(self.activations(images, train=train).values())[-1]
        features = jnp.mean(last.astype(jnp.float32), axis=(1, 2))
        return self.head(features), features
