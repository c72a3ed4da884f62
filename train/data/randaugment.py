"""RandAugment and Cutout on the device: the strong augmentation of FixMatch and FreeMatch.

Pillow is the reference for every operation. The whole batch goes through each of three families -
moves, tones and blends - which leave an image as it is if its operation is of another family.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Ranges of the magnitudes, in the units of Pillow: degrees, a slope, a share of the width or the
# height, bits, a threshold or a factor. Operations without a magnitude get 0.
_SHIFTS = ("ShearX", "ShearY", "TranslateX", "TranslateY")
_MOVES = {"Rotate": (-30, 30)} | dict.fromkeys(_SHIFTS, (-0.3, 0.3))
_TONES = {"AutoContrast": (0, 0), "Equalize": (0, 0), "Posterize": (4, 8), "Solarize": (0, 256)}
_BLENDS = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.05, 0.95))
RANGES = dict(sorted((_MOVES | _TONES | _BLENDS | {"Identity": (0, 0)}).items()))
OPERATIONS = tuple(RANGES)
CUTOUT_RANGE = (0, 0.5)  # sides of the squares as shares of the width
CUTOUT_COLOUR = (125, 123, 114)

_ONE = 1 << 16  # Pillow's coordinates have 16 bits after the point.
_ANGLES = 16  # entries of the table of sines and cosines per degree


def strong(images: Array, keys: Array, *, operations: int = 3) -> Array:
    """Applies random operations of random magnitudes, one after another, and then Cutout.

    Args:
        images: `[n, h, w, c]` uint8, with one channel or three.
        keys: `[n]` keys of `jax.random`, one per image, which alone decide what is done to that
            image.
        operations: number of operations per image, drawn with replacement.

    Returns:
        `[n, h, w, c]` uint8.

    Raises:
        ValueError: the images, the keys or the number of operations are not as above.
    """
    _check(images)
    count, height, width, _ = images.shape
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != (count,):
        raise ValueError(
            f"keys must be {count} typed keys, one per image, got {keys.dtype} of shape "
            f"{keys.shape}. Make them by jax.random.split(jax.random.key(seed), {count})."
        )
    if operations < 0:
        raise ValueError(f"operations must be at least 0, got {operations}.")
    indices, magnitudes, sizes, centres = draw(keys, operations=operations)
    # A scan, so that the operations are compiled once and not once for each turn.
    turns = indices.T, magnitudes.T
    images, _ = lax.scan(lambda now, turn: (apply(now, *turn), None), jnp.asarray(images), turns)
    return cutout(images, sizes, _times(centres, np.array([[width, height]], np.float32)))


def draw(keys: Array, *, operations: int = 3) -> tuple[Array, Array, Array, Array]:
    """Draws uniformly, and independently for each of n keys.

    Returns:
        Indices into `OPERATIONS`, `[n, operations]`; their magnitudes, `[n, operations]`; sides of
        the squares to cut out, `[n]`, as shares of the width; centres, `[n, 2]`, as shares of the
        width and height.
    """

    def one(key):
        names, fractions = jax.random.split(key)
        index = jax.random.randint(names, (operations,), 0, len(OPERATIONS))
        return index, jax.random.uniform(fractions, (operations + 3,))

    index, fraction = jax.vmap(one)(keys)
    low, high = jnp.asarray(list(RANGES.values()), jnp.float32).T
    magnitude = low[index] + _times(fraction[:, 3:], high[index] - low[index])
    return index, magnitude, CUTOUT_RANGE[1] * fraction[:, 0], fraction[:, 1:3]


def apply(images: Array, operations: Array, magnitudes: Array) -> Array:
    """Applies one operation to each image as Pillow does, for sides of up to 1,000 pixels.

    Only rotations can differ, in single pixels of fewer than one image in 10,000: the sines have
    fewer digits than Pillow's.

    Args:
        images: `[n, h, w, c]` uint8, with one channel or three.
        operations: `[n]` int32, indices into `OPERATIONS`.
        magnitudes: `[n]` float32, in the units of the operation and within its range.
    """
    _check(images)

    def family(images, index):
        # Branches in a loop, because XLA would otherwise fuse the families into one slow loop.
        return lax.switch(index, (_moved, _toned, _blended), images, operations, magnitudes), None

    return lax.scan(family, jnp.asarray(images), jnp.arange(3))[0]


def cutout(images: Array, sizes: Array, centres: Array) -> Array:
    """Fills a square of each image with grey, as far as it lies inside.

    The first column is the integer part of the centre minus half the side, and at least 0. The last
    one, which is filled too, is the integer part of the first plus the side. The same holds for
    rows.

    Args:
        images: `[n, h, w, c]` uint8, with one channel or three.
        sizes: `[n]` float32, sides as shares of the width; 0 leaves the image as it is.
        centres: `[n, 2]` float32, column and row of the centres, in pixels.
    """
    _check(images)
    _, height, width, channels = images.shape
    side = _times(sizes, width)[:, None]
    first = jnp.floor(jnp.maximum(centres - side / 2, 0))
    last = jnp.floor(first + side)
    column, row = (jnp.arange(length, dtype=jnp.float32)[None, :] for length in (width, height))
    across = (column >= first[:, :1]) & (column <= last[:, :1]) & (side > 0)
    down = (row >= first[:, 1:]) & (row <= last[:, 1:])
    colour = CUTOUT_COLOUR if channels == 3 else [round(sum(CUTOUT_COLOUR) / 3)]
    inside = down[:, :, None, None] & across[:, None, :, None]
    return jnp.where(inside, np.array([[[colour]]], np.uint8), images)


def _check(images):
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 of shape [n, h, w, c] with c of 1 or 3, got {images.dtype} of "
            f"shape {images.shape}. Augment them before they are scaled to floats."
        )


def _is(operations, *names):
    return functools.reduce(jnp.logical_or, (operations == OPERATIONS.index(x) for x in names))


def _times(x, y):
    # The clip keeps compilers from fusing the product with a sum, which would leave out a rounding.
    return jnp.clip(x * y, -65536, 65536)


def _round(x):
    # Half a unit is not added, since that sum would be rounded itself.
    whole = jnp.floor(x)
    return jnp.where(x - whole >= 0.5, whole + 1, whole).astype(jnp.int32)


def _moved(images, operations, magnitudes):
    """Rotations, shears and translations, with the nearest pixel like Pillow, and black outside."""
    samples, height, width, channels = images.shape
    column, row = jnp.arange(width)[None, None, :], jnp.arange(height)[None, :, None]
    affine = [x[:, None, None] for x in _affine(height, width, operations, magnitudes)]
    one, x_of_row, y_of_column, x_first, y_first = affine
    # In fixed-point numbers, as Pillow computes it, so that the same pixel is the nearest.
    x = (x_first + x_of_row * row + one * column) >> 16
    y = (y_first + one * row + y_of_column * column) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = jnp.where(inside, y * width + x, 0).reshape(samples, height * width, 1)
    pixels = images.reshape(samples, height * width, channels)
    picked = jnp.take_along_axis(pixels, index, axis=1, mode="promise_in_bounds")
    new = jnp.where(inside[..., None], picked.reshape(images.shape), 0)
    return jnp.where(_is(operations, *_MOVES)[:, None, None, None], new, images)


def _affine(height, width, operations, magnitudes):
    """Coefficients `[n]` of the source coordinates, in units of 1 / 65,536 pixel.

    They are how far a source moves per pixel along its axis, x per row, y per column, and x and y
    of the source of the first pixel.
    """

    def along(axis, length):
        shear, move = _is(operations, "Shear" + axis), _is(operations, "Translate" + axis)
        first = jnp.where(shear, _round(magnitudes * (_ONE // 2)), 0)
        first = first + jnp.where(move, _ONE * _share(magnitudes, length), 0) + _ONE // 2
        return jnp.where(shear, _round(magnitudes * _ONE), 0), first

    (x_of_row, x_first), (y_of_column, y_first) = along("X", width), along("Y", height)
    straight = _ONE, x_of_row, y_of_column, x_first, y_first
    pairs = zip(_rotation(height, width, magnitudes), straight, strict=True)
    return [jnp.where(_is(operations, "Rotate"), *pair) for pair in pairs]


def _share(magnitudes, length):
    """The product in pixels, rounded; in integers, because float32 has too few digits."""
    scaled = magnitudes * (1 << 20)
    whole = jnp.floor(scaled)
    rest = jnp.floor((scaled - whole) * length).astype(jnp.int32)
    return (whole.astype(jnp.int32) * length + rest + (1 << 19)) >> 20


def _rotation(height, width, degrees):
    """`_affine` of rotations, by the nearest angle in a table and a small angle on top of it."""
    nearest = jnp.clip(_round(degrees * _ANGLES), -30 * _ANGLES, 30 * _ANGLES)
    rest = (degrees - nearest.astype(jnp.float32) / _ANGLES) * (np.pi / 180)
    sin, sin_rest, cos, cos_rest = jnp.asarray(_sines_and_cosines())[nearest + 30 * _ANGLES].T
    # The small angle by its series, of which these terms are enough for float32.
    rise, fall = rest - rest**3 / 6, rest**2 / 2
    sin_more = sin_rest + (cos + cos_rest) * rise - sin * fall
    cos_more = cos_rest - (sin + sin_rest) * rise - cos * fall

    def carried(whole, rest):
        return (whole + jnp.floor(rest)).astype(jnp.int32), rest - jnp.floor(rest)

    cosine, sine, minus = carried(cos, cos_more), carried(sin, sin_more), carried(-sin, -sin_more)

    def first(length, of_column, of_row):
        # In halves: it is half a pixel from the corner and turned about the centre.
        whole = _ONE * length - (width - 1) * of_column[0] - (height - 1) * of_row[0]
        rest = (width - 1) * of_column[1] + (height - 1) * of_row[1]
        return (whole + 1 - jnp.ceil(rest).astype(jnp.int32)) >> 1

    slopes = (whole + _round(rest) for whole, rest in (cosine, minus, sine))
    return *slopes, first(width, cosine, minus), first(height, sine, cosine)


@functools.cache
def _sines_and_cosines():
    """`[angles, 4]`: sine and cosine times 65,536, both as an integer part and a rest."""
    angle = np.radians(np.arange(-30 * _ANGLES, 30 * _ANGLES + 1) / _ANGLES)
    exact = _ONE * np.round(np.stack([np.sin(angle), np.cos(angle)], axis=1), 15)
    return np.stack([np.floor(exact), exact % 1], axis=2).reshape(-1, 4).astype(np.float32)


def _toned(images, operations, magnitudes):
    """AutoContrast, Equalize, Posterize and Solarize."""
    samples, height, width, channels = images.shape
    # Histograms of all images and channels in one array.
    table = jnp.arange(samples * channels).reshape(samples, 1, 1, channels)
    place = images.astype(jnp.int32) + 256 * table
    counts = jnp.zeros(samples * channels * 256, jnp.int32)
    counts = counts.at[place].add(1, mode="promise_in_bounds").reshape(samples, channels, 256)
    below = (lax.cumsum(counts, axis=2) - counts).reshape(-1)

    value = jnp.arange(256)[None, None]
    low = jnp.min(jnp.where(counts > 0, value, 255), axis=2)
    high = jnp.max(jnp.where(counts > 0, value, 0), axis=2)
    span = high - low
    short = jnp.asarray(_short_quotients())[jnp.where(span > 0, high * (high - 1) // 2 + low, 0)]
    last = jnp.sum(jnp.where(value == high[..., None], counts, 0), axis=2)
    step = (height * width - last) // 255
    low, span, short, step = (x[:, None, None] for x in (low, span, short, step))
    operations, magnitudes = operations[:, None, None, None], magnitudes[:, None, None, None]

    # AutoContrast and Equalize are quotients, with one divisor for each image and channel.
    value = images.astype(jnp.int32)
    equal = _is(operations, "Equalize")
    below = below.at[place].get(mode="promise_in_bounds")
    part = jnp.where(equal, step // 2 + below, 255 * (value - low))
    whole = jnp.where(equal, step, span)
    new = _quotient(part, jnp.maximum(whole, 1))
    lacking = short >> _quotient(new, jnp.where(span % 17 == 0, 15, 17))
    new = new - jnp.where(~equal & (part == new * whole), lacking & 1, 0)
    new = jnp.where(whole > 0, jnp.minimum(new, 255), value)
    bits = jnp.clip(magnitudes.astype(jnp.int32), 1, 8)
    new = jnp.where(_is(operations, "Posterize"), value & -(1 << (8 - bits)), new)
    inverse = jnp.where(value.astype(jnp.float32) < magnitudes, value, 255 - value)
    new = jnp.where(_is(operations, "Solarize"), inverse, new).astype(jnp.uint8)
    return jnp.where(_is(operations, *_TONES), new, images)


def _quotient(part, whole):
    # The half keeps exact quotients from ending just below where division is rounded imprecisely.
    return ((part.astype(jnp.float32) + 0.5) / whole.astype(jnp.float32)).astype(jnp.int32)


@functools.cache
def _short_quotients():
    """Where doubles in Pillow end just below an integer, so that its AutoContrast is one less.

    Bit `k` of entry `high (high - 1) / 2 + low` is for the value that becomes `15 k` if 17 divides
    `high - low`, else `17 k`. There are no other cases.
    """
    high, low = np.tril_indices(256, -1)
    span, scale = high - low, 255.0 / (high - low)
    unit = np.where(span % 17 == 0, 15, 17)
    bits = np.zeros(len(high), np.int32)
    for k in range(18):
        new = np.minimum(k * unit, 255)
        short = ((low + new * span // 255) * scale - low * scale).astype(np.int32) < new
        bits |= np.where((new * span % 255 == 0) & short, 1 << k, 0).astype(np.int32)
    return bits


def _blended(images, operations, magnitudes):
    """Blends with black, the grey image, its mean or the smooth image, clipped as in Pillow."""
    operations, magnitudes = operations[:, None, None, None], magnitudes[:, None, None, None]
    pixels = images.astype(jnp.int32)
    grey = pixels
    if images.shape[-1] == 3:
        red, green, blue = (pixels[..., i : i + 1] for i in range(3))
        # The weights of ITU-R 601 times 65,536, as in Pillow.
        grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    size = images.shape[1] * images.shape[2]
    mean = (2 * jnp.sum(grey, axis=(1, 2, 3), keepdims=True) + size) // (2 * size)
    other = jnp.where(_is(operations, "Color"), grey, 0)
    other = jnp.where(_is(operations, "Contrast"), mean, other)
    other = jnp.where(_is(operations, "Sharpness"), _smooth(pixels), other)
    change = _times((pixels - other).astype(jnp.float32), magnitudes)
    new = jnp.clip(other.astype(jnp.float32) + change, 0, 255).astype(jnp.uint8)
    return jnp.where(_is(operations, *_BLENDS), new, images)


def _smooth(pixels):
    """The mean of 3 x 3 pixels, the middle one counted five times; the border is kept."""
    inner = np.zeros((1, *pixels.shape[1:]), bool)
    inner[:, 1:-1, 1:-1] = True
    padded = jnp.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:]
    return jnp.where(inner, (2 * (total + 4 * pixels) + 13) // 26, pixels)
