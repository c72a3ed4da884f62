import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirjax import losses
from tests import cases
from tests.reference import definition
from tests.tolerances import assert_near

SHAPE = (12, 4, 3)
LOSSES = {
    "mutual_information_loss": (losses.mutual_information_loss, lambda r: -r.mutual_information),
    "entropy_difference_loss": (losses.entropy_difference_loss, lambda r: r.entropy_difference),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
gradients = {
    (name, side): jax.jit(
        jax.grad(lambda z, w, y, f=f, s=side: f(z, w, y, stop_gradient=s), argnums=(0, 1))
    )
    for name, (f, _) in LOSSES.items()
    for side in (None, "features", "head")
}
values = {name: jax.jit(f) for name, (f, _) in LOSSES.items()}


def case(degeneracy="random"):
    return cases.cast(cases.make(degeneracy, *SHAPE), "float32")


@every_loss
@pytest.mark.parametrize("degeneracy", ["random", "identical samples", "one class", "collapse"])
def test_value_is_the_definition(name, degeneracy):
    expected = definition.interplay(*case(degeneracy))
    bound = 1e-5 * max(1.0, expected.joint_entropy)
    assert_near(values[name](*case(degeneracy)), LOSSES[name][1](expected), bound)


@every_loss
def test_value_is_the_definition_where_moments_are_used(name):
    arguments = cases.cast(cases.make("random", 12, 3, 2), "float32")
    expected = LOSSES[name][1](definition.interplay(*arguments))
    assert_near(values[name](*arguments), expected, 3e-5)


@every_loss
@pytest.mark.parametrize("side", ["features", "head"])
def test_stop_gradient_stops_one_side_only(name, side):
    both, stopped = gradients[name, None](*case()), gradients[name, side](*case())
    silent = 0 if side == "features" else 1
    assert np.all(stopped[silent] == 0)
    assert np.any(stopped[1 - silent] != 0)
    np.testing.assert_allclose(stopped[1 - silent], both[1 - silent], rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("side", ["features", "head"])
def test_stop_gradient_leaves_the_value(name, side):
    loss = jax.jit(LOSSES[name][0], static_argnames="stop_gradient")(*case(), stop_gradient=side)
    assert_near(loss, values[name](*case()), 1e-6)


@every_loss
@pytest.mark.parametrize("degeneracy", cases.DEGENERACIES)
def test_gradients_are_finite(name, degeneracy):
    for part in gradients[name, None](*case(degeneracy)):
        assert np.all(np.isfinite(part))


@every_loss
def test_gradient_is_a_descent_direction(name):
    features, head, labels = case()
    before = values[name](features, head, labels)
    turn = gradients[name, None](features, head, labels)
    after = values[name](features - 0.02 * turn[0], head - 0.02 * turn[1], labels)
    assert after < before


@every_loss
def test_weights_are_a_mask(name):
    features, head, labels = case()
    mask = np.ones(12, np.float32)
    mask[::4] = 0
    keep = mask > 0
    expected = LOSSES[name][1](definition.interplay(features[keep], head, labels[keep]))
    features[~keep], labels[~keep] = np.nan, -1
    assert_near(values[name](features, head, labels, weights=mask), expected, 2e-5)


@every_loss
def test_degenerate_weights(name):
    assert values[name](*case(), weights=jnp.zeros(12)) == 0
    assert LOSSES[name][0](*case(), weights=jnp.zeros(12)) == 0
    assert np.isnan(values[name](*case(), weights=-jnp.ones(12)))


@every_loss
def test_unknown_side_is_refused(name):
    with pytest.raises(ValueError, match="stop_gradient must be None, 'features' or 'head'"):
        LOSSES[name][0](*case(), stop_gradient="both")


@every_loss
def test_shapes_are_refused(name):
    features, head, labels = case()
    with pytest.raises(ValueError, match=r"\(12, 4\).*\(4, 3\).*kernel\.T"):
        LOSSES[name][0](features, head.T, labels)
