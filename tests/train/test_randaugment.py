import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ImageOps

from tests.reference.pillow import pillow, pillow_cutout, to_pillow
from train.data.randaugment import OPERATIONS, RANGES, apply, cutout, draw, strong

SHAPES = [(32, 32, 3), (28, 28, 1), (20, 12, 3)]
SAMPLES = 72
jitted = jax.jit(apply)
jitted_strong = jax.jit(strong, static_argnames="operations")


def structured(samples, shape, seed=0):
    """In turn: noise, little contrast, a slope, two values, one value, a constant channel."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    noise = rng.integers(0, 256, (samples, *shape))
    low, span, slope, across = rng.integers(0, 256, (4, samples, 1, 1, channels))
    row, column = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    constant = noise.copy()
    constant[..., 0] = low[..., 0]
    kinds = [
        noise,
        low + (256 - low) * noise * span // 256**2,
        (slope * row // height + across * column // width + low // 2),
        np.where(noise < span, low, slope),
        np.broadcast_to(low, noise.shape),
        constant,
    ]
    return (
        np.choose(np.arange(samples)[:, None, None, None] % 6, kinds).clip(0, 255).astype("uint8")
    )


def random_images(samples=6):
    return np.random.default_rng(0).integers(0, 256, (samples, 8, 8, 3)).astype(np.uint8)


def keys(samples, seed=0):
    return jax.random.split(jax.random.key(seed), samples)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_that_of_pillow(name, shape):
    images = structured(SAMPLES, shape)
    low, high = RANGES[name]
    between = np.random.default_rng(1).uniform(low, high, SAMPLES - 18)
    # Both ends and the middle for each kind of image.
    magnitudes = np.concatenate([np.repeat([low, (low + high) / 2, high], 6), between])
    magnitudes = magnitudes.astype(np.float32)
    after = np.asarray(
        jitted(images, np.full(SAMPLES, OPERATIONS.index(name), np.int32), magnitudes)
    )
    assert after.dtype == np.uint8
    for image, magnitude, result in zip(images, magnitudes, after, strict=True):
        expected = np.asarray(pillow(image, name, float(magnitude))).reshape(shape)
        np.testing.assert_array_equal(result, expected, err_msg=f"{name} {magnitude}")


def test_autocontrast_rounds_as_doubles_do():
    # Where the quotient is whole, Pillow often ends one below; every value between is there.
    high, low = (x[::40, None] for x in np.tril_indices(256, -1))
    images = np.clip(np.arange(256)[None], low, high).astype(np.uint8).reshape(-1, 16, 16, 1)
    samples = len(images)
    after = np.asarray(jitted(images, np.zeros(samples, np.int32), np.zeros(samples, np.float32)))
    expected = np.stack([np.asarray(ImageOps.autocontrast(to_pillow(image))) for image in images])
    np.testing.assert_array_equal(after[..., 0], expected)


def test_blends_round_the_product_before_the_sum():
    # Of a fused product and sum, one value in 50 would differ at 2/3.
    images = structured(SAMPLES, SHAPES[0])
    magnitudes = np.full(SAMPLES, 2 / 3, np.float32)
    for name in ("Color", "Contrast", "Sharpness"):
        operations = np.full(SAMPLES, OPERATIONS.index(name), np.int32)
        expected = [np.asarray(pillow(image, name, float(magnitudes[0]))) for image in images]
        np.testing.assert_array_equal(jitted(images, operations, magnitudes), np.stack(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_is_a_rectangle_of_pillow(shape):
    images = structured(60, shape)
    rng = np.random.default_rng(2)
    sizes = rng.uniform(0, 0.5, 60).astype(np.float32)
    centres = rng.uniform(0, [shape[1], shape[0]], (60, 2)).astype(np.float32)
    sizes[:6], centres[6:9], sizes[9:12] = 0, 0, 0.5
    after = np.asarray(cutout(images, sizes, centres))
    expected = [
        pillow_cutout(image, float(size), centre.tolist())
        for image, size, centre in zip(images, sizes, centres, strict=True)
    ]
    np.testing.assert_array_equal(after, np.stack(expected))
    np.testing.assert_array_equal(after[:6], images[:6])


def test_strong_is_the_drawn_operations_in_order_and_then_cutout():
    images, own = structured(24, (20, 12, 3)), keys(24)
    drawn = zip(images, *map(np.asarray, draw(own)), strict=True)
    expected = []
    for image, operations, magnitudes, size, centre in drawn:
        for operation, magnitude in zip(operations, magnitudes, strict=True):
            image = np.asarray(pillow(image, OPERATIONS[operation], float(magnitude)))
        expected.append(pillow_cutout(image, float(size), (centre * [12, 20]).tolist()))
    np.testing.assert_array_equal(jitted_strong(images, own), np.stack(expected))


def test_draws_are_uniform_with_replacement_and_within_their_ranges():
    samples = 14000
    operations, magnitudes, sizes, centres = map(np.asarray, draw(keys(samples)))
    assert operations.shape == magnitudes.shape == (samples, 3)
    for column in operations.T:
        # Chi-square of 13 degrees of freedom: 34.5 is passed once in 1,000.
        counts = np.bincount(column, minlength=len(OPERATIONS))
        assert len(counts) == 14
        assert (((counts - 1000) ** 2) / 1000).sum() < 34.5
    repeated = (operations[:, 0] == operations[:, 1]).mean()
    assert abs(repeated - 1 / 14) < 0.01
    for index, (low, high) in enumerate(RANGES.values()):
        own = magnitudes[operations == index]
        assert own.min() >= np.float32(low)
        assert own.max() <= np.float32(high)
        assert abs(own.mean() - (low + high) / 2) <= 0.02 * (high - low)
        assert np.ptp(own) >= 0.99 * (high - low)
    for drawn, high in ((sizes, 0.5), (centres[:, 0], 1), (centres[:, 1], 1)):
        assert 0 <= drawn.min() < drawn.max() < high
        assert abs(drawn.mean() - high / 2) < 0.01
    draws = [magnitudes[:, 0] * (operations[:, 0] == 7), sizes, *centres.T]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.05


def test_a_sample_depends_on_its_own_key_and_image_alone():
    images, own = random_images(), keys(6)
    together = np.asarray(jitted_strong(images, own))
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(jitted_strong(images[order], own[order]), together[order])
    for i in range(6):
        alone = jitted_strong(images[i : i + 1], own[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])
    same = np.asarray(jitted_strong(images[:1].repeat(6, axis=0), own))
    assert len({image.tobytes() for image in same}) == 6


def test_jit_vmap_and_eager_calls_are_equal():
    images, own = random_images(), keys(6)
    eager = np.asarray(strong(images, own))
    assert eager.dtype == np.uint8
    assert eager.shape == images.shape
    for _ in range(2):
        np.testing.assert_array_equal(jitted_strong(images, own), eager)
    assert not np.array_equal(jitted_strong(images, keys(6, seed=1)), eager)
    lanes = jax.jit(jax.vmap(strong, in_axes=(None, 0)))(images, jnp.stack([own, own[::-1]]))
    np.testing.assert_array_equal(lanes[0], eager)
    np.testing.assert_array_equal(lanes[1], jitted_strong(images, own[::-1]))


def test_without_operations_only_the_square_is_cut_out():
    images, own = random_images(), keys(6)
    _, _, sizes, centres = draw(own, operations=0)
    np.testing.assert_array_equal(
        jitted_strong(images, own, operations=0), cutout(images, sizes, 8 * centres)
    )


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_images_of_another_kind(images):
    calls = [
        lambda: strong(images, keys(2)),
        lambda: apply(images, np.zeros(2, np.int32), np.zeros(2, np.float32)),
        lambda: cutout(images, np.zeros(2, np.float32), np.zeros((2, 2), np.float32)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"images must be uint8.*got {images.dtype} of shape"):
            call()


@pytest.mark.parametrize("wrong", ["three", "one", "raw"])
def test_keys_of_another_number_or_kind(wrong):
    given = {"three": keys(3), "one": jax.random.key(0), "raw": np.zeros((2, 2), np.uint32)}
    with pytest.raises(ValueError, match=r"keys must be 2 typed keys.*Make them by jax\.random"):
        strong(random_images(2), given[wrong])


def test_a_negative_number_of_operations():
    with pytest.raises(ValueError, match="operations must be at least 0, got -1"):
        strong(random_images(2), keys(2), operations=-1)
