"""Random crops and flips on the device, for a whole batch at once, keyed by the step."""

import jax
import jax.numpy as jnp
from jax import Array


def crop_and_flip(images: Array, key: Array, *, pad: int = 4, flip: bool = True) -> Array:
    """Reflect-pads, crops to the old size at a random place, and flips left to right half the time.

    Args:
        images: `[n, h, w, c]` of any dtype; each image is moved on its own.
        key: of the draws, one for all or `[n]`, one for each image. The same key gives the same result.
        pad: pixels on each side, less than the height and the width.
        flip: whether to flip at all.

    Returns:
        `[n, h, w, c]` of the same dtype.

    Raises:
        ValueError: the padding is as large as the image.
    """
    samples, height, width, _ = images.shape
    if not 0 <= pad < min(height, width):
        raise ValueError(f"pad must be in [0, {min(height, width)}) for images {images.shape}.")

    def draw(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        rows, columns, flips = jax.random.split(key, 3)
        top = jax.random.randint(rows, shape, 0, 2 * pad + 1)
        left = jax.random.randint(columns, shape, 0, 2 * pad + 1)
        return top, left, jax.random.bernoulli(flips, shape=shape)

    each = jax.vmap(lambda own: draw(own, ())) if key.ndim else lambda own: draw(own, (samples,))
    top, left, flipped = each(key)
    flipped &= flip
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    # Whole rows, then whole columns: two gathers of slices instead of one slice an image.
    row = top[:, None] + jnp.arange(height)[None, :]
    column = jnp.where(
        flipped[:, None], width - 1 - jnp.arange(width)[None, :], jnp.arange(width)[None, :]
    )
    column = left[:, None] + column
    picked = jnp.take_along_axis(padded, row[:, :, None, None], axis=1)
    return jnp.take_along_axis(picked, column[:, None, :, None], axis=2)
