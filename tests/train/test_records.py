import pytest
from matplotlib.axes import Axes

from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import (
    beside,
    cell,
    curves,
    final_records,
    mean_and_spread,
    only_counts_above_zero,
    select,
    without_direction,
)

RECORDS = [
    {"step": 0, "seed": 0, "a": 1.0},
    {"step": 0, "seed": 1, "a": 3.0},
    {"step": 5, "seed": 0, "a": 2.0, "b": None},
]
WHOLE = (["stem", "head"], [1.0, 2.0], [0.0, 0.1])


def test_mean_and_spread():
    assert mean_and_spread([2.0]) == (2.0, 0.0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_curves_over_whatever_differs():
    assert curves(RECORDS, "a") == ([0, 5], [2.0, 2.0], [pytest.approx(2**0.5), 0.0])
    assert curves(RECORDS, "a", by="seed") == ([0, 1], [1.5, 3.0], [pytest.approx(0.5**0.5), 0.0])
    assert curves(RECORDS, "b") == ([], [], [])
    # Not the mean of those that have a value.
    assert curves([*RECORDS, {"step": 0, "seed": 2, "a": None}], "a")[0] == [5]


def test_select_and_final():
    assert select(RECORDS, step=0, seed=1) == [RECORDS[1]]
    assert final_records(RECORDS) == [RECORDS[2]]


def test_cells():
    assert cell(RECORDS, "a") == "2.000 ± 1.000"
    assert cell(RECORDS[:1], "a") == "1.0000"
    assert cell(RECORDS, "b") == cell([], "a") == "-"


def test_samples_without_a_direction_are_said_beside_n():
    measured = {"test_mir": 0.5, "train_mir": 0.4}
    records = [measured | {"test_without_direction": 3.0}, measured]
    assert without_direction(records[:1]) == " (3 without a direction)"
    assert without_direction(records) == " (0 to 3 without a direction)"
    assert without_direction(records, "train_") == without_direction([]) == ""
    # What was not measured in a record says nothing.
    assert without_direction(records[:1], "test_", "layer_") == " (3 without a direction)"
    assert beside([1234, 5, 99]) == " (5 to 1,234 without a direction)"
    assert beside([0, 0]) == ""


def test_counts_of_zero_are_not_recorded():
    counts = {"test_n": 0.0, "a_without_direction": 0.0, "without_direction": float("nan")}
    assert only_counts_above_zero(counts | {"b_without_direction": 2.0}) == {
        "test_n": 0.0,
        "b_without_direction": 2.0,
    }


def test_a_line_without_points_is_drawn_as_none(tmp_path):
    panel = Panel("MIR", "layer", [Line("partly", *curves(RECORDS, "b")), Line("whole", *WHOLE)])
    draw([panel], tmp_path / "a.png", title="some values missing")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_legend_that_all_panels_share_is_drawn_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "legend", lambda axes, **_: drawn.append(axes.get_title()))
    one, other = ([Line(name, [0, 1], [1.0, 2.0], [0.1, 0.1])] for name in ("one", "other"))
    same = [Panel("MIR", "step", one), Panel("HDR", "step", one)]
    draw(same, tmp_path / "a.png", title="the same lines")
    assert drawn == ["MIR"]
    draw([*same, Panel("NC1", "step", other)], tmp_path / "b.png", title="another line in one")
    draw([same[0], Panel("HDR", "step", one, {"at collapse": 0.5})], tmp_path / "c.png", title="")
    assert drawn == ["MIR", "MIR", "HDR", "NC1", "MIR", "HDR"]


def test_levels_that_print_alike_share_a_line():
    forms = {"mir": 0.99811, "mir_debiased": 0.99842, "class_mir": 0.99811, "hdr": 0.0}
    assert levels(forms, ["test_mir", "test_mir_debiased", "test_hdr"]) == {
        "MIR at collapse": 0.99811
    }
    apart = levels(forms | {"mir_debiased": 0.9}, ["test_mir", "test_class_mir", "b_mir_debiased"])
    assert list(apart) == ["MIR at collapse", "MIR debiased at collapse"]
