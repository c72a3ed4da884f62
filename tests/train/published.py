"""Small archives in the formats of the published ones, with random images."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from train.data import image_tree
from train.data.tfds import Published
from train.prepare import prepare

CLASSES = image_tree.CLASSES["cifar10"]


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def random_split(count, classes, shape, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return rng.integers(0, 256, (count, *shape), np.uint8), labels


def prepare_small(name, source, *, counts, **options):
    """`train.prepare` of a small copy of a published set, with `counts` images per class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Published, "counts", lambda _: counts)
        return prepare(name, source, **options)


def counts_of(**sizes):
    """Images per class, for splits whose classes are as equal as they can be."""
    return {
        split: np.bincount(np.arange(count) % classes, minlength=classes).tolist()
        for split, (count, classes) in sizes.items()
    }


def cifar_records(images, *labels):
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.hstack([np.stack(labels, 1).astype(np.uint8), pixels])


def write_cifar10(path):
    train, test = random_split(50, 10, (32, 32, 3), 0), random_split(20, 10, (32, 32, 3), 1)
    folder = "cifar-10-batches-bin"
    files = {f"{folder}/batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
    for number, part in enumerate(np.split(cifar_records(*train), 5), 1):
        files[f"{folder}/data_batch_{number}.bin"] = part.tobytes()
    files[f"{folder}/test_batch.bin"] = cifar_records(*test).tobytes()
    return write_tar(path / "cifar-10-binary.tar.gz", files), train, test


CIFAR10_COUNTS = counts_of(train=(50, 10), test=(20, 10))


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path, *, compressed=True):
    path.mkdir()
    splits = [random_split(20, 10, (28, 28), 0), random_split(10, 10, (28, 28), 1)]
    for prefix, (images, labels) in zip(["train", "t10k"], splits, strict=True):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            content = idx_bytes(array)
            if compressed:
                (path / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (path / f"{prefix}-{kind}-ubyte").write_bytes(content)
    return path, *splits


IDX_COUNTS = counts_of(train=(20, 10), test=(10, 10))


def write_stl10(path):
    splits = [random_split(10, 10, (96, 96, 3), seed) for seed in range(2)]
    unlabelled = random_split(3, 1, (96, 96, 3), 2)[0]
    files = {
        "stl10_binary/unlabeled_X.bin": unlabelled.transpose(0, 3, 2, 1).tobytes(),
        "stl10_binary/class_names.txt": "\n".join(CLASSES).encode(),
    }
    for name, (images, labels) in zip(["train", "test"], splits, strict=True):
        files[f"stl10_binary/{name}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        files[f"stl10_binary/{name}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
    return write_tar(path / "stl10_binary.tar.gz", files), splits, unlabelled


STL10_COUNTS = {**counts_of(train=(10, 10), test=(10, 10)), "unlabelled": [3]}


def svhn_arrays(images, labels):
    numbers = np.where(labels == 0, 10, labels).astype(np.uint8)
    return {"X": images.transpose(1, 2, 3, 0), "y": numbers[:, None]}


def write_svhn(path):
    path.mkdir()
    splits = [random_split(30, 10, (32, 32, 3), 0), random_split(20, 10, (32, 32, 3), 1)]
    for name, split in zip(["train", "test"], splits, strict=True):
        file = path / f"{name}_32x32.mat"
        scipy.io.savemat(file, svhn_arrays(*split), do_compression=True)
    return path, *splits


SVHN_COUNTS = counts_of(train=(30, 10), test=(20, 10))


def image_files(suffix, per_class, *, first=0):
    """Images whose colour tells the class and the number, by name."""
    files = {}
    for split, count in per_class.items():
        for label, name in enumerate(CLASSES):
            for number in range(first, first + count):
                content = io.BytesIO()
                image = Image.new("RGB", (32, 32), (20 * label, 20 * number, 0))
                image.save(content, {"jpg": "JPEG"}.get(suffix, suffix))
                files[f"{split}/{name}/{number}.{suffix}"] = content.getvalue()
    return files
