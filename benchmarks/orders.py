"""Rows about the MI and ED terms of a loss: as published, of order 2, and debiased."""

import argparse
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks.classes import drawn
from benchmarks.entropies import in_jax
from benchmarks.timing import OURS, Row, measure
from mirjax import losses

SHAPES = ((64, 128, 10), (512, 512, 100), (512, 768, 50_257))
FORMS = {
    OURS: {"order": 2, "debiased": True},
    "mirjax, order 2 of the batch": {"order": 2},
    "mirjax, order 1": {"method": "auto"},
}


def terms(features, head, labels, **form):
    """Both terms with the same weight."""
    mi = losses.mutual_information_loss(features, head, labels, **form)
    return mi + losses.entropy_difference_loss(features, head, labels, **form)


def of_orders(options: argparse.Namespace) -> Iterator[Row]:
    """Value and gradient of MI + ED, at each shape."""
    for n, d, classes in SHAPES:
        arrays = tuple(jnp.asarray(x) for x in drawn(n, d, classes))
        calls: dict[str, Callable[[], float]] = {
            name: in_jax(functools.partial(terms, **form), arrays, gradient=True)
            for name, form in FORMS.items()
        }
        name = f"MI + ED, value and gradient, n, d, C = {n}, {d}, {classes}"
        # Each form has a value of its own.
        yield measure("orders", name, calls, seconds=options.seconds, rounds=7, tolerance=None)
        jax.clear_caches()


ROWS = {"orders": of_orders}
