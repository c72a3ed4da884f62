"""The least and the greatest entropy of a spectrum whose sum of squares is known."""

import jax.numpy as jnp
from jax import Array


def entropy_range(mixedness: Array, purity: Array, side: Array | int) -> tuple[Array, Array]:
    """A lower bound and the maximum of the entropy of N = `side` probabilities.

    Their sum of squares is `purity = 1 - mixedness`; it is given in both forms, since each is
    accurate where it is small. The lower bound is the Rényi entropy of order 2; the maximum is
    reached by one large number and N - 1 equal ones.
    """
    # Rounding can put the sum of squares outside what N probabilities allow.
    mixed = jnp.clip(mixedness, 0.0, 1 - 1 / side)
    spread = -jnp.log(jnp.clip(purity, 1 / side, 1.0))
    lower = jnp.where(mixed < 0.5, -jnp.log1p(-mixed), spread)
    others = jnp.maximum(side - 1, 1)
    root = jnp.sqrt(jnp.maximum(1 - mixed * side / others, 0.0))
    # The sum of the N - 1 equal numbers, in a form without cancellation for a small mixedness.
    rest = jnp.minimum(mixed / (1 + root), 1 - 1 / side)
    rest_log = jnp.log(jnp.where(rest > 0, rest / others, 1.0))
    upper = -(1 - rest) * jnp.log1p(-rest) - rest * rest_log
    return lower, jnp.maximum(upper, lower)
