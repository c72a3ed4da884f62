"""How precisely data are known: as their dtype says, or coarser where they were cast up."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

# Significant bits and exponent bits of the formats that data may come from.
_FORMATS = {"bfloat16": (8, 8), "float16": (11, 8), "float32": (24, 11)}
_NAMES = (*_FORMATS, "float64")


def stated_eps(dtype: np.dtype, precision: DTypeLike | None) -> float | None:
    """The relative spacing of data of this dtype, or None where only the data can tell it.

    Args:
        dtype: the dtype in which the data are given. Half precision says what there is to know.
        precision: the dtype in which they were made, if the caller knows.

    Raises:
        ValueError: `precision` is not the name or the dtype of a floating-point format.
    """
    if precision is None:
        return float(jnp.finfo(dtype).eps) if jnp.finfo(dtype).bits == 16 else None
    try:
        name = jnp.dtype(precision).name
    except TypeError:
        name = None
    if name not in _NAMES:
        raise ValueError(
            f"precision must be {', '.join(_NAMES[:-1])} or {_NAMES[-1]}, the dtype in which the "
            f"data were made, or None; got {precision!r}."
        )
    return max(float(jnp.finfo(name).eps), float(jnp.finfo(dtype).eps))


def found_eps(values: Array) -> Array:
    """The relative spacing of the coarsest format that explains all values, without derivative.

    Values come from a format of p bits if all of them fit p bits, some need at least p - 1, and
    they do not lie on a grid of p bits, as integers and pixels do: those are exact.
    """
    values = lax.stop_gradient(values)
    dtype = jnp.finfo(values.dtype)
    _, exponent = jnp.frexp(jnp.max(jnp.abs(values)))
    eps = jnp.asarray(dtype.eps, values.dtype)
    # From the finest, so that the coarsest has the last word.
    for name in reversed(_FORMATS):
        bits, exponent_bits = _FORMATS[name]
        if bits > dtype.nmant:
            continue

        def fit(kept: int, exponent_bits: int = exponent_bits) -> Array:
            return jnp.all(values == lax.reduce_precision(values, exponent_bits, kept - 1))

        on_grid = jnp.ldexp(values, bits - exponent)
        is_exact = jnp.all(on_grid == jnp.round(on_grid))
        is_format = fit(bits) & ~fit(bits - 2) & ~is_exact
        eps = jnp.where(is_format, jnp.asarray(2.0 ** (1 - bits), values.dtype), eps)
    return eps


def power_of_two(largest: Array) -> Array:
    """A power of two near a positive number, 1 for 0: division by it is exact."""
    limits = jnp.finfo(largest.dtype)
    _, exponent = jnp.frexp(lax.stop_gradient(largest))
    # Its reciprocal, by which a compiler may multiply, must be a normal number as well.
    exponent = jnp.clip(exponent, limits.minexp + 1, -limits.minexp - 1)
    is_usable = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(is_usable, jnp.ldexp(jnp.ones_like(largest), exponent), 1.0)


def entropy_rounding(dtype: jnp.dtype) -> float:
    """How far rounding can move an entropy below 1 nat, or a larger one per nat."""
    return 2e-5 if jnp.finfo(dtype).bits == 32 else 1e-12
