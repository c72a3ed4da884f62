"""WideResNet (Zagoruyko & Komodakis 2016) in the variant of the semi-supervised literature."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

LEAK = 0.1  # slope of the leaky ReLUs below zero


def _conv(
    inputs: int, outputs: int, size: int, strides: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    # Fixed padding, so that strided layers see the same pixels as in other frameworks.
    pad = (size - 1) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=strides,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        # He initialisation for leaky ReLUs.
        kernel_init=nnx.initializers.variance_scaling(2 / (1 + LEAK**2), "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Two 3 × 3 convolutions, each after batch norm and leaky ReLU, and a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        *,
        momentum: float,
        first: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm1 = nnx.BatchNorm(inputs, momentum=momentum, dtype=dtype, rngs=rngs)
        self.conv1 = _conv(inputs, outputs, 3, strides, dtype, rngs)
        self.norm2 = nnx.BatchNorm(outputs, momentum=momentum, dtype=dtype, rngs=rngs)
        self.conv2 = _conv(outputs, outputs, 3, 1, dtype, rngs)
        self.shortcut = (
            None if inputs == outputs else _conv(inputs, outputs, 1, strides, dtype, rngs)
        )
        # In the first block alone the shortcut branches off after the activation.
        self.first = first

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        active = nnx.leaky_relu(self.norm1(x, use_running_average=not train), LEAK)
        if self.first:
            x = active
        y = self.norm2(self.conv1(active), use_running_average=not train)
        y = self.conv2(nnx.leaky_relu(y, LEAK))
        if self.shortcut is not None:
            x = self.shortcut(x if self.first else active)
        return x + y


class WideResNet(nnx.Module):
    """WideResNet-`depth`-`width`; its `64 · width` features are the global average pool.

    Args:
        channels: number of channels of the images.
        num_classes: number of classes.
        depth: number of layers, `6 k + 4` for k blocks in each of the three stages.
        width: factor by which the base widths 16, 32 and 64 are multiplied.
        momentum: weight of the old statistics in batch norm. The published setting is 0.999, which
            needs thousands of steps before evaluation means anything; 0.9 suits short runs.
        dtype: type of the convolutions; weights, batch statistics and the head are float32.
        rngs: source of the initial weights.

    Raises:
        ValueError: the depth is not `6 k + 4`.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        depth: int = 28,
        width: int = 2,
        *,
        momentum: float = 0.9,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 k + 4 (10, 16, 22, 28, ...), got {depth}.")
        widths = (16 * width, 32 * width, 64 * width)
        self.stem = _conv(channels, 16, 3, 1, dtype, rngs)
        blocks, inputs = [], 16
        for stage, outputs in enumerate(widths):
            for index in range((depth - 4) // 6):
                # The later stages start with half the resolution.
                strides = 2 if stage > 0 and index == 0 else 1
                first = not blocks
                blocks.append(
                    Block(
                        inputs,
                        outputs,
                        strides,
                        momentum=momentum,
                        first=first,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.norm = nnx.BatchNorm(inputs, momentum=momentum, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(
            inputs, num_classes, kernel_init=nnx.initializers.glorot_normal(), rngs=rngs
        )

    def activations(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Maps `[n, h, w, channels]` after the stem, each block, and the last batch norm."""
        x = self.stem(images)
        maps = {"stem": x}
        for number, block in enumerate(self.blocks, 1):
            x = maps[f"block{number}"] = block(x, train=train)
        maps["last"] = nnx.leaky_relu(self.norm(x, use_running_average=not train), LEAK)
        return maps

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits `[n, num_classes]` and features `[n, d]` of images `[n, h, w, c]`."""
        # The head and what is measured are float32, whatever the precision of the convolutions.
        last = self.activations(images, train=train)["last"]
        features = jnp.mean(last.astype(jnp.float32), axis=(1, 2))
        return self.head(features), features
