"""The range of entropies that a sum of squares leaves open."""

import jax.numpy as jnp
from jax import Array


def entropy_range(mixedness: Array, side: Array | int) -> tuple[Array, Array]:
    """The least and the greatest entropy of any N = `side` numbers with sum 1 and sum of squares
    `1 - mixedness`.

    The least is bounded by the Rényi entropy of order 2, the greatest is that of one large number
    and N - 1 equal ones.
    """
    mixed = jnp.clip(mixedness, 0.0, 1 - 1 / side)
    lower = -jnp.log1p(-mixed)
    others = jnp.maximum(side - 1, 1)
    root = jnp.sqrt(jnp.maximum(1 - mixed * side / others, 0.0))
    rest = jnp.minimum(mixed / (1 + root), 1 - 1 / side)
    rest_log = jnp.log(jnp.where(rest > 0, rest / others, 1.0))
    upper = -(1 - rest) * jnp.log1p(-rest) - rest * rest_log
    return lower, jnp.maximum(upper, lower)
