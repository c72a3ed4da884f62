import os
import pickle

import numpy as np
import pytest
import scipy.io

from tests.train.published import (
    CIFAR10_COUNTS,
    SVHN_COUNTS,
    idx_bytes,
    image_files,
    prepare_small,
    random_split,
    svhn_arrays,
    write_cifar10,
    write_idx,
    write_svhn,
    write_tar,
)
from train import prepare as prepare_module
from train.data import archives
from train.data.load import load
from train.data.types import DataError, DataNotFound
from train.prepare import main, prepare

pytest.importorskip("tensorflow_datasets")


def test_labels_must_match_the_images(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", image_files("png", {"train": 1, "test": 1}))
    np.savez(tmp_path / "labels.npz", train=np.zeros(10, int), test=np.arange(10))
    with pytest.raises(DataError, match="does not match the images of train"):
        prepare("cifar10", archive, labels=tmp_path / "labels.npz", data_dir=tmp_path)
    np.savez(tmp_path / "labels.npz", train=np.array([print], object))
    with pytest.raises(DataError, match="cannot read train and test"):
        prepare("cifar10", archive, labels=tmp_path / "labels.npz", data_dir=tmp_path)


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_not_read(tmp_path):
    content = {"cifar-10-batches-py/data_batch_1": pickle.dumps(Opens(tmp_path / "opened"))}
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", content)
    with pytest.raises(DataError, match=r"use the binary version, cifar-10-binary\.tar\.gz"):
        prepare("cifar10", archive, data_dir=tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(pickle.dumps(Opens(tmp_path / "opened")))
    with pytest.raises(DataError, match=r"train_32x32\.mat is truncated, damaged or no file"):
        prepare("svhn_cropped", tmp_path, data_dir=tmp_path / "data")
    assert not (tmp_path / "opened").exists()


def test_official_counts_are_asked_for(tmp_path):
    archive, *_ = write_cifar10(tmp_path)
    with pytest.raises(DataError, match="50 images in train, the published data have 50,000"):
        prepare("cifar10", archive, data_dir=tmp_path)
    folder, *_ = write_idx(tmp_path / "idx")
    counts = {"train": [1, 3, *[2] * 8], "test": [1] * 10}
    with pytest.raises(DataError, match="images per class of train are not those"):
        prepare_small("mnist", folder, data_dir=tmp_path, counts=counts)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_archives_are_refused(keep, tmp_path):
    archive, *_ = write_cifar10(tmp_path)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        prepare_small("cifar10", archive, data_dir=tmp_path / "data", counts=CIFAR10_COUNTS)
    assert not (tmp_path / "data").exists()


def test_wrong_sources_are_refused(tmp_path):
    archive, *_ = write_cifar10(tmp_path)
    folder, *_ = write_idx(tmp_path / "idx")
    (tmp_path / "text").write_text("no archive", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, source, message in (
        ("cifar100", archive, "lacks train.bin"),
        ("stl10", archive, "lacks train_X.bin"),
        ("mnist", archive, "folder with its four idx files"),
        ("cifar10", folder, "idx files, which cifar10 is not published as"),
        ("cifar10", tmp_path / "text", "truncated, damaged or of another kind"),
        ("cifar10", tmp_path / "nowhere", "there is no .*nowhere; cifar10 needs"),
        ("cifar10", tmp_path / "empty", "holds no train/<class>/<image>"),
        ("stl10", tmp_path / "empty", "cannot be prepared from images"),
        ("svhn_cropped", tmp_path / "text", "from the folder with train_32x32.mat and test_32x32"),
        ("svhn_cropped", folder, r"lacks train_32x32\.mat: put the published file there"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(name, source, data_dir=tmp_path / "data")


def test_splits_of_other_names_are_named(tmp_path):
    files = image_files("png", {"train": 1, "val": 1})
    archive = write_tar(tmp_path / "a.tar.gz", files)
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for source in (archive, folder):
        message = r"holds no test/<class>/<image>; it has images in train/, val/"
        with pytest.raises(DataError, match=message):
            prepare("cifar10", source, data_dir=tmp_path / "data")


def test_damaged_idx_files_are_refused(tmp_path):
    folder, *_ = write_idx(tmp_path / "idx", compressed=False)
    labels = folder / "t10k-labels-idx1-ubyte"
    for content, message in (
        (labels.read_bytes()[:-1], "does not hold the 10 bytes"),
        (labels.read_bytes() + b"1", "does not hold the 10 bytes"),
        (b"\0\0\x08\x03", "no idx file"),
        (idx_bytes(np.zeros(9, np.uint8)), "10 images and 9 labels"),
    ):
        labels.write_bytes(content)
        with pytest.raises(DataError, match=message):
            prepare("mnist", folder, data_dir=tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="has none of t10k-labels-idx1-ubyte"):
        prepare("mnist", folder, data_dir=tmp_path)


@pytest.mark.parametrize("keep", [0, 0.02, 0.5, 0.999])
def test_truncated_mat_files_are_refused(keep, tmp_path):
    folder, *_ = write_svhn(tmp_path / "mat")
    file = folder / "test_32x32.mat"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    message = r"test_32x32\.mat is truncated, .*: get it again"
    with pytest.raises(DataError, match=message):
        prepare_small("svhn_cropped", folder, data_dir=tmp_path / "data", counts=SVHN_COUNTS)
    assert not (tmp_path / "data").exists()


def test_wrong_mat_files_are_refused(tmp_path):
    folder, *_ = write_svhn(tmp_path / "mat")
    right = svhn_arrays(*random_split(20, 10, (32, 32, 3), 1))
    x, y = right["X"], right["y"]
    cells = np.empty((1, 1), object)
    cells[0, 0] = y
    for arrays, message in (
        ({"X": x}, "lacks y: "),
        ({"digitStruct": y}, "lacks X and y: "),
        ({"X": x.astype(float), "y": y}, r"X is float64 \(32, 32, 3, 20\)"),
        ({"X": x[:, :, 0], "y": y}, r"X is uint8 \(32, 32, 20\)"),
        ({"X": x, "y": y[1:]}, r"y is uint8 \(19, 1\), not integers \(20, 1\)"),
        ({"X": x, "y": cells}, r"y is object"),
        ({"X": x, "y": y.astype(float) + 0.5}, r"y is float64 \(20, 1\)"),
        ({"X": x, "y": y - 1}, "labels are not from 1 to 10: "),
        ({"X": x, "y": y + 1}, "labels are not from 1 to 10: "),
    ):
        scipy.io.savemat(folder / "test_32x32.mat", arrays)
        with pytest.raises(DataError, match=rf"test_32x32\.mat.* {message}.*published file"):
            prepare_small("svhn_cropped", folder, data_dir=tmp_path / "data", counts=SVHN_COUNTS)
    scipy.io.savemat(folder / "test_32x32.mat", {"X": x[..., :19], "y": y[:19]})
    with pytest.raises(DataError, match="19 images in test, the published data have 20"):
        prepare_small("svhn_cropped", folder, data_dir=tmp_path / "data", counts=SVHN_COUNTS)


def test_existing_data_are_left_alone(tmp_path):
    archive, *_ = write_cifar10(tmp_path)
    root = tmp_path / "data"
    target = prepare_small("cifar10", archive, data_dir=root, counts=CIFAR10_COUNTS)
    (target / "SOURCE.txt").write_text("an older one", encoding="utf-8")
    with pytest.raises(DataError, match="already there; --overwrite replaces it"):
        prepare_small("cifar10", archive, data_dir=root, counts=CIFAR10_COUNTS)
    assert load("cifar10", data_dir=str(root)).source_note == "an older one"
    prepare_small("cifar10", archive, data_dir=root, overwrite=True, counts=CIFAR10_COUNTS)
    assert load("cifar10", data_dir=str(root)).source_note == ""
    assert [path.name for path in root.iterdir()] == ["cifar10"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_an_interruption_leaves_nothing_behind(error, tmp_path, monkeypatch):
    archive, *_ = write_cifar10(tmp_path)
    root = tmp_path / "data"
    written = prepare_small("cifar10", archive, data_dir=root, counts=CIFAR10_COUNTS)
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}

    def progress(title, done, total):
        # Comes after the last image of the first split.
        raise error("stop")

    monkeypatch.setattr(prepare_module, "_progress", progress)
    for target in (root, tmp_path / "new"):
        with pytest.raises(error):
            prepare_small(
                "cifar10", archive, data_dir=target, overwrite=True, counts=CIFAR10_COUNTS
            )
    assert {path.name: path.stat().st_mtime_ns for path in written.iterdir()} == before
    assert [path.name for path in root.iterdir()] == ["cifar10"]
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(DataNotFound):
        load("cifar10", data_dir=str(tmp_path / "new"))


def test_members_are_not_extracted(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {"../outside": b"x", "/absolute": b"y"})
    assert [name for name, *_ in archives.members(archive)] == ["../outside", "/absolute"]
    assert not (tmp_path.parent / "outside").exists()


def test_command_reports_errors_in_one_line(tmp_path, capsys):
    status = main(["mnist", "--from", str(tmp_path / "no\nwhere"), "--data-dir", str(tmp_path)])
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.startswith("error: there is no ")
    assert output.err.count("\n") == 1


def test_command_prepares(tmp_path, capsys, monkeypatch):
    folder, *_ = write_idx(tmp_path / "idx")
    published = prepare_module.PUBLISHED["mnist"]
    monkeypatch.setitem(prepare_module.PUBLISHED, "mnist", type(published)("", "", train=2, test=1))
    assert main(["mnist", "--from", str(folder), "--data-dir", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.out == f"mnist is in {tmp_path / 'mnist/3.0.1'}\n"
    assert output.err == "mnist train: 20\nmnist test: 10\n"


def test_unknown_names_end_the_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["imagenet", "--from", "x"])
    assert caught.value.code == 2
    assert "cifar10" in capsys.readouterr().err
