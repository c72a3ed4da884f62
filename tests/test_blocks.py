import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirjax._dataset.blocks import balanced_size, block_count, block_size, class_blocks

RNG = np.random.default_rng(0)
LABELS = {
    "balanced": np.arange(240) % 6,
    "random": RNG.integers(0, 6, 240),
    "one class": np.full(240, 4),
    "absent classes": RNG.integers(0, 2, 240) * 3 + 1,
    "one huge": np.where(RNG.random(240) < 0.95, 5, RNG.integers(0, 6, 240)),
}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("name", LABELS)
def test_every_row_stands_once_in_a_block_of_its_class(name, shards):
    labels = LABELS[name]
    rows = np.float32(1) + np.arange(240, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    blocks = class_blocks(jnp.asarray(rows), jnp.asarray(labels), 6, shards)
    per_shard = 240 // shards
    assert blocks.rows.shape[:2] == (shards, block_count(per_shard, 6))
    assert blocks.rows.shape[2] == block_size(per_shard, 6)
    for shard in range(shards):
        index = np.asarray(blocks.index[shard])
        filled = index < per_shard
        assert sorted(index[filled]) == list(range(per_shard))
        own = index + shard * per_shard
        expected = np.where(filled[:, :, None], rows[np.where(filled, own, 0)], 0)
        np.testing.assert_array_equal(blocks.rows[shard], expected)
        classes = np.broadcast_to(np.asarray(blocks.classes[shard])[:, None], index.shape)
        np.testing.assert_array_equal(labels[own[filled]], classes[filled])


def test_balanced_classes_have_one_block_each():
    labels = jnp.asarray(np.append(np.arange(240) % 6, [2, 2, 5]))
    rows = jnp.arange(1.0, 244.0)[:, None]
    # In steps of eight, but for equal classes.
    assert balanced_size(labels, 6) == 48
    assert balanced_size(labels[:240], 6) == 40
    blocks = class_blocks(rows, labels, 6, size=48)
    np.testing.assert_array_equal(blocks.classes, [np.arange(6)])
    for number in range(6):
        block = blocks.rows[0, number, :, 0]
        np.testing.assert_array_equal(block[block > 0], rows[labels == number, 0])


def test_small_classes_have_one_block_each_if_that_takes_no_more_room():
    counts = np.append(np.full(110, 33), [54, 62])
    labels = np.repeat(np.arange(112), counts)
    # More than 1.5 places for each row, but not as many as in the other blocks.
    others = block_size(len(labels), 112) * block_count(len(labels), 112)
    assert 1.5 * len(labels) < 112 * 64 < others
    assert balanced_size(jnp.asarray(labels), 112) == 64
    counts[-1] = 90
    assert balanced_size(jnp.asarray(np.repeat(np.arange(112), counts)), 112) is None


@pytest.mark.parametrize("name", ["one class", "absent classes", "one huge", "invalid", "unknown"])
def test_other_labels_have_blocks_of_one_size(name):
    others = {"invalid": np.append(np.arange(240) % 6, -1)}
    labels = jnp.asarray((LABELS | others).get(name, LABELS["balanced"]))
    sizes = []
    if name == "unknown":
        jax.jit(lambda y: sizes.append(balanced_size(y, 6)))(labels)
    else:
        sizes.append(balanced_size(labels, 6))
    assert sizes == [None]


@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (3, 100), (1000, 1), (1000, 1000)])
def test_padding_is_bounded(samples, classes):
    size = block_size(samples, classes)
    assert size & (size - 1) == 0
    # Twice the rows, and a small block for each class that may be there.
    places = size * block_count(samples, classes)
    assert (
        places <= 2 * samples + 8 * min(samples, classes) + size * min(samples, classes) // 2 + size
    )


def test_unequal_shards_are_refused():
    with pytest.raises(ValueError, match="10 rows cannot be cut into 4 equal shards"):
        class_blocks(jnp.ones((10, 2)), jnp.zeros(10, jnp.int32), 2, 4)
