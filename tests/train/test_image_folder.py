import numpy as np
import pytest
from PIL import Image

from train.data.batches import stream
from train.data.load import load
from train.data.types import DataError, DataNotFound, RecordSplit, Split


@pytest.fixture
def write_images(tmp_path):
    def write(files, size=(6, 4)):
        for position, file in enumerate(files):
            path = tmp_path / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (position, 0, 255)).save(path)
        return tmp_path / "images"

    return write


def test_folder_with_splits(write_images):
    files = ["train/b/2.png", "train/a/0.png", "train/a/1.bmp", "test/b/3.png"]
    loaded = load(f"folder:{write_images(files)}")
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
        loaded = load(f"folder:{path}")
    assert np.bincount(loaded.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(loaded.test.labels).tolist() == [2, 2, 2]
    assert "seed 0" in caplog.text
    assert "seed 0" in loaded.source_note
    np.testing.assert_array_equal(loaded.test.images, load(f"folder:{path}").test.images)


def test_folder_images_are_scaled(write_images):
    path = write_images(["train/a/0.png", "test/a/1.png"])
    write_images(["train/a/2.png"], size=(9, 30))
    with pytest.raises(DataError, match=r"2\.png is 9 x 30 pixels, the first image is 6 x 4"):
        load(f"folder:{path}")
    assert load(f"folder:{path}", image_size=5).image_shape == (5, 5, 3)


def test_folder_above_the_limit_is_streamed(write_images):
    path = write_images([f"{s}/a/{i}.png" for s in ("train", "test") for i in range(3)])
    loaded = load(f"folder:{path}", memory_limit_mib=0)
    assert isinstance(loaded.train, RecordSplit)
    assert loaded.train[1]["image"][0, 0].tolist() == [1, 0, 255]
    assert loaded.train[1]["label"] == 0
    batch = next(stream(loaded.train, batch_size=2, seed=0))
    assert batch["image"].shape == (2, 4, 6, 3)


def test_folder_errors_name_the_place(write_images):
    path = write_images(["train/a/0.png", "test/a/1.png"])
    (path / "train/a/9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/a/9\.png: .*; replace or remove it"):
        load(f"folder:{path}")
    (path / "train/a/9.png").unlink()
    (path / "train/empty").mkdir()
    with pytest.raises(
        DataError,
        match=r"the class empty has no labelled image in .*/train/empty .*remove the folder",
    ):
        load(f"folder:{path}")
    (path / "train/empty").rmdir()
    write_images(["test/new/1.png"])
    with pytest.raises(DataError, match="classes that train/ lacks: new"):
        load(f"folder:{path}")
    with pytest.raises(DataError, match="no folder of a class"):
        load(f"folder:{path / 'test/new'}")
    with pytest.raises(DataNotFound, match="there is no folder"):
        load(f"folder:{path / 'nowhere'}")


SPLIT_FILES = ["train/a/0.png", "test/a/1.png"]
CLASS_FILES = ["a/0.png", "a/1.png", "a/2.png"]


@pytest.mark.parametrize("files", [SPLIT_FILES, CLASS_FILES])
def test_folder_with_unlabelled_images(files, write_images):
    inside = ["c.png", "a/1.png", "b/deep/0.bmp", ".hidden/9.png", "b/.9.png"]
    path = write_images([*files, *(f"unlabelled/{file}" for file in inside)])
    (path / "unlabelled/notes.txt").write_text("no image", encoding="utf-8")
    loaded = load(f"folder:{path}")
    assert (loaded.unlabelled, loaded.class_names) == (None, ("a",))
    loaded = load(f"folder:{path}", unlabelled=True)
    assert loaded.class_names == ("a",)
    assert isinstance(loaded.unlabelled, Split)
    first = len(files)
    assert loaded.unlabelled.images[:, 0, 0, 0].tolist() == [first + 1, first + 2, first]
    assert loaded.unlabelled.labels.tolist() == [-1, -1, -1]
    streamed = load(f"folder:{path}", unlabelled=True, memory_limit_mib=0).unlabelled
    assert isinstance(streamed, RecordSplit)
    assert streamed.take(np.arange(3))["label"].tolist() == [-1, -1, -1]


def test_folder_without_unlabelled_images(write_images):
    assert load(f"folder:{write_images(SPLIT_FILES)}", unlabelled=True).unlabelled is None


def test_unlabelled_folders_that_are_links_are_read(write_images, tmp_path):
    path = write_images([*SPLIT_FILES, "unlabelled/0.png"])
    (tmp_path / "images/unlabelled/more").symlink_to(tmp_path / "images/train/a")
    assert len(load(f"folder:{path}", unlabelled=True).unlabelled) == 2


def test_errors_of_unlabelled_images_name_the_place(write_images):
    path = write_images([*SPLIT_FILES, "unlabelled/x/0.png"])
    bad = path / "unlabelled/x/9.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"unlabelled/x/9\.png: .*; replace or remove it"):
        load(f"folder:{path}", unlabelled=True)
    assert len(load(f"folder:{path}").train) == 1
    Image.new("RGB", (9, 30)).save(bad)
    with pytest.raises(DataError, match=r"9\.png is 9 x 30 pixels.*: give --image-size"):
        load(f"folder:{path}", unlabelled=True)
    loaded = load(f"folder:{path}", unlabelled=True, image_size=5)
    assert loaded.unlabelled.images.shape == (2, 5, 5, 3)
    for file in (bad, path / "unlabelled/x/0.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"unlabelled has no image .*or remove the folder"):
        load(f"folder:{path}", unlabelled=True)
    assert load(f"folder:{path}").unlabelled is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/0.png"], r"or neither; it has train/: rename one of them to test/, or add it"),
        (["train/a/0.png", "val/a/1.png", ".x/a/2.png"], r"it has train/, val/: .* to test/"),
        (["test/a/0.png", "training/a/1.png"], r"it has test/, training/: .* to train/"),
        (["training/a/0.png", "validation/a/1.png"], r"/training has no image but the folders a/:"),
    ],
)
def test_half_a_split_is_refused_with_what_there_is(files, message, write_images):
    with pytest.raises(DataError, match=message):
        load(f"folder:{write_images(files)}")
