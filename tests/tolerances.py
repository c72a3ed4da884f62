"""How far a value may be from the definition: one number per dtype, for every test."""

import numpy as np

ENTROPY = {"float32": 1e-5, "float64": 1e-12}
# Nats. The rounding of the rows alone moves an entropy by some eps · log(1/eps), however small the
# entropy: below this it is compared absolutely.
SMALL = 0.25


def allowed(dtype, size):
    """Largest error of an entropy of `size` nats, or of a difference of entropies up to `size`."""
    return ENTROPY[np.dtype(dtype).name] * (size if size > SMALL else 1.0)


def assert_near(actual, expected, bound):
    """`|actual - expected| <= bound` everywhere; NaN is never near."""
    error = np.max(np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)))
    assert error <= bound, f"{actual} is {error:.3g} from {expected}, allowed {bound:.3g}"


def assert_entropy(actual, expected):
    assert_near(actual, expected, allowed(np.asarray(actual).dtype, expected))


def assert_interplay(actual, expected):
    """All seven fields; ratios carry the error of their parts over their denominator."""
    largest = max(expected.entropy1, expected.entropy2, expected.joint_entropy)
    bound = allowed(np.asarray(actual.mir).dtype, largest)
    for name in ("entropy1", "entropy2", "joint_entropy"):
        assert_entropy(getattr(actual, name), getattr(expected, name))
    for name in ("mutual_information", "entropy_difference"):
        assert_near(getattr(actual, name), getattr(expected, name), bound)
    for name, pick in (("mir", min), ("hdr", max)):
        whole = pick(expected.entropy1, expected.entropy2)
        ratio_bound = 2 * bound / whole if whole > 1e-3 else 0.0
        assert_near(getattr(actual, name), getattr(expected, name), ratio_bound)


def assert_derivative(actual, expected, size):
    """The issue's bound for gradients in float64: 1e-6 of their size."""
    assert_near(actual, expected, 1e-6 * max(float(size), 1e-2))
