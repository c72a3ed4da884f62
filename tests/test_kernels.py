"""Two kernels: mutual information, MIR and HDR by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests import cases, compiled
from tests.reference import definition
from tests.tolerances import assert_interplay, assert_near
from tests.versions import enable_x64

kernel_interplay = jax.jit(mirjax.kernel_interplay)


def kernels(degeneracy="random", shape=(24, 6, 4)):
    features, head, labels = cases.make(degeneracy, *shape)
    return definition.gram(features), definition.gram(head[labels])


@pytest.mark.parametrize(
    ("dtype", "degeneracy"),
    [(dtype, name) for dtype in ("float32", "float64") for name in cases.DEGENERACIES],
)
def test_kernel_interplay_is_the_definition(dtype, degeneracy):
    kernel1, kernel2 = (kernel.astype(dtype) for kernel in kernels(degeneracy))
    with enable_x64(dtype == "float64"):
        result = kernel_interplay(kernel1, kernel2)
    assert_interplay(result, definition.information(*kernels(degeneracy)))


def test_kernels_and_features_agree():
    features, head, labels = cases.cast(cases.make("random", 64, 16, 8), "float32")
    result = kernel_interplay(mirjax.gram(features), mirjax.gram(head[labels]))
    np.testing.assert_allclose(result, compiled.interplay(features, head, labels), atol=2e-5)


def test_entries_near_the_largest_number():
    # Their sum with those of the transpose is beyond it.
    large = [(3e38 * kernel).astype(np.float32) for kernel in kernels()]
    assert_interplay(kernel_interplay(*large), definition.information(*kernels()))


def test_single_numbers_are_the_fields():
    kernel1, kernel2 = (kernel.astype(np.float32) for kernel in kernels())
    result = kernel_interplay(kernel1, kernel2)
    assert_near(mirjax.mutual_information(kernel1, kernel2), result.mutual_information, 1e-5)
    assert_near(mirjax.mir(kernel1, kernel2), result.mir, 1e-5)
    assert_near(mirjax.hdr(kernel1, kernel2), result.hdr, 1e-5)


def test_ratio_of_nothing_is_zero():
    ones = jnp.ones((24, 24))
    result = mirjax.kernel_interplay(ones, ones)
    assert result.mir == 0
    assert result.hdr == 0
    gradient = jax.grad(lambda k: mirjax.mir(k, ones) + mirjax.hdr(k, ones))(ones)
    np.testing.assert_array_equal(gradient, 0)


def test_symmetric_in_its_arguments():
    kernel1, kernel2 = (kernel.astype(np.float32) for kernel in kernels())
    there, back = kernel_interplay(kernel1, kernel2), kernel_interplay(kernel2, kernel1)
    assert_near(there.entropy1, back.entropy2, 1e-6)
    for name in ("joint_entropy", "mir", "hdr", "entropy_difference"):
        assert_near(getattr(there, name), getattr(back, name), 2e-6)


def test_nan_propagates():
    kernel1, kernel2 = (kernel.astype(np.float32) for kernel in kernels())
    kernel2[0, 0] = np.nan
    result = kernel_interplay(kernel1, kernel2)
    assert np.isfinite(result.entropy1)
    assert all(np.isnan(value) for value in result[1:])
