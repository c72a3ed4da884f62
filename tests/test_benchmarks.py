"""The benchmarks' own parts; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import classes
from benchmarks.profiling import _covered, _kind
from benchmarks.timing import Row

ROOT = Path(__file__).parents[1]


def test_no_module_hides_one_of_the_standard_library():
    # `python benchmarks/grokking.py` looks in this folder first.
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not names & sys.stdlib_module_names


def test_the_command_is_imported_by_workers_at_no_cost():
    code = "import sys, benchmarks.run; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_wgrad_indexed_implicit_gemm_f32f32", "convolutions (gradients of weights)"),
        ("sm90_xmma_fprop_implicit_gemm_tf32", "convolutions"),
        ("cutlass_80_simt_sgemm_128x32", "products"),
        ("input_convert_reduce_fusion", "reductions"),
        ("loop_convert_fusion", "elementwise"),
        ("loop_add_fusion", "elementwise"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    assert _kind(kernel) == kind


def test_time_that_is_covered():
    assert _covered([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5


def test_a_row_tells_ratios_and_what_differs():
    times = {"mirjax": [1.0, 2.0, 4.0], "peer": [2.0, 2.0, 2.0]}
    row = Row("batch", "sizes", {"mirjax": 0.1, "peer": 0.2}, times, differing="peer computes 1")
    lines = row.lines()
    assert "| 1.00 (0.50 to 2.00) |" in lines[1]
    assert "**differs**: peer computes 1" in lines[2]


def test_a_row_of_classes():
    measure = classes.MEASURES[-1]
    first, last = classes.compare(measure, 24, 6, (3, 40), seconds=0, rounds=2)
    assert {len(times) for times in first.milliseconds.values()} == {2}
    # Arguments alone: features, head and labels.
    assert last.memory[classes.PLANNED] > 4 * (24 * 6 + 40 * 6 + 24) / 2**20
    assert "time of mirjax over that at C = 3:" in "\n".join(last.lines())


def test_values_and_gradients_that_differ():
    ours = {"a": 1.0, "b": 2.0}, (np.array([3.0, 4.0]),)
    theirs = {"a": 1.0, "b": 2.5}, (np.array([3.0, 4.5]),)
    assert classes.differences(ours, theirs) == pytest.approx((0.2, 0.5 / np.hypot(3.0, 4.5)))
    assert classes.differences(ours, ({"a": 1.0, "b": np.nan}, ours[1]))[0] == np.inf
    with pytest.raises(ValueError, match="are not"):
        classes.differences(ours, ({"a": 1.0}, ours[1]))
