"""Products stay right when a compiler computes a value several times, and rounds it each time in another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from mirjax._linalg.products import entropy_by_products

pytestmark = pytest.mark.numerics


def recomputed(function, argument):
    """Results of `function` where only products are kept: whatever needs another value computes it anew from them.

    So a compiler does that fuses a chain of entrywise operations into each of its consumers. Each time everything, and what
    is kept too, is rounded by itself, here by a random last bit.
    """
    rng = np.random.default_rng(0)
    with jax.disable_jit():
        closed = jax.make_jaxpr(function)(argument)
    jaxpr = closed.jaxpr
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    kept = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, argument), strict=True))

    def outputs(equation, own):
        operands = [value_of(atom, own) for atom in equation.invars]
        found = equation.primitive.bind(*operands, **equation.params)
        return found if equation.primitive.multiple_results else [found]

    def value_of(atom, own):
        if isinstance(atom, Literal):
            return atom.val
        if atom in kept:
            # A product may be split, and its parts added where it is used.
            return rounded(kept[atom])
        if atom not in own:
            equation = made_by[atom]
            found = map(rounded, outputs(equation, own))
            own.update(zip(equation.outvars, found, strict=True))
        return own[atom]

    def rounded(value):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        ulps = rng.integers(-1, 2, np.shape(value)).astype(value.dtype)
        return value * (1 + jnp.finfo(value.dtype).eps * ulps)

    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            kept.update(zip(equation.outvars, outputs(equation, {}), strict=True))
    return [value_of(atom, {}) for atom in jaxpr.outvars]


def close_to_exact(spectrum, dtype, tolerance):
    side = 32
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(side, side)))[0]
    values = np.arange(1, side + 1) ** -1.0 if spectrum == "full rank" else np.arange(side) < 9.0
    values = values / values.sum()
    matrix = jnp.asarray((rotation * values) @ rotation.T, dtype)
    value, gradient = recomputed(entropy_by_products, matrix)
    logs = np.log(np.where(values > 0, values, 1.0))
    np.testing.assert_allclose(value, -np.sum(values * logs), atol=tolerance)
    factor = rotation * np.sqrt(values)
    np.testing.assert_allclose(gradient @ factor, factor * (-logs - 1), atol=tolerance)


@pytest.mark.parametrize("spectrum", ["full rank", "low rank"])
def test_what_is_rounded_in_several_ways_does_not_part(spectrum):
    close_to_exact(spectrum, jnp.float32, 2e-5)


def test_nor_does_it_in_two_rows_of_nodes(x64):
    close_to_exact("full rank", jnp.float64, 1e-11)
