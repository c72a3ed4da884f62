import pytest

from train.reporting.records import cell, curves, final_records, mean_and_spread, select

RECORDS = [
    {"step": 0, "seed": 0, "a": 1.0},
    {"step": 0, "seed": 1, "a": 3.0},
    {"step": 5, "seed": 0, "a": 2.0, "b": None},
]


def test_mean_and_spread():
    assert mean_and_spread([2.0]) == (2.0, 0.0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_curves_over_whatever_differs():
    assert curves(RECORDS, "a") == ([0, 5], [2.0, 2.0], [pytest.approx(2**0.5), 0.0])
    assert curves(RECORDS, "a", by="seed") == ([0, 1], [1.5, 3.0], [pytest.approx(0.5**0.5), 0.0])
    assert curves(RECORDS, "b") == ([], [], [])


def test_select_and_final():
    assert select(RECORDS, step=0, seed=1) == [RECORDS[1]]
    assert final_records(RECORDS) == [RECORDS[2]]


def test_cells():
    assert cell(RECORDS, "a") == "2.000 ± 1.000"
    assert cell(RECORDS[:1], "a") == "1.0000"
    assert cell(RECORDS, "b") == cell([], "a") == "-"
