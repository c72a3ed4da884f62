"""Deterministic bounds of an entropy from partial knowledge of the spectrum.

`A` is a positive semi-definite matrix of trace 1 and side N.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._linalg.entropy_range import entropy_range


class Split(NamedTuple):
    """What is known of `A` on the span of an orthonormal basis `Q` of k columns and on the rest.

    Attributes:
        values: Ritz values θ, the eigenvalues of `Qᵀ A Q`; the columns q of `Q` are rotated to
            its eigenvectors.
        leaks: `‖A q - θ q‖²` of each column: how much of `A q` lies outside the span.
        side: N - k, an upper bound of the number of other eigenvalues.
        mass: `1 - Σ θ`, the trace of `A` on the complement.
        squares: the trace of `A²` on the complement, or an upper bound of it.
        inner_squares: `tr((P A P)²)` with the projection `P` onto the complement, or a lower
            bound of it.
        rounding: how much the rounding errors of the above may change an entropy, in nats.
    """

    values: Float[Array, " k"]
    leaks: Float[Array, " k"]
    side: Float[Array, ""]
    mass: Float[Array, ""]
    squares: Float[Array, ""]
    inner_squares: Float[Array, ""]
    rounding: Float[Array, ""]


def split(
    values: Array, leaks: Array, side: Array | int, purity: Array, *, purity_is_exact: bool
) -> Split:
    """Distributes trace and purity over the basis and its complement, rounding to the safe side.

    `purity` is `tr(A²)`, or an upper bound of it if not `purity_is_exact`.
    """
    eps = float(jnp.finfo(values.dtype).eps)
    values, leaks = jnp.maximum(values, 0.0), jnp.maximum(leaks, 0.0)
    largest = jnp.max(values, initial=0.0)
    rest = jnp.maximum(jnp.asarray(side, values.dtype) - len(values), 0.0)
    # Each θ is known up to some eps · θ_max.
    uncertainty = 8 * eps * (1 + jnp.sqrt(1.0 * len(values)) * largest)
    mass = jnp.maximum(1 - jnp.sum(values), 0.0)
    mass = jnp.where(mass < uncertainty, 0.0, mass)
    # The sum of squares is least if the mass is spread evenly, greatest if one eigenvalue has it.
    even = jnp.square(mass) / jnp.maximum(rest, 1.0)
    inside = jnp.sum(jnp.square(values))
    most = jnp.square(mass)
    # Each leak is the squared norm of a block off the diagonal of `A`: `tr(A²)` has it twice, the
    # trace of `A²` on the complement once.
    squares = jnp.maximum(purity - inside - jnp.sum(leaks), 0.0) + uncertainty * purity
    # No eigenvalue exceeds √tr(A²).
    squares = jnp.clip(squares, even, mass * jnp.sqrt(purity))
    inner = purity - inside - 2 * jnp.sum(leaks) - uncertainty * purity
    inner = jnp.clip(inner, even, jnp.maximum(most, even)) if purity_is_exact else even
    # The slope of -x log x is about -log x, here at x = eps / N.
    rounding = uncertainty * (jnp.log(jnp.maximum(rest, 2.0)) - jnp.log(eps))
    return Split(values, leaks, rest, mass, squares, inner, rounding)


def entropy_bounds(parts: Split) -> tuple[Array, Array]:
    r"""Lower and upper bound of the entropy of `A`.

    Lower: for a unit vector `q` the spectral measure of `A` has mean θ and second moment
    `θ² + leak`. Since the logarithm is concave, under this measure weighted by λ,
    `⟨q, -A log A q⟩ >= -θ log((θ² + leak) / θ)`. The complement is treated in the same
    way, in one piece. The sum over an orthonormal basis bounds the trace.

    Upper: pinching `A` to `Q` and its complement never lowers the entropy. The block on the
    complement has a known trace and Frobenius norm, for which `entropy_range` gives the maximum.
    """
    theta, mass = parts.values, parts.mass
    top = jnp.sum(entropy_terms(theta))
    lower = top - jnp.sum(theta * jnp.log1p(_ratio(parts.leaks, jnp.square(theta))))
    lower = lower - mass * jnp.log(_ratio(parts.squares, mass, default=1.0))
    purity = _ratio(parts.inner_squares, jnp.square(mass), default=1.0)
    greatest = entropy_range(1 - purity, purity, jnp.maximum(parts.side, 1.0))[1]
    upper = top + mass * greatest + entropy_terms(mass)
    return lower - parts.rounding, upper + parts.rounding


def entropy_terms(x: Array) -> Array:
    """`-x log x`, and 0 for x <= 0."""
    return -x * jnp.log(jnp.where(x > 0, x, 1.0))


def _ratio(part: Array, whole: Array, default: float = 0.0) -> Array:
    # Where nothing is divided, the inner denominator is 1: no 0/0 in a derivative.
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), default)
