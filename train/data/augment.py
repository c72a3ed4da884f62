"""Random crops and flips of a whole batch at once, on the device."""

import jax
import jax.numpy as jnp
from jax import Array


def crop_and_flip(images: Array, key: Array, *, pad: int = 4, flip: bool = True) -> Array:
    """Reflect-pads, crops to the old size at a random place, and flips left to right half the time.

    Args:
        images: `[n, h, w, c]` of any dtype; each image is moved independently.
        key: one key for all images, or `[n]` keys, one for each image. The same key gives the same
            result.
        pad: pixels that are added on each side, fewer than the height and the width.
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

    # With a key for each image, what it gets does not depend on its place in the batch.
    draw_all = jax.vmap(lambda k: draw(k, ())) if key.ndim else lambda k: draw(k, (samples,))
    top, left, flipped = draw_all(key)
    # Drawn even if unused, so that the crops do not depend on `flip`.
    flipped &= flip
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    # Whole rows, then whole columns: two gathers instead of one slice per image.
    row = top[:, None] + jnp.arange(height)[None, :]
    column = jnp.where(
        flipped[:, None], width - 1 - jnp.arange(width)[None, :], jnp.arange(width)[None, :]
    )
    column = left[:, None] + column
    picked = jnp.take_along_axis(padded, row[:, :, None, None], axis=1)
    return jnp.take_along_axis(picked, column[:, None, :, None], axis=2)
