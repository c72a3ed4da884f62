import dataclasses
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.augment import crop_and_flip
from train.data.types import from_arrays
from train.engine.state import Network, initial_state
from train.engine.step import UsedTerms
from train.run.lanes import lanes_of
from train.supervised import fit, make_step, optimizer_of


def images(n=40, height=9, width=7, channels=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, height, width, channels)).astype(np.uint8)


def windows(image, pad):
    """All crops of the reflect-padded image, and their mirror images, by NumPy."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = padded[top : top + height, left : left + width]
            yield (top, left, False), window
            yield (top, left, True), window[:, ::-1]


@pytest.mark.parametrize("pad", [0, 2])
def test_every_image_is_a_window_of_its_own_or_its_mirror_image(pad):
    before = images()
    after = np.asarray(
        jax.jit(crop_and_flip, static_argnames="pad")(before, jax.random.key(0), pad=pad)
    )
    assert after.dtype == np.uint8
    found = []
    for old, new in zip(before, after, strict=True):
        found.append([name for name, window in windows(old, pad) if np.array_equal(window, new)])
        assert len(found[-1]) == 1
    tops, lefts, flips = (set(values) for values in zip(*(f[0] for f in found), strict=True))
    assert tops == lefts == set(range(2 * pad + 1))
    assert flips == {False, True}


def test_the_key_decides():
    before = images()
    first, again, other = (crop_and_flip(before, jax.random.key(i)) for i in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_a_key_an_image_decides_of_that_image_alone():
    before, keys = images(), jax.random.split(jax.random.key(0), 40)
    whole = crop_and_flip(before, keys, pad=2)
    part = crop_and_flip(before[10:20], keys[10:20], pad=2)
    assert jnp.array_equal(whole[10:20], part)
    names = [
        [name for name, window in windows(old, 2) if np.array_equal(window, new)]
        for old, new in zip(before, np.asarray(whole), strict=True)
    ]
    assert all(len(found) == 1 for found in names)
    assert len({found[0] for found in names}) > 20


def test_padding_larger_than_the_image():
    with pytest.raises(ValueError, match=r"pad must be in \[0, 7\)"):
        crop_and_flip(images(), jax.random.key(0), pad=7)


@pytest.mark.slow
def test_augmented_runs_depend_on_seed_and_step_alone(tiny, settings):
    # tiny images are 4 x 4; the padding of the loop needs more.
    larger = dataclasses.replace(
        tiny,
        image_shape=(8, 8, 1),
        train=dataclasses.replace(tiny.train, images=tiny.train.images.repeat(2, 1).repeat(2, 2)),
        test=dataclasses.replace(tiny.test, images=tiny.test.images.repeat(2, 1).repeat(2, 2)),
    )
    runs = []
    for i, change in enumerate(
        ({"augment": True}, {"augment": True, "steps_per_call": 1, "lanes_per_call": 1}, {})
    ):
        out = settings.out.with_name(f"run{i}")
        own = dataclasses.replace(settings, seeds=2, eval_train=False, out=out, **change)
        runs.append(fit(own, larger, quiet=True).states.params)
    chex.assert_trees_all_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(runs[0], runs[2], rtol=1e-3, atol=1e-4)


def test_copies_draw_on_their_own_from_their_branch_step_on(settings):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    data = from_arrays("noise", images, np.arange(12) % 3, images, np.arange(12) % 3)
    lane = lanes_of(settings)[0]
    copies = [lane, replace(lane, copy=1), replace(lane, copy=1, branch_step=1)]
    network, transform = Network.of(settings, data), optimizer_of(settings)
    step = make_step(network, transform, UsedTerms.of([lane]), augment=True)
    # The same images for all: what differs is their augmentation.
    call = jax.jit(jax.vmap(step, in_axes=(0, None, None)))
    losses = []
    states = initial_state(network, transform, copies)
    for _ in range(2):
        states, terms = call(states, images, data.train.labels)
        losses.append(np.asarray(terms.loss))
    assert losses[0][0] == losses[0][2] != losses[0][1]
    assert losses[1][0] != losses[1][2]
