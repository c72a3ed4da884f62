"""Bounds of an entropy that hold without any probability, from what is known of the spectrum.

`A` is positive semi-definite, of trace 1 and side N.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._linalg.entropy_range import entropy_range


class Split(NamedTuple):
    """What products with `A` have told: an orthonormal basis `Q` of k columns, and the rest.

    Attributes:
        values: Ritz values θ, the eigenvalues of `Qᵀ A Q` (columns of `Q` turned to its eigenvectors).
        leaks: `‖A q - θ q‖²` of each: how much of `A q` lies outside.
        side: N - k, the number of the other eigenvalues at most.
        mass: `1 - Σ θ`, the trace of `A` on the complement.
        squares: the trace of `A²` there, or an upper bound.
        inner_squares: `tr((P A P)²)` with the projection `P` on the complement, or a lower bound.
        rounding: what the rounding of the above may add to an entropy, in nats.
    """

    values: Float[Array, " k"]
    leaks: Float[Array, " k"]
    side: Float[Array, ""]
    mass: Float[Array, ""]
    squares: Float[Array, ""]
    inner_squares: Float[Array, ""]
    rounding: Float[Array, ""]


def split(values: Array, leaks: Array, side: Array | int, purity: Array, *, exact: bool) -> Split:
    """Distributes trace and purity over the basis and its complement, all roundings on the safe side.

    `purity` is `tr(A²)`, or an upper bound of it if not `exact`.
    """
    eps = jnp.finfo(values.dtype).eps
    values, leaks = jnp.maximum(values, 0.0), jnp.maximum(leaks, 0.0)
    found = jnp.max(values, initial=0.0)
    rest = jnp.maximum(jnp.asarray(side, values.dtype) - len(values), 0.0)
    # Each θ is known to some eps · θ_max.
    doubt = 8 * eps * (1 + jnp.sqrt(1.0 * len(values)) * found)
    mass = jnp.maximum(1 - jnp.sum(values), 0.0)
    mass = jnp.where(mass < doubt, 0.0, mass)
    even = jnp.square(mass) / jnp.maximum(rest, 1.0)
    inside = jnp.sum(jnp.square(values))
    most = jnp.square(mass)
    squares = jnp.maximum(purity - inside - jnp.sum(leaks), 0.0) + doubt * purity
    # No eigenvalue exceeds √tr(A²).
    squares = jnp.clip(squares, even, mass * jnp.sqrt(purity))
    inner = purity - inside - 2 * jnp.sum(leaks) - doubt * purity
    inner = jnp.clip(inner, even, jnp.maximum(most, even)) if exact else even
    rounding = doubt * (jnp.log(jnp.maximum(rest, 2.0)) - jnp.log(eps))
    return Split(values, leaks, rest, mass, squares, inner, rounding)


def entropy_bounds(parts: Split) -> tuple[Array, Array]:
    r"""Lower and upper bound of the entropy of `A`.

    Lower: for a unit vector `q` the spectral measure of `A` has mean θ and second moment
    `θ² + leak`, and by concavity of the logarithm under the measure weighted by λ,
    `⟨q, -A log A q⟩ >= -θ log((θ² + leak) / θ)`. The complement is treated alike, in one piece.
    Summed over an orthonormal basis that bounds the trace.

    Upper: pinching to `Q` and its complement never lowers entropy. What remains on the complement has
    known trace and Frobenius norm, and the greatest entropy under these is `entropy_range`'s.
    """
    theta, mass = parts.values, parts.mass
    head = jnp.sum(entropy_terms(theta))
    lower = head - jnp.sum(theta * jnp.log1p(_ratio(parts.leaks, jnp.square(theta))))
    lower = lower - mass * jnp.log(_ratio(parts.squares, mass, default=1.0))
    mixed = 1 - _ratio(parts.inner_squares, jnp.square(mass), default=1.0)
    greatest = entropy_range(mixed, jnp.maximum(parts.side, 1.0))[1]
    upper = head + mass * greatest + entropy_terms(mass)
    return lower - parts.rounding, upper + parts.rounding


def entropy_terms(x: Array) -> Array:
    """`-x log x`, 0 at 0 and below."""
    return -x * jnp.log(jnp.where(x > 0, x, 1.0))


def _ratio(part: Array, whole: Array, default: float = 0.0) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), default)
