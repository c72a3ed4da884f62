"""Interplay of every order: Rényi entropies throughout, and order 2 without a decomposition."""

import functools

import jax
import numpy as np
import pytest

import mirjax
from tests import cases
from tests.reference import definition
from tests.tolerances import assert_near

ORDERS = (0.5, 1, 2, 3, 10, np.inf)


@pytest.mark.parametrize("order", ORDERS)
def test_interplay_of_every_order(order, x64):
    def entropy(kernel):
        values = np.linalg.eigvalsh(kernel / np.trace(kernel))
        values = values[values > 1e-12]
        return -np.log(values.max()) if order == np.inf else definition.entropy(kernel, order)

    for shape in ((12, 5, 3), (40, 4, 3), (50, 3, 6), (9, 4, 12)):
        features, head, labels = cases.make("random", *shape)
        kernels = definition.gram(features), definition.gram(head[labels])
        expected = definition.combine(*map(entropy, (*kernels, kernels[0] * kernels[1])))
        found = jax.jit(functools.partial(mirjax.interplay, order=order))(features, head, labels)
        for name in mirjax.Interplay._fields:
            assert_near(getattr(found, name), getattr(expected, name), 1e-10)
        for f in (mirjax.mutual_information, mirjax.mir, mirjax.hdr):
            assert_near(f(*kernels, order=order), getattr(expected, f.__name__), 1e-10)
    means = mirjax.theory.simplex_etf(6, 9)
    result = mirjax.class_interplay(means + 1, means, order=order)
    assert_near(result.mir, mirjax.theory.collapsed_mir(6, order=order), 1e-10)
    assert_near(
        result.mutual_information,
        mirjax.theory.collapsed_mutual_information(6, order=order),
        1e-10,
    )


def test_order_two_of_many_samples_and_few_classes(monkeypatch, x64):
    monkeypatch.setattr(mirjax._batch.joint, "_BY_CLASS", 200)
    features, head, labels = cases.make("random", 40, 4, 3)
    found = jax.jit(functools.partial(mirjax.interplay, order=2))(features, head, labels)
    kernel = definition.gram(features) * definition.gram(head[labels])
    assert_near(found.joint_entropy, definition.entropy(kernel, 2), 1e-12)
