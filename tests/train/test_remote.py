"""Data in stores: the fast tests are on file:// and memory://, the slow ones on an emulator."""

import io
import logging
import sys

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry

from tests.train.emulator import gs_bucket
from tests.train.published import (
    CIFAR10_COUNTS,
    STL10_COUNTS,
    prepare_small,
    write_cifar10,
    write_stl10,
)
from train.data.load import load
from train.data.types import DataError, DataNotFound, RecordSplit


@pytest.fixture(scope="module")
def bucket():
    with gs_bucket() as url:
        yield url


@pytest.fixture(params=["file", "memory", pytest.param("gs", marks=pytest.mark.slow)])
def url(request, tmp_path):
    if request.param == "gs":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return f"{request.param}://{tmp_path}/store"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mirjax" / "data"


def upload(folder, url):
    """Copies what is in a folder to a URL."""
    options = {"auto_mkdir": True} if url.startswith("file:") else {}
    fs, root = fsspec.url_to_fs(url, **options)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fs.pipe_file(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    fs.invalidate_cache()


def save(url, **arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    options = {"auto_mkdir": True} if url.startswith("file:") else {}
    fs, path = fsspec.url_to_fs(url, **options)
    fs.pipe_file(path, content.getvalue())


def arrays():
    rng = np.random.default_rng(0)
    labels = np.arange(6) % 3
    images = rng.integers(0, 256, (6, 4, 4, 1), np.uint8)
    return {"x_train": images, "y_train": labels, "x_test": images[:3], "y_test": labels[:3]}


def test_arrays_are_read_from_a_url(url):
    expected = arrays()
    save(f"{url}/digits.npz", **expected)
    loaded = load(f"npz:{url}/digits.npz")
    assert loaded.name == "digits"
    np.testing.assert_array_equal(loaded.train.images, expected["x_train"])
    np.testing.assert_array_equal(loaded.test.labels, expected["y_test"])


def test_arrays_that_cannot_be_used_are_named_with_their_url(url):
    with pytest.raises(DataNotFound, match=f"there is no file {url}/a.npz"):
        load(f"npz:{url}/a.npz")
    save(f"{url}/b.npz", **arrays() | {"y_test": np.array([{}], object)})
    with pytest.raises(DataError, match=f"cannot read {url}/b.npz as an .npz file: .*allow_pickle"):
        load(f"npz:{url}/b.npz")
    save(f"{url}/c.npz", x_train=np.zeros(3))
    with pytest.raises(DataError, match=f"{url}/c.npz lacks y_train"):
        load(f"npz:{url}/c.npz")


def test_a_folder_of_images_is_read_here_only():
    with pytest.raises(DataError, match="not from gs://bucket/images: copy them here"):
        load("folder:gs://bucket/images")


@pytest.mark.parametrize("name", ["npz:gs://bucket/a.npz", "cifar10"])
def test_without_the_package_it_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(DataError, match=r"gs://bucket.*gcsfs.*pip install -e \"\.\[mirror\]\""):
        load(name, data_dir="gs://bucket/data")


def test_prepared_data_that_are_missing_say_what_to_do(url):
    with pytest.raises(DataNotFound) as caught:
        load("mnist", data_dir=f"{url}/data/")
    message = str(caught.value)
    assert message.startswith(f"mnist is not in {url}/data/mnist. Get the four idx files")
    assert message.endswith(
        "run: python -m train.prepare mnist --from FOLDER --data-dir FOLDER, then copy FOLDER/mnist "
        f"to {url}/data/mnist"
    )


@pytest.fixture
def cifar10(tmp_path):
    archive, train, _ = write_cifar10(tmp_path)
    prepare_small("cifar10", archive, data_dir=tmp_path / "data", counts=CIFAR10_COUNTS)
    return tmp_path / "data", train


def test_prepared_data_are_copied_once_and_read(url, cifar10, cache, caplog):
    folder, (images, labels) = cifar10
    upload(folder, url)
    for limit, told in ((2048, 1), (0, 0)):
        caplog.clear()
        loaded = load("cifar10", data_dir=url, memory_limit_mib=limit)
        lines = [line for line in caplog.records if line.name == "train.data.remote"]
        assert [line.levelno for line in lines] == [logging.WARNING] * told
        assert loaded.num_classes == 10
        assert isinstance(loaded.train, RecordSplit) == (limit == 0)
    np.testing.assert_array_equal(load("cifar10", data_dir=url).train.images, images)
    np.testing.assert_array_equal(load("cifar10", data_dir=url).train.labels, labels)
    assert not list(cache.rglob("*.part"))


def test_a_copy_that_was_cut_off_is_made_again(url, cifar10, cache, monkeypatch):
    folder, (images, _) = cifar10
    upload(folder, url)
    from train.run.store import Store

    get, left = Store.get, iter(range(3))

    def stops(self, name, path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return get(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", stops)
        with pytest.raises(KeyboardInterrupt):
            load("cifar10", data_dir=url)
    assert not list(cache.rglob("dataset_info.json"))
    np.testing.assert_array_equal(load("cifar10", data_dir=url).train.images, images)
    # Cut short on the disk: the size tells.
    (shard,) = cache.rglob("cifar10-train.array_record*")
    shard.write_bytes(shard.read_bytes()[:-10])
    np.testing.assert_array_equal(load("cifar10", data_dir=url).train.images, images)


def test_what_is_prepared_otherwise_replaces_the_copy(url, cifar10, cache):
    folder, (images, _) = cifar10
    upload(folder, url)
    load("cifar10", data_dir=url)
    info = folder / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    (old,) = cache.rglob("cifar10-train.array_record*")
    old.write_bytes(bytes(old.stat().st_size))
    upload(folder, url)
    np.testing.assert_array_equal(load("cifar10", data_dir=url).train.images, images)


def test_missing_files_of_a_prepared_set_are_told(url, cifar10):
    folder, _ = cifar10
    (shard,) = (folder / "cifar10" / "3.0.2").glob("cifar10-test.array_record*")
    shard.unlink()
    upload(folder, url)
    with pytest.raises(DataError, match=f"0 of 1 files of its test split.*then copy FOLDER.*{url}"):
        load("cifar10", data_dir=url)


def test_unlabelled_images_are_copied_when_asked_for(url, tmp_path, cache):
    archive, _, unlabelled = write_stl10(tmp_path)
    prepare_small("stl10", archive, data_dir=tmp_path / "data", counts=STL10_COUNTS)
    upload(tmp_path / "data", url)
    assert load("stl10", data_dir=url).unlabelled is None
    assert not list(cache.rglob("*-unlabelled.*"))
    rest = load("stl10", data_dir=url, unlabelled=True).unlabelled
    assert sorted(i.tobytes() for i in rest.images) == sorted(i.tobytes() for i in unlabelled)
