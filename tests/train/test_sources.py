import hashlib
import sys

import numpy as np
import pytest
from PIL import Image

from train import data, sources
from train.images import RecordSplit, Split, channel_statistics


def arrays(count, *, seed=0, shape=(4, 5, 3), classes=3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return images, (np.arange(count) % classes).astype(np.int32)


@pytest.fixture
def write_images(tmp_path):
    def write(files, size=(6, 4)):
        for position, file in enumerate(files):
            path = tmp_path / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (position, 0, 255)).save(path)
        return tmp_path / "images"

    return write


def test_digits_are_complete_and_balanced():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.train.images.max() == 255
    whole = np.bincount(np.concatenate([digits.train.labels, digits.test.labels]))
    assert whole.sum() == 1797
    np.testing.assert_allclose(np.bincount(digits.test.labels), whole * 360 / 1797, atol=1)
    images = np.concatenate([digits.train.images, digits.test.images]).reshape(1797, -1)
    bunch = sources.require("sklearn.datasets", "").load_digits()
    expected = np.rint(bunch.data * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.sort(images.sum(1)), np.sort(expected.sum(1)))


def test_digits_split_never_changes():
    digits = data.load("digits")
    digest = hashlib.sha256(digits.test.images.tobytes() + digits.test.labels.tobytes())
    assert digest.hexdigest()[:16] == "883634103e27df12"


def test_statistics_are_those_of_the_training_images():
    images, labels = arrays(1500)
    loaded = data.from_arrays("a", images, labels, *arrays(4, seed=1))
    np.testing.assert_allclose(loaded.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_statistics_of_a_constant_channel_can_divide():
    images = np.full((3, 2, 2, 1), 255, np.uint8)
    assert channel_statistics(Split(images, np.zeros(3, np.int32))) == ((1.0,), (1.0,))


def test_arrays_without_a_channel_get_one():
    images, labels = arrays(6, shape=(4, 5))
    loaded = data.from_arrays("a", images, labels[:, None], images, labels)
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
    with pytest.raises(data.DataError, match=message):
        data.from_arrays("a", *change(*arrays(6)))


def test_npz_round_trip(tmp_path):
    x, y = arrays(6)
    loaded = data.from_arrays("a", x, y, x[:3], y[:3], class_names="abc", source_note="re-encoded")
    sources.save_npz(loaded, tmp_path / "set.npz")
    again = data.load(f"npz:{tmp_path / 'set.npz'}")
    np.testing.assert_array_equal(again.train.images, x)
    np.testing.assert_array_equal(again.test.labels, y[:3])
    assert (again.name, again.class_names) == ("set", ("a", "b", "c"))
    assert again.source_note == "re-encoded"


def test_npz_is_never_unpickled(tmp_path):
    path = tmp_path / "bad.npz"
    x, y = arrays(6)
    np.savez(path, x_train=x, y_train=np.array([print], object), x_test=x, y_test=y)
    with pytest.raises(data.DataError, match=r"bad\.npz"):
        data.load(f"npz:{path}")


def test_npz_errors_name_the_file(tmp_path):
    with pytest.raises(data.DataNotFound, match=r"none\.npz"):
        data.load(f"npz:{tmp_path / 'none.npz'}")
    np.savez(tmp_path / "part.npz", x_train=np.zeros(1))
    with pytest.raises(data.DataError, match="lacks y_train, x_test, y_test; it holds x_train"):
        data.load(f"npz:{tmp_path / 'part.npz'}")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(data.DataError, match=r"text\.npz"):
        data.load(f"npz:{tmp_path / 'text.npz'}")


def test_folder_with_splits(write_images):
    files = ["train/b/2.png", "train/a/0.png", "train/a/1.bmp", "test/b/3.png"]
    loaded = data.load(f"folder:{write_images(files)}")
    assert loaded.class_names == ("a", "b")
    assert loaded.image_shape == (4, 6, 3)
    assert loaded.train.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert loaded.train.labels.tolist() == [0, 0, 1]
    assert loaded.test.labels.tolist() == [1]
    assert loaded.source_note == ""


def test_folder_without_splits_is_split(write_images, caplog):
    files = [f"{name}/{i}.png" for name in "abc" for i in range(10)]
    path = write_images(files)
    with caplog.at_level("INFO"):
        loaded = data.load(f"folder:{path}")
    assert np.bincount(loaded.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(loaded.test.labels).tolist() == [2, 2, 2]
    assert "seed 0" in caplog.text
    assert "seed 0" in loaded.source_note
    np.testing.assert_array_equal(loaded.test.images, data.load(f"folder:{path}").test.images)


def test_folder_images_are_scaled(write_images):
    path = write_images(["train/a/0.png", "test/a/1.png"])
    write_images(["train/a/2.png"], size=(9, 30))
    with pytest.raises(data.DataError, match=r"2\.png is 9 x 30 pixels, the first image is 6 x 4"):
        data.load(f"folder:{path}")
    assert data.load(f"folder:{path}", image_size=5).image_shape == (5, 5, 3)


def test_folder_above_the_limit_is_streamed(write_images):
    path = write_images([f"{s}/a/{i}.png" for s in ("train", "test") for i in range(3)])
    loaded = data.load(f"folder:{path}", memory_limit_mib=0)
    assert isinstance(loaded.train, RecordSplit)
    assert loaded.train[1]["image"][0, 0].tolist() == [1, 0, 255]
    assert loaded.train[1]["label"] == 0
    batch = next(data.stream(loaded.train, batch_size=2, seed=0))
    assert batch["image"].shape == (2, 4, 6, 3)


def test_folder_errors_name_the_place(write_images):
    path = write_images(["train/a/0.png", "test/a/1.png"])
    (path / "train/a/9.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match=r"train/a/9\.png"):
        data.load(f"folder:{path}")
    (path / "train/a/9.png").unlink()
    (path / "train/empty").mkdir()
    with pytest.raises(data.DataError, match="train/empty has no image"):
        data.load(f"folder:{path}")
    (path / "train/empty").rmdir()
    write_images(["test/new/1.png"])
    with pytest.raises(data.DataError, match="classes that train/ lacks: new"):
        data.load(f"folder:{path}")
    with pytest.raises(data.DataError, match="no folder of a class"):
        data.load(f"folder:{path / 'test/new'}")
    with pytest.raises(data.DataNotFound, match="there is no folder"):
        data.load(f"folder:{path / 'nowhere'}")


def test_half_a_split_is_refused(write_images):
    path = write_images(["train/a/0.png"])
    with pytest.raises(data.DataError, match="needs both train/ and test/"):
        data.load(f"folder:{path}")


def test_image_size_is_for_folders():
    with pytest.raises(data.DataError, match="only be given for folder"):
        data.load("digits", image_size=32)


def test_missing_modules_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(data.DataError, match=r"digits needs the module.*pip install"):
        data.load("digits")
