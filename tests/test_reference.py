"""The references themselves against closed forms, so that two wrongs cannot agree."""

import numpy as np
import pytest

from tests.cases import simplex
from tests.reference import definition
from tests.reference.collapse import neural_collapse


@pytest.mark.parametrize("order", [0.5, 1, 2])
def test_entropy_of_known_spectra(order):
    assert definition.entropy(np.eye(7), order) == pytest.approx(np.log(7))
    assert definition.entropy(np.ones((7, 7)), order) == pytest.approx(0, abs=1e-12)


def test_entropy_of_two_values():
    assert definition.entropy(np.diag([3.0, 1.0])) == pytest.approx(np.log(4) - 0.75 * np.log(3))
    assert definition.entropy(np.diag([3.0, 1.0]), 2) == pytest.approx(np.log(16 / 10))


@pytest.mark.parametrize(("classes", "mir"), [(10, 0.9523508), (100, 0.9978129)])
def test_interplay_at_collapse(classes, mir):
    head = simplex(classes, classes)
    result = definition.interplay(head, head, np.arange(classes))
    assert result.mir == pytest.approx(mir, abs=5e-8)
    assert result.hdr == pytest.approx(0, abs=1e-12)


def test_weights_repeat_samples():
    rng = np.random.default_rng(0)
    features, head, labels = rng.normal(size=(6, 4)), rng.normal(size=(3, 4)), np.arange(6) % 3
    counts = np.array([1, 0, 2, 3, 1, 1])
    repeated = definition.interplay(features.repeat(counts, 0), head, labels.repeat(counts))
    np.testing.assert_allclose(
        definition.interplay(features, head, labels, counts), repeated, rtol=1e-12
    )


def test_neural_collapse_at_collapse():
    head, labels = simplex(4, 6), np.arange(20) % 4
    values = neural_collapse(3.0 * head[labels], labels, head)
    assert values.pop("nc4") == pytest.approx(1)
    np.testing.assert_allclose(list(values.values()), 0, atol=1e-12)


def test_nc1_of_two_points_a_class():
    # Two classes at ±2 with samples ±1 around: Σ_W = 1, Σ_B = 4.
    features = np.array([[1.0], [3.0], [-1.0], [-3.0]])
    values = neural_collapse(features, [0, 0, 1, 1], np.array([[1.0], [-1.0]]))
    assert values["nc1"] == pytest.approx(1 / 4 / 2)
