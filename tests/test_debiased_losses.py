"""The losses of order 2 and debiased: values, derivatives, and what a step compiles to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import losses
from tests import cases
from tests.reference import pairs
from tests.tolerances import assert_near

LOSSES = {
    "mi": losses.mutual_information_loss,
    "ed": losses.entropy_difference_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(40, 24, 3), (300, 8, 4)])
def test_a_step_of_order_two_contains_no_decomposition(name, shape):
    arguments = cases.cast(cases.make("random", *shape), "float32")

    def text(**options):
        loss = functools.partial(LOSSES[name], **options)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return step.lower(*arguments).compile().as_text().lower()

    # Decompositions are calls of a library.
    for options in ({"order": 2}, {"order": 2, "debiased": True}):
        assert "custom-call" not in text(**options)
    assert "custom-call" in text()


@pytest.mark.parametrize("name", LOSSES)
def test_debiased_losses_are_the_estimates(name, x64):
    features, head, labels = cases.make("random", 30, 6, 4)
    # Random rows are as far apart as those of any population: some purities are at the floor.
    features = features + 2 * head[labels] + 1
    head = head + 0.5
    loss = jax.jit(functools.partial(LOSSES[name], order=2, debiased=True))
    exact = pairs.of_labels(features, head, labels)
    expected = -exact.mutual_information if name == "mi" else exact.entropy_difference
    assert_near(loss(features, head, labels), expected, 1e-12)
    # Each sample twice, as one group: the same population.
    twice = loss(np.tile(features, (2, 1)), head, np.tile(labels, 2), groups=np.tile(range(30), 2))
    assert_near(twice, expected, 1e-12)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(features, head, labels)
    rng = np.random.default_rng(8)
    for place, gradient in enumerate(gradients):
        turn = rng.normal(size=gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [features, head]
            moved[place] = moved[place] + step * turn
            ends.append(loss(*moved, labels))
        assert_near(np.sum(gradient * turn), (ends[0] - ends[1]) / 2e-6, 1e-7)


def degenerate():
    rng = np.random.default_rng(9)
    etf = cases.simplex(4, 6)
    yield "collapse", (etf[np.arange(12) % 4], etf, np.arange(12) % 4)
    yield "orthogonal rows", (np.eye(6), np.eye(6), np.arange(6))
    yield "one class", (rng.normal(size=(5, 6)), etf, np.zeros(5, int))
    yield "two samples", (rng.normal(size=(2, 6)), etf, np.arange(2))
    yield "one sample", (rng.normal(size=(1, 6)), etf, np.zeros(1, int))
    yield "identical rows", (np.ones((5, 6)), np.ones((4, 6)), np.arange(5) % 4)
    yield "zero rows", (np.zeros((5, 6)), etf, np.arange(5) % 4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", [c[0] for c in degenerate()])
def test_derivatives_of_debiased_losses_are_finite(name, case):
    features, head, labels = dict(degenerate())[case]
    features, head = features.astype(np.float32), head.astype(np.float32)
    turn = np.random.default_rng(10).normal(size=features.shape).astype(np.float32)

    def along(step):
        return LOSSES[name](features + step * turn, head, labels, order=2, debiased=True)

    third = jax.grad(jax.grad(jax.grad(along)))
    for derivative in (along, jax.grad(along), third):
        assert np.isfinite(jax.jit(derivative)(0.0))


def test_the_floor_is_the_least_purity_of_a_population():
    # In orthogonal directions, each with a class of its own: no pair has anything in common.
    loss = functools.partial(losses.entropy_difference_loss, order=2, debiased=True)
    value = loss(jnp.eye(4, 6), jnp.eye(4, 6), jnp.arange(4))
    assert_near(value, np.log(6 / 4), 1e-6)
    assert np.isinf(mirjax.debiased_interplay(jnp.eye(4), jnp.eye(4), jnp.arange(4)).entropy1)
