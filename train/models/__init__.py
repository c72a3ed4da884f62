"""Networks that return `(logits, features)`; the last layer is always `model.head`.

`model.activations(images, train=)` returns the output of every layer, that of the features last.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from train.models.conv import ConvNet as ConvNet
from train.models.mlp import MLP as MLP
from train.models.wide_resnet import WideResNet as WideResNet

MODELS = "mlp, conv, wrn-DEPTH-WIDTH (for instance wrn-28-2)"


def builder(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    batch_norm_momentum: float = 0.9,
    dtype: DTypeLike = jnp.float32,
) -> Callable[[nnx.Rngs], nnx.Module]:
    """A function that makes the named model for images of this shape, computing in `dtype`.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name == "mlp":
        return lambda rngs: MLP(image_shape, num_classes, dtype=dtype, rngs=rngs)
    if name == "conv":
        return lambda rngs: ConvNet(
            image_shape[-1], num_classes, momentum=batch_norm_momentum, dtype=dtype, rngs=rngs
        )
    # The family of WideResNets: depth and width are part of the name.
    family, *sizes = name.split("-")
    if family == "wrn" and len(sizes) == 2 and all(size.isdigit() for size in sizes):
        depth, width = map(int, sizes)
        return lambda rngs: WideResNet(
            image_shape[-1],
            num_classes,
            depth,
            width,
            momentum=batch_norm_momentum,
            dtype=dtype,
            rngs=rngs,
        )
    raise ValueError(f"model {name!r} is unknown. There are: {MODELS}.")


def is_convolutional(name: str) -> bool:
    """Whether the model is made of convolutions, which XLA's CPU backend slows in loops."""
    return name != "mlp"
