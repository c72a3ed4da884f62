import numpy as np
import pytest

from tests.train.published import (
    CIFAR10_COUNTS,
    CLASSES,
    IDX_COUNTS,
    STL10_COUNTS,
    SVHN_COUNTS,
    cifar_records,
    counts_of,
    image_files,
    prepare_small,
    random_split,
    write_cifar10,
    write_idx,
    write_stl10,
    write_svhn,
    write_tar,
)
from train.data.load import load
from train.data.types import DataError, RecordSplit, Split

pytest.importorskip("tensorflow_datasets")


def by_bytes(split):
    """Images with their labels in an order of their own: TFDS shuffles what it writes."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))


def loaded_splits(name, root):
    loaded = load(name, data_dir=str(root))
    return loaded, *((s.images, s.labels) for s in (loaded.train, loaded.test))


def test_cifar10_is_read_back_in_the_published_order(tmp_path):
    archive, train, test = write_cifar10(tmp_path)
    target = prepare_small("cifar10", archive, data_dir=tmp_path / "data", counts=CIFAR10_COUNTS)
    assert target == tmp_path / "data/cifar10/3.0.2"
    loaded, got_train, got_test = loaded_splits("cifar10", tmp_path / "data")
    for got, expected in ((got_train, train), (got_test, test)):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
    assert loaded.class_names == tuple(CLASSES)
    assert loaded.source_note == ""


def test_tfds_itself_reads_what_was_prepared(tmp_path):
    import tensorflow_datasets as tfds

    archive, _, test = write_cifar10(tmp_path)
    target = prepare_small("cifar10", archive, data_dir=tmp_path / "data", counts=CIFAR10_COUNTS)
    sources = tfds.data_source("cifar10", data_dir=str(tmp_path / "data"), download=False)
    assert {split: len(source) for split, source in sources.items()} == {"train": 50, "test": 20}
    by_id = {record["id"]: record for record in sources["test"]}
    np.testing.assert_array_equal(by_id[b"test_00007"]["image"], test[0][7])
    builder = tfds.builder_from_directory(str(target))
    assert builder.info.splits["train"].num_examples == 50
    assert type(tfds.builder("cifar10", data_dir=str(tmp_path))).__name__ == "Cifar10"
    metadata = (target / "dataset_info.json").read_text(encoding="utf-8")
    assert "tensorflow_datasets.image_classification.cifar" in metadata
    assert "partial" not in metadata


def test_cifar100_keeps_both_labels(tmp_path):
    import tensorflow_datasets as tfds

    fine = random_split(200, 100, (32, 32, 3), 0), random_split(100, 100, (32, 32, 3), 1)
    files = {
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"f{i}" for i in range(100)).encode(),
        "cifar-100-binary/coarse_label_names.txt": "\n".join(f"c{i}" for i in range(20)).encode(),
    }
    for name, (images, labels) in zip(["train", "test"], fine, strict=True):
        records = cifar_records(images, labels // 5, labels)
        files[f"cifar-100-binary/{name}.bin"] = records.tobytes()
    archive = write_tar(tmp_path / "cifar-100-binary.tar.gz", files)
    counts = counts_of(train=(200, 100), test=(100, 100))
    prepare_small("cifar100", archive, data_dir=tmp_path, counts=counts)
    loaded, train, test = loaded_splits("cifar100", tmp_path)
    for got, expected in ((train, fine[0]), (test, fine[1])):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
    assert loaded.class_names[:2] == ("f0", "f1")
    source = tfds.data_source("cifar100", split="test", data_dir=str(tmp_path), download=False)
    assert all(record["coarse_label"] == record["label"] // 5 for record in source)


def test_stl10_with_its_unlabelled_images(tmp_path):
    import tensorflow_datasets as tfds

    archive, splits, unlabelled = write_stl10(tmp_path)
    prepare_small("stl10", archive, data_dir=tmp_path, counts=STL10_COUNTS)
    loaded, train, test = loaded_splits("stl10", tmp_path)
    assert [by_bytes(train), by_bytes(test)] == [by_bytes(split) for split in splits]
    assert loaded.class_names == tuple(CLASSES)
    rest = tfds.data_source("stl10", split="unlabelled", data_dir=str(tmp_path), download=False)
    found = sorted(record["image"].tobytes() for record in rest)
    assert found == sorted(image.tobytes() for image in unlabelled)


def test_unlabelled_images_of_stl10_are_read_when_asked_for(tmp_path):
    archive, _, unlabelled = write_stl10(tmp_path)
    target = prepare_small("stl10", archive, data_dir=tmp_path, counts=STL10_COUNTS)
    assert load("stl10", data_dir=str(tmp_path)).unlabelled is None
    expected = by_bytes((unlabelled, [-1] * 3))
    held = load("stl10", data_dir=str(tmp_path), unlabelled=True).unlabelled
    assert isinstance(held, Split)
    assert by_bytes((held.images, held.labels)) == expected
    limited = load("stl10", data_dir=str(tmp_path), unlabelled=True, memory_limit_mib=0)
    assert isinstance(limited.unlabelled, RecordSplit)
    batch = limited.unlabelled.take(np.arange(3))
    assert by_bytes((batch["image"], batch["label"])) == expected
    for file in target.glob("*-unlabelled.*"):
        file.unlink()
    with pytest.raises(DataError, match="0 of 1 files of its unlabelled split"):
        load("stl10", data_dir=str(tmp_path), unlabelled=True)
    assert load("stl10", data_dir=str(tmp_path)).unlabelled is None


def test_svhn_is_read_back_in_the_published_order(tmp_path):
    import tensorflow_datasets as tfds

    folder, train, test = write_svhn(tmp_path / "mat")
    target = prepare_small("svhn_cropped", folder, data_dir=tmp_path / "data", counts=SVHN_COUNTS)
    assert target == tmp_path / "data/svhn_cropped/3.1.0"
    loaded, got_train, got_test = loaded_splits("svhn_cropped", tmp_path / "data")
    for got, expected in ((got_train, train), (got_test, test)):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
    assert loaded.class_names == tuple("0123456789")
    asked = load("svhn_cropped", data_dir=str(tmp_path / "data"), unlabelled=True)
    assert asked.unlabelled is None
    source = tfds.data_source(
        "svhn_cropped", split="train", data_dir=str(tmp_path / "data"), download=False
    )
    by_id = {record["id"]: record for record in source}
    assert len(by_id) == 30
    np.testing.assert_array_equal(by_id[b"train_000007"]["image"], train[0][7])
    assert by_id[b"train_000007"]["label"] == train[1][7]


@pytest.mark.parametrize(("name", "compressed"), [("mnist", False), ("fashion_mnist", True)])
def test_idx_files(name, compressed, tmp_path):
    folder, *splits = write_idx(tmp_path / "idx", compressed=compressed)
    prepare_small(name, folder, data_dir=tmp_path, counts=IDX_COUNTS)
    _, train, test = loaded_splits(name, tmp_path)
    assert [by_bytes(train), by_bytes(test)] == [by_bytes(split) for split in splits]


def test_jpeg_archive_in_the_published_order(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", image_files("jpg", {"train": 3, "test": 2}))
    order = {
        split: random_split(count, 10, (1,), 5)[1] for split, count in (("train", 30), ("test", 20))
    }
    np.savez(tmp_path / "labels.npz", **order)
    prepare_small(
        "cifar10",
        archive,
        labels=tmp_path / "labels.npz",
        data_dir=tmp_path,
        counts=counts_of(train=(30, 10), test=(20, 10)),
    )
    loaded, train, test = loaded_splits("cifar10", tmp_path)
    assert loaded.source_note == "CIFAR-10 (JPEG): images re-encoded as JPEG quality 75"
    for (images, labels), expected in ((train, order["train"]), (test, order["test"])):
        np.testing.assert_array_equal(labels, expected)
        places = [int((expected[:i] == label).sum()) for i, label in enumerate(expected)]
        np.testing.assert_allclose(images[:, 5, 5, 0], 20 * expected, atol=3)
        np.testing.assert_allclose(images[:, 5, 5, 1], 20 * np.array(places), atol=3)


def test_image_folder_in_the_order_of_classes(tmp_path):
    for name, content in image_files("png", {"train": 2, "test": 1}, first=9).items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    counts = counts_of(train=(20, 10), test=(10, 10))
    prepare_small("cifar10", tmp_path / "images", data_dir=tmp_path, counts=counts)
    loaded, train, _ = loaded_splits("cifar10", tmp_path)
    assert loaded.source_note == "CIFAR-10 in the order of its classes, not in the published order"
    np.testing.assert_array_equal(train[1], np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(train[0][:, 0, 0, 1], np.tile([180, 200], 10))
