import json

import numpy as np
import pytest

from train.data.load import load
from train.data.subsets import draw_balanced
from train.data.types import DataError
from train.labelled import Config, write_splits
from train.ssl.labels import SPLITS, labelled_indices, read_splits

LABELS = np.arange(60) % 3


def test_a_draw_is_balanced_sorted_and_of_its_seed():
    first, again, other = (draw_balanced(LABELS, 12, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.all(np.diff(first) > 0)
    assert np.bincount(LABELS[first]).tolist() == [4, 4, 4]


def test_fewer_labels_are_among_more_of_the_same_seed():
    few, many = (set(draw_balanced(LABELS, n, seed=0).tolist()) for n in (6, 12))
    assert few < many


def test_rare_classes_get_as_many_as_others():
    labels = np.repeat([0, 1, 2], [50, 5, 20])
    assert np.bincount(labels[draw_balanced(labels, 12, seed=0)]).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("count", "message"),
    [(7, "multiple of the number of classes, 3"), (0, "multiple"), (63, "class 0 has 20")],
)
def test_labels_that_cannot_be_drawn(count, message):
    with pytest.raises(DataError, match=message):
        draw_balanced(LABELS, count, seed=0)


def test_the_file_decides_where_there_is_one(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"3": {"0": [3, 4, 5]}}), encoding="utf-8")
    assert labelled_indices("set", LABELS, 3, seed=0, folder=tmp_path).tolist() == [3, 4, 5]
    drawn = draw_balanced(LABELS, 3, seed=1)
    found = labelled_indices("set", LABELS, 3, seed=1, folder=tmp_path)
    assert np.array_equal(found, drawn)


@pytest.mark.parametrize(
    ("listed", "message"),
    [([3, 4, 60], "not 3 different ones of 60"), ([3, 3, 4], "not 3"), ([0, 3, 4], "not balanced")],
)
def test_files_of_other_data_are_refused(listed, message, tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"3": {"0": listed}}), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        labelled_indices("set", LABELS, 3, seed=0, folder=tmp_path)


def test_the_lists_of_the_repository_are_whole():
    names = sorted(path.stem for path in SPLITS.glob("*.json"))
    assert names == ["cifar10", "digits", "fashion_mnist"]
    for name in names:
        for count, lists in read_splits(name).items():
            assert {len(set(found)) for found in lists.values()} == {int(count)}
            assert len({tuple(found) for found in lists.values()}) == len(lists)
    # The eight published lists of ten; the one of the most typical images is first.
    published = read_splits("cifar10")["10"]
    assert len(published) == 8
    assert published["0"][:3] == [4255, 6446, 8580]
    assert published["7"][-1] == 47447


def test_lists_are_what_the_command_draws(tmp_path):
    place = write_splits(Config("digits", labels=(10, 40), seeds=3), tmp_path)
    digits = load("digits").train.labels
    committed, drawn = read_splits("digits"), json.loads(place.read_text(encoding="utf-8"))
    for count in ("10", "40"):
        assert drawn[count] == committed[count]
        for found in drawn[count].values():
            assert np.bincount(digits[found]).tolist() == [int(count) // 10] * 10
    # Lists that are there stay.
    changed = drawn | {"10": drawn["10"] | {"0": list(range(10))}}
    place.write_text(json.dumps(changed), encoding="utf-8")
    write_splits(Config("digits", labels=(10,), seeds=4), tmp_path)
    after = read_splits("digits", tmp_path)
    assert after["10"]["0"] == list(range(10))
    assert len(after["10"]) == 4
