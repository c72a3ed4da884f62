"""What must not change a metric, on drawn inputs, and the bounds it stays in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import compiled

# Both code paths of the joint matrix, before and after repeating every sample.
SHAPES = ((6, 4, 3), (12, 4, 3), (12, 3, 2), (24, 3, 2))
economical = settings(deadline=None, derandomize=True, max_examples=12)


@st.composite
def inputs(draw):
    n, d, classes = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.integers(1, d))
    features = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    head = rng.normal(size=(classes, d))
    labels = rng.integers(0, draw(st.integers(1, classes)), n)
    return rng, features.astype(np.float32), head.astype(np.float32), labels.astype(np.int32)


def entropies(*arguments):
    return np.array(compiled.interplay(*arguments)[:3])


@economical
@given(inputs())
def test_rotation(drawn):
    rng, features, head, labels = drawn
    turn, other = (np.linalg.qr(rng.normal(size=(features.shape[1],) * 2))[0] for _ in range(2))
    turned = (features @ turn).astype(np.float32), (head @ other).astype(np.float32)
    np.testing.assert_allclose(
        entropies(*turned, labels), entropies(features, head, labels), atol=3e-5
    )


@economical
@given(inputs())
def test_order_of_samples_and_of_classes(drawn):
    rng, features, head, labels = drawn
    order, renamed = rng.permutation(len(labels)), rng.permutation(len(head)).astype(np.int32)
    moved = np.empty_like(head)
    moved[renamed] = head
    np.testing.assert_allclose(
        entropies(features[order], moved, renamed[labels[order]]),
        entropies(features, head, labels),
        atol=3e-5,
    )


@economical
@given(inputs())
def test_scale_of_rows(drawn):
    rng, features, head, labels = drawn
    scales = [10.0 ** rng.uniform(-15, 15, (len(x), 1)) for x in (features, head)]
    scaled = [(x * s).astype(np.float32) for x, s in zip((features, head), scales, strict=True)]
    np.testing.assert_allclose(
        entropies(*scaled, labels), entropies(features, head, labels), atol=3e-5
    )


@pytest.mark.parametrize("shape", [(6, 4, 3), (12, 3, 2)])
def test_repeating_every_sample(shape):
    n, d, classes = shape
    rng = np.random.default_rng(0)
    features, head = rng.normal(size=(n, d)), rng.normal(size=(classes, d))
    features, head = features.astype(np.float32), head.astype(np.float32)
    labels = (np.arange(n) % classes).astype(np.int32)
    twice = entropies(features.repeat(2, 0), head, labels.repeat(2))
    np.testing.assert_allclose(twice, entropies(features, head, labels), atol=2e-5)


@economical
@given(inputs())
def test_bounds(drawn):
    _, features, head, labels = drawn
    result = compiled.interplay(features, head, labels)
    n, d = features.shape
    smaller = min(result.entropy1, result.entropy2)
    assert 0 <= result.entropy1 <= np.log(min(n, d)) + 1e-5
    assert 0 <= result.entropy2 <= np.log(min(n, d, len(head))) + 1e-5
    assert max(result.entropy1, result.entropy2) - 1e-4 <= result.joint_entropy
    assert -1e-4 <= result.mutual_information <= smaller + 1e-4
    assert 0 <= result.hdr <= 1
    assert smaller == 0 or -1e-4 <= result.mir * smaller <= smaller + 1e-4
