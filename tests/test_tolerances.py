import numpy as np
import pytest

from tests.reference.definition import combine
from tests.tolerances import (
    allowed,
    assert_derivative,
    assert_entropy,
    assert_interplay,
    assert_near,
)


def test_allowed_is_relative_and_absolute_near_zero():
    assert allowed(np.float32, 4.0) == pytest.approx(4e-5)
    assert allowed(np.float64, 4.0) == pytest.approx(4e-12)
    assert allowed(np.float32, 0.0) == 1e-5


@pytest.mark.parametrize("wrong", [1.0 + 2e-5, np.nan, np.inf])
def test_entropy_outside_the_bound_fails(wrong):
    with pytest.raises(AssertionError, match="allowed"):
        assert_entropy(np.float32(wrong), 1.0)


def test_entropy_inside_the_bound_passes():
    assert_entropy(np.float32(1.0 + 5e-6), 1.0)
    assert_entropy(np.float64(5e-13), 0.0)


def test_near_looks_at_every_entry():
    with pytest.raises(AssertionError):
        assert_near(np.array([0.0, 1.0]), np.zeros(2), 0.5)


def test_derivative_is_relative():
    assert_derivative(1e3 + 5e-4, 1e3, 1e3)
    with pytest.raises(AssertionError):
        assert_derivative(1e3 + 5e-3, 1e3, 1e3)


@pytest.mark.parametrize("field", ["entropy1", "joint_entropy", "mutual_information", "mir", "hdr"])
def test_every_field_is_compared(field):
    right = combine(1.0, 2.0, 2.5)
    as_float64 = right._replace(**{name: np.float64(v) for name, v in right._asdict().items()})
    assert_interplay(as_float64, right)
    with pytest.raises(AssertionError):
        assert_interplay(as_float64._replace(**{field: getattr(as_float64, field) + 1e-9}), right)
