import itertools
import json

import numpy as np
import pytest

from train.data import types
from train.data.batches import batches, stream
from train.data.load import load
from train.data.tfds import PUBLISHED
from train.data.types import (
    DataError,
    DataNotFound,
    RecordSplit,
    Split,
    channel_statistics,
    fit_in_memory,
)

VERSIONS = {
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "stl10": "1.0.0",
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "svhn_cropped": "3.1.0",
}
SHAPES = {
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "stl10": (96, 96, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "svhn_cropped": (32, 32, 3),
}


class Numbered:
    """Records that tell their index: every pixel and the label are the index."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": index}


@pytest.mark.parametrize("name", ["cifar", "folder:", "", "npz"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(DataError, match=r"digits, cifar10, .*folder:PATH"):
        load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_data_say_what_to_do(name, tmp_path):
    with pytest.raises(DataNotFound) as caught:
        load(name, data_dir=str(tmp_path))
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert PUBLISHED[name].source in message
    assert f"python -m train.prepare {name} --from " in message
    assert message.endswith(f" --data-dir {tmp_path}")


def test_data_dir_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataNotFound, match=str(tmp_path)):
        load("mnist")


def write_metadata(root, name, *, file_format="array_record", shards=1):
    path = root / name / VERSIONS[name]
    path.mkdir(parents=True)
    splits = [{"name": split, "shardLengths": ["9"]} for split in ("train", "test")]
    info = {"fileFormat": file_format, "splits": splits}
    (path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    for split, _ in itertools.product(("train", "test"), range(shards)):
        (path / f"{name}-{split}.array_record-00000-of-00001").touch()
    return path


def test_unusable_prepared_data_are_explained(tmp_path):
    path = write_metadata(tmp_path / "a", "mnist", file_format="tfrecord")
    with pytest.raises(DataError, match=r"tfrecord, which has no random access.*--overwrite"):
        load("mnist", data_dir=str(tmp_path / "a"))
    (path / "dataset_info.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot read"):
        load("mnist", data_dir=str(tmp_path / "a"))
    write_metadata(tmp_path / "b", "mnist", shards=0)
    with pytest.raises(DataError, match="0 of 1 files of its train split"):
        load("mnist", data_dir=str(tmp_path / "b"))


@pytest.mark.parametrize("limit", [64, 0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_prepared_sets_have_the_right_shapes(name, limit, tmp_path, monkeypatch):
    # Random images of TFDS's own making: no file of CIFAR-100 or STL-10 is needed.
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.data_sources import base

    # The stand-in for the files lacks `self` in its batched read.
    monkeypatch.delattr(base.BaseDataSource, "__getitems__")
    write_metadata(tmp_path, name)
    with tfds.testing.mock_data(num_examples=7):
        loaded = load(name, data_dir=str(tmp_path), memory_limit_mib=limit)
        assert loaded.image_shape == SHAPES[name]
        assert loaded.num_classes == len(loaded.class_names) == PUBLISHED[name].num_classes
        assert isinstance(loaded.train, Split if limit else RecordSplit)
        assert len(loaded.train) == len(loaded.test) == 7
        assert len(loaded.mean) == len(loaded.std) == SHAPES[name][-1]
        for batch in itertools.chain(
            itertools.islice(stream(loaded.train, batch_size=4, seed=0), 3),
            batches(loaded.test, 4),
        ):
            assert batch["image"].shape == (4, *SHAPES[name])
            assert batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32
            assert batch["label"].max() < loaded.num_classes


def test_published_counts_add_up():
    sums = {name: [sum(c) for c in p.counts().values()] for name, p in PUBLISHED.items()}
    assert sums == {
        "cifar10": [50_000, 10_000],
        "cifar100": [50_000, 10_000],
        "stl10": [5_000, 8_000, 100_000],
        "mnist": [60_000, 10_000],
        "fashion_mnist": [60_000, 10_000],
        "svhn_cropped": [73_257, 26_032],
    }
    assert all(len(p.counts()["train"]) == p.num_classes for p in PUBLISHED.values())


def splits_of(count):
    records = RecordSplit(Numbered(count), (2, 2, 1))
    return [records, fit_in_memory(records, 1)]


@pytest.mark.parametrize("kind", [0, 1])
def test_resumed_stream_continues(kind):
    split = splits_of(10)[kind]
    start = list(itertools.islice(stream(split, batch_size=4, seed=3), 30))
    for step in (0, 1, 7, 25):
        resumed = stream(split, batch_size=4, seed=3, start_step=step)
        for expected, batch in zip(start[step:], resumed, strict=False):
            np.testing.assert_array_equal(batch["image"], expected["image"])
            np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("kind", [0, 1])
def test_stream_shows_each_example_once_an_epoch(kind):
    endless = stream(splits_of(10)[kind], batch_size=4, seed=3)
    labels = np.concatenate([batch["label"] for batch in itertools.islice(endless, 10)])
    epochs = labels.reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


@pytest.mark.parametrize("kind", [0, 1])
def test_stream_depends_on_the_seed_alone(kind):
    split = splits_of(50)[kind]
    first, again, other = (
        next(stream(split, batch_size=20, seed=seed))["label"].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("kind", [0, 1])
def test_batch_may_be_larger_than_the_split(kind):
    batch = next(stream(splits_of(3)[kind], batch_size=7, seed=0))
    assert np.bincount(batch["label"]).tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 5)])
def test_batches_are_filled_up(kind, count, size):
    found = list(batches(splits_of(count)[kind], size))
    assert {batch["image"].shape for batch in found} == {(size, 2, 2, 1)}
    assert {batch["weight"].dtype.name for batch in found} == {"float32"}
    weight = np.concatenate([batch["weight"] for batch in found])
    labels = np.concatenate([batch["label"] for batch in found])
    images = np.concatenate([batch["image"] for batch in found])
    assert weight.tolist() == [1.0] * count + [0.0] * (-count % size)
    # Their labels are sorted: they are mixed, always in the same way.
    assert sorted(labels[:count]) == [*range(count)]
    assert labels[count:].tolist() == [0] * (-count % size)
    again = np.concatenate([b["label"] for b in batches(splits_of(count)[kind], size)])
    assert np.array_equal(again, labels)
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_batches_of_a_sorted_split_hold_all_classes_and_others_keep_their_order():
    records, split = splits_of(200)
    for chosen in (records, split):
        first = next(batches(chosen, 50))["label"]
        assert first.min() < 50 < 150 < first.max()
    mixed = Split(split.images, split.labels[::-1].copy())
    assert next(batches(mixed, 50))["label"].tolist() == [*range(199, 149, -1)]


def test_streamed_statistics_are_close_and_repeatable(monkeypatch):
    records, split = splits_of(200)
    exact = channel_statistics(split)
    assert channel_statistics(records) == exact
    monkeypatch.setattr(types, "STATISTICS_SAMPLE", 100)
    sampled = channel_statistics(records)
    assert sampled == channel_statistics(records) != exact
    np.testing.assert_allclose(sampled, exact, rtol=0.2)


def test_bad_batches_are_refused_at_once():
    records, split = splits_of(3)
    for call in (
        lambda: batches(split, 0),
        lambda: stream(split, batch_size=0, seed=0),
        lambda: stream(split, batch_size=2, seed=-1),
        lambda: stream(records, batch_size=2, seed=2**32),
        lambda: stream(records, batch_size=2, seed=0, start_step=-1),
    ):
        with pytest.raises(ValueError, match=r"at least|needs"):
            call()


def test_records_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"record 0 is uint8 \(2, 2, 1\)"):
        RecordSplit(Numbered(3), (2, 2, 3))[0]
