import math

import numpy as np
import pytest
from scipy import stats

from train.losses import PLAIN, claim
from train.reporting.paired import paired


def groups(**gains):
    plain, n = np.array([0.9, 0.8, 0.7]), 10_000
    return {
        name: [
            # Shares of samples in float32, as they are logged.
            {"seed": seed, "test_n": float(n), "test_accuracy": float(np.float32(round(n * v) / n))}
            for seed, v in enumerate(plain + np.asarray(gain))
        ]
        for name, gain in ({PLAIN: [0.0, 0.0, 0.0]} | gains).items()
    }


def test_the_paired_test_is_the_students_on_differences():
    found = paired(groups(a=[0.01, 0.02, 0.03], b=[0.05, -0.05, 0.01], c=[0.01, 0.01, 0.01]), PLAIN)
    expected = stats.ttest_rel([0.91, 0.82, 0.73], [0.9, 0.8, 0.7])
    mean, half, p, adjusted = found["a"]
    assert mean == pytest.approx(0.02)
    assert p == pytest.approx(expected.pvalue)
    # t(0.975, 2) = 4.3027, by hand.
    assert half == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    # Benjamini-Hochberg of two: the smaller p counts twice, if that is below the larger.
    assert adjusted == pytest.approx(min(2 * p, found["b"][2]))


def test_equal_gains_are_no_spread_to_test_by():
    found = paired(groups(**{"+MI, weight 1": [0.02, 0.02, 0.02]}), PLAIN)
    assert found["+MI, weight 1"][0] == pytest.approx(0.02)
    assert all(math.isnan(value) for value in found["+MI, weight 1"][1:])
    assert claim(found, 3).reading.startswith("not decided")


def reading(**gains):
    named = {name.replace("_", "+"): gain for name, gain in gains.items()}
    return claim(paired(groups(**named), PLAIN), 3).reading.split(":")[0].split(" (")[0]


CLEAR, LOSS, NOISE = [0.02, 0.0201, 0.0199], [-0.02, -0.0201, -0.0199], [0.1, -0.1, 0.06]


def test_readings():
    assert reading(_MI=CLEAR) == "agrees in sign"
    assert reading(_MI=LOSS) == "disagrees"
    # A noisy row does not hide a clear gain, and a clear loss does not settle a noisy row.
    assert reading(_MI=CLEAR, _ED=NOISE) == "agrees in sign"
    assert reading(_MI=LOSS, _ED=NOISE) == "not decided"
    # Both together are not what is claimed.
    assert reading(_MI=LOSS, _MI_ED=CLEAR) == "disagrees"
