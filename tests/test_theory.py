import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import theory
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_entropy, assert_interplay, assert_near


@pytest.mark.parametrize(("classes", "mir"), [(10, 0.9523508), (100, 0.9978129)])
def test_published_values(classes, mir):
    assert theory.collapsed_mir(classes) == pytest.approx(mir, abs=5e-8)
    assert theory.collapsed_mir(classes) == pytest.approx(
        theory.collapsed_mutual_information(classes) / theory.collapsed_entropy(classes), rel=1e-12
    )


def test_published_mutual_information():
    assert theory.collapsed_mutual_information(10) == pytest.approx(2.0925285, abs=5e-8)


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 57])
def test_closed_forms_are_the_definition(classes):
    etf = cases.simplex(classes, classes)
    result = definition.interplay(etf, etf, np.arange(classes))
    assert theory.collapsed_entropy(classes) == pytest.approx(result.entropy1, abs=1e-12)
    mutual = theory.collapsed_mutual_information(classes)
    assert mutual == pytest.approx(result.mutual_information, abs=1e-12)
    assert theory.collapsed_mir(classes) == pytest.approx(result.mir, abs=1e-12)


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (3, 2), (4, 9), (10, 9), (100, 128)])
def test_simplex_etf(classes, dim):
    etf = theory.simplex_etf(classes, dim)
    assert etf.shape == (classes, dim)
    assert etf.dtype == jnp.float32
    assert_near(jnp.sum(etf, axis=0), 0.0, 1e-5)
    expected = np.where(np.eye(classes, dtype=bool), 1.0, -1 / (classes - 1))
    assert_near(etf @ etf.T, expected, 1e-6)


def test_simplex_etf_in_float64(x64):
    etf = theory.simplex_etf(5, 7)
    assert etf.dtype == jnp.float64
    assert_near(etf @ etf.T, np.where(np.eye(5, dtype=bool), 1.0, -0.25), 1e-14)


@pytest.mark.parametrize("arguments", [(1, 4), (4, 2), (0, 3)])
def test_no_such_frame(arguments):
    with pytest.raises(ValueError, match=r"num_classes|dim"):
        theory.simplex_etf(*arguments)


@pytest.mark.parametrize(
    "function",
    [theory.collapsed_entropy, theory.collapsed_mutual_information, theory.collapsed_mir],
)
def test_one_class_has_no_closed_form(function):
    with pytest.raises(ValueError, match="num_classes"):
        function(1)


def test_two_classes_share_nothing():
    assert theory.collapsed_mir(2) == 0
    assert theory.collapsed_mutual_information(2) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("side", [1, 5, 64])
def test_orthonormal_and_identical_rows(side):
    assert_entropy(mirjax.feature_entropy(jnp.eye(side, side + 3)), np.log(side))
    assert_near(mirjax.feature_entropy(jnp.ones((side, 6))), 0.0, 1e-6)


@pytest.mark.parametrize(("classes", "dim", "each"), [(10, 12, 3), (10, 12, 14), (10, 9, 12)])
def test_library_at_exact_collapse(classes, dim, each, x64):
    head = np.asarray(theory.simplex_etf(classes, dim))
    labels = (np.arange(classes * each) % classes).astype(np.int32)
    result = compiled.interplay(7 * head[labels], head, labels)
    assert_interplay(result, definition.interplay(head, head, np.arange(classes)))
    assert_near(result.mir, theory.collapsed_mir(classes), 1e-11)
    assert_near(result.hdr, 0.0, 1e-12)
