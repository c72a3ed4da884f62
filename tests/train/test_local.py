import hashlib
import sys

import numpy as np
import pytest

from train.data import local
from train.data.load import load
from train.data.types import (
    DataError,
    DataNotFound,
    RecordSplit,
    Split,
    channel_statistics,
    from_arrays,
    image_data,
)


def arrays(count, *, seed=0, shape=(4, 5, 3), classes=3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return images, (np.arange(count) % classes).astype(np.int32)


def test_digits_are_complete_and_balanced():
    digits = load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.train.images.max() == 255
    whole = np.bincount(np.concatenate([digits.train.labels, digits.test.labels]))
    assert whole.sum() == 1797
    np.testing.assert_allclose(np.bincount(digits.test.labels), whole * 360 / 1797, atol=1)
    images = np.concatenate([digits.train.images, digits.test.images]).reshape(1797, -1)
    bunch = local.require("sklearn.datasets", "").load_digits()
    expected = np.rint(bunch.data * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.sort(images.sum(1)), np.sort(expected.sum(1)))


def test_digits_split_never_changes():
    digits = load("digits")
    digest = hashlib.sha256(digits.test.images.tobytes() + digits.test.labels.tobytes())
    assert digest.hexdigest()[:16] == "883634103e27df12"


def test_statistics_are_those_of_the_training_images():
    images, labels = arrays(1500)
    loaded = from_arrays("a", images, labels, *arrays(4, seed=1))
    np.testing.assert_allclose(loaded.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_statistics_of_a_constant_channel_can_divide():
    images = np.full((3, 2, 2, 1), 255, np.uint8)
    assert channel_statistics(Split(images, np.zeros(3, np.int32))) == ((1.0,), (1.0,))


def test_arrays_without_a_channel_get_one():
    images, labels = arrays(6, shape=(4, 5))
    loaded = from_arrays("a", images, labels[:, None], images, labels)
    assert loaded.image_shape == (4, 5, 1)
    assert loaded.train.labels.dtype == np.int32
    assert loaded.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x / 255, y, x, y), "uint8"),
        (lambda x, y: (x, y[1:], x, y), "one for each of 6"),
        (lambda x, y: (x, y.astype(float), x, y), "integers"),
        (lambda x, y: (x, y - 1, x, y), "from -1"),
        (lambda x, y: (x, y, x[:, :2], y), r"test images \(2, 5, 3\)"),
        (lambda x, y: (x, y, x[:0], y[:0]), "test split is empty"),
    ],
)
def test_unusable_arrays_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        from_arrays("a", *change(*arrays(6)))


def test_npz_arrays_are_read_as_written(tmp_path):
    x, y = arrays(6)
    path = tmp_path / "set.npz"
    about = {"class_names": np.array(list("abc")), "source_note": np.array("re-encoded")}
    np.savez(path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3], **about)
    again = load(f"npz:{path}")
    np.testing.assert_array_equal(again.train.images, x)
    np.testing.assert_array_equal(again.test.labels, y[:3])
    assert (again.name, again.class_names) == ("set", ("a", "b", "c"))
    assert again.source_note == "re-encoded"


def test_unlabelled_arrays_have_no_label():
    x, y = arrays(6)
    loaded = from_arrays("a", x, y, x, y, unlabelled=x[:2])
    assert isinstance(loaded.unlabelled, Split)
    np.testing.assert_array_equal(loaded.unlabelled.images, x[:2])
    assert loaded.unlabelled.labels.tolist() == [-1, -1]
    assert loaded.unlabelled.labels.dtype == np.int32
    without = from_arrays("a", x, y, x, y)
    assert without.unlabelled is None
    assert (loaded.mean, loaded.class_names) == (without.mean, without.class_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :2], r"training images are \(4, 5, 3\), unlabelled images \(2, 5, 3\)"),
        (lambda x: x / 255, r"a \(unlabelled\): images must be uint8"),
        (lambda x: x[0, 0, 0, 0], r"a \(unlabelled\): images must be uint8"),
        (lambda x: x[:0], "the unlabelled split is empty"),
    ],
)
def test_unusable_unlabelled_arrays_are_refused(change, message):
    x, y = arrays(6)
    with pytest.raises(DataError, match=message):
        from_arrays("a", x, y, x, y, unlabelled=change(x))


def test_unlabelled_records_of_another_shape_are_refused():
    part = Split(*arrays(6))
    records = RecordSplit([{"image": np.zeros((4, 6, 3), np.uint8), "label": -1}], (4, 6, 3))
    with pytest.raises(DataError, match=r"unlabelled images \(4, 6, 3\)"):
        image_data("a", "abc", part, part, unlabelled=records)


def test_npz_images_without_labels(tmp_path):
    x, y = arrays(6)
    path = tmp_path / "set.npz"
    labelled = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(path, **labelled, x_unlabelled=x[:2])
    again = load(f"npz:{path}", unlabelled=True)
    np.testing.assert_array_equal(again.unlabelled.images, x[:2])
    assert again.unlabelled.labels.tolist() == [-1, -1]
    assert load(f"npz:{path}").unlabelled is None
    np.savez(path, **labelled)
    assert load(f"npz:{path}", unlabelled=True).unlabelled is None


@pytest.mark.parametrize("name", ["x_train", "x_test", "x_unlabelled"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 32, 48), (13, 64, 64)])
def test_npz_images_with_their_channels_first_are_refused(shape, name, tmp_path):
    x, y = arrays(6, shape=(*shape[1:], shape[0]))
    images = dict.fromkeys(["x_train", "x_test", "x_unlabelled"], x)
    path = tmp_path / "set.npz"
    np.savez(path, y_train=y, y_test=y, **images | {name: x.transpose(0, 3, 1, 2)})
    message = rf"set\.npz: {name} is \(6, {shape[0]}, .*: store {name}\.transpose\(0, 2, 3, 1\)"
    with pytest.raises(DataError, match=message):
        load(f"npz:{path}", unlabelled=True)
    np.savez(path, y_train=y, y_test=y, **images)
    assert load(f"npz:{path}", unlabelled=True).image_shape == x.shape[1:]


@pytest.mark.parametrize("shape", [(3, 32, 3), (1, 28, 1), (3, 3, 200), (9, 9, 13), (32, 48, 13)])
def test_npz_images_that_may_have_their_channels_last_are_read(shape, tmp_path):
    x, y = arrays(6, shape=shape)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load(f"npz:{tmp_path / 'set.npz'}").image_shape == shape


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 1, 2, 3], "from 1 to 3, but y_train has only 3 of the 4 .*: subtract 1 from"),
        ([[1], [2], [1], [2], [1], [2]], "from 1 to 2, but y_train has only 2 of the 3 .*: sub"),
        ([0, 2, 3, 0, 2, 3], "from 0 to 3, but y_train has only 3 of the 4 .*: number the classes"),
        ([5, 9, 5, 9, 5, 9], "from 5 to 9, but y_train has only 2 of the 10 .*: number the cl"),
        ([0, 2**30, 1, 1, 1, 1], "from 0 to 1073741824, but y_train has only 3 of the"),
    ],
)
def test_npz_labels_that_leave_out_a_class_are_refused(labels, message, tmp_path):
    x, y = arrays(6)[0], np.array(labels)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=rf"set\.npz: labels are {message}.*name all classes in"):
        load(f"npz:{path}")
    if y.max() < 10:
        # All classes that there could be are named: one may be without images.
        names = np.array([str(label) for label in range(y.max() + 1)])
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, class_names=names)
        assert load(f"npz:{path}").num_classes == y.max() + 1


def test_npz_classes_are_those_of_training(tmp_path):
    x, y = arrays(6)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=x, y_train=np.minimum(y, 1), x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"from 0 to 2, but y_train has only 2 of the 3"):
        load(f"npz:{path}")
    np.savez(path, x_train=x, y_train=y.astype(np.uint8), x_test=x[:1], y_test=y[:1])
    assert load(f"npz:{path}").num_classes == 3


def test_npz_labels_from_1_are_refused_whatever_the_classes_are_called(tmp_path):
    x, y = arrays(6)
    path = tmp_path / "set.npz"
    about = {"class_names": np.array(list("abc"))}
    np.savez(path, x_train=x, y_train=y + 1, x_test=x, y_test=y + 1, **about)
    with pytest.raises(DataError, match=r"set\.npz: labels are from 1 to 3, .*: subtract 1 from"):
        load(f"npz:{path}")


def test_npz_reads_no_unlabelled_images_unless_asked(tmp_path):
    x, y = arrays(6)
    path = tmp_path / "set.npz"
    bad = np.array([print], object)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, x_unlabelled=bad)
    assert load(f"npz:{path}").unlabelled is None
    with pytest.raises(DataError, match=r"set\.npz"):
        load(f"npz:{path}", unlabelled=True)


def test_npz_is_never_unpickled(tmp_path):
    path = tmp_path / "bad.npz"
    x, y = arrays(6)
    np.savez(path, x_train=x, y_train=np.array([print], object), x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"bad\.npz"):
        load(f"npz:{path}")


def test_npz_errors_name_the_file(tmp_path):
    with pytest.raises(DataNotFound, match=r"none\.npz"):
        load(f"npz:{tmp_path / 'none.npz'}")
    np.savez(tmp_path / "part.npz", x_train=np.zeros(1))
    with pytest.raises(DataError, match="lacks y_train, x_test, y_test; it holds x_train"):
        load(f"npz:{tmp_path / 'part.npz'}")
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    with pytest.raises(DataError, match=r"text\.npz"):
        load(f"npz:{tmp_path / 'text.npz'}")


def test_image_size_is_for_folders():
    with pytest.raises(DataError, match="only be given for folder"):
        load("digits", image_size=32)


def test_sets_without_unlabelled_images_have_none():
    assert load("digits", unlabelled=True).unlabelled is None


def test_missing_modules_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"digits needs the module.*pip install"):
        load("digits")
