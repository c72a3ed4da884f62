"""The measures of `mirjax.spectra` from the statistics of a data set."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._batch.entropy import entropy_of, unit_trace
from mirjax._batch.gram import safe_sqrt
from mirjax._batch.spectra import (
    Spectra,
    decay,
    rank_of_order,
    ridge_of,
    smooth_rank,
    smooth_rank_of_ratio,
    without_noise,
)
from mirjax._dataset.sums import Sums
from mirjax._linalg.decompositions import eigh
from mirjax._linalg.eigenvalues import eigenvalues
from mirjax._linalg.precision import matmul
from mirjax._linalg.rounding import power_of_two

# An eigenvalue below this many eps of the largest is not told from 0 by a matrix of sums.
_NOISE = 8


def spectra_of_sums(
    sums: Sums, origin: Float[Array, " d"], *, first: int, last: int, delta: float
) -> Spectra:
    """All that needs no rows, from statistics about `origin`."""
    weight = jnp.sum(sums.count)
    share = sums.count / jnp.where(weight == 0, 1.0, weight)
    means = sums.sums / jnp.where(sums.count == 0, 1.0, sums.count)[:, None]
    raw = means + origin[None, :]
    offsets = means - matmul(share, means)[None, :]
    within = sums.scatter / jnp.where(weight == 0, 1.0, weight)
    # The ranks do not depend on the scale, and a unit scale keeps squares finite.
    largest = jnp.max(jnp.diagonal(within)) + jnp.max(share[:, None] * jnp.square(raw))
    scale = power_of_two(jnp.sqrt(largest))
    root = safe_sqrt(share)[:, None] / scale
    # The largest entry is not known, but that means and spreads do not exceed it.
    size = (jnp.max(jnp.abs(raw)) + jnp.sqrt(jnp.max(jnp.diagonal(within)))) / scale
    within, raw = within / scale / scale, root * raw
    between, apart = (
        root * offsets,
        safe_sqrt(share)[:, None] * without_noise(offsets / scale, size),
    )
    moment = within + matmul(raw.T, raw)
    covariance = within + matmul(between.T, between)
    # A column that varies by no more than rounding does not vary.
    rounding = jnp.square(4 * float(jnp.finfo(within.dtype).eps)) * jnp.diagonal(moment)
    varies = jnp.diagonal(covariance) > rounding
    varies = varies | jnp.isnan(jnp.diagonal(covariance))
    covariance = jnp.where(varies[:, None] & varies[None, :], covariance, 0.0)
    values = _values(covariance)
    vectors, inner = (x[..., ::-1] for x in eigh(within))
    return Spectra(
        eigenvalues=values * scale * scale,
        rankme=smooth_rank(safe_sqrt(_values(moment))),
        stable_rank=rank_of_order(moment, jnp.inf),
        participation_ratio=rank_of_order(covariance, 2),
        participation_ratio_debiased=None,
        nesum=rank_of_order(covariance, jnp.inf),
        alpha_req=decay(values, jnp.zeros((), values.dtype), first, last),
        lidar=smooth_rank_of_ratio(
            apart,
            lambda x: matmul(within, x),
            _without_noise(inner),
            vectors,
            ridge_of(delta, scale),
            len(within),
        ),
        effective_rank=effective_rank_of(jnp.sum(sums.second, axis=0)),
        effective_rank_centred=None,
    )


def spectra_of_classes(sums: Sums) -> Spectra:
    """What the second moments by class tell of each class."""
    ranks = lax.map(effective_rank_of, sums.second)
    return Spectra(*(None,) * len(Spectra._fields))._replace(effective_rank=ranks)


def effective_rank_of(second: Float[Array, "d d"]) -> Array:
    """The effective rank of unit rows with this second moment."""
    return jnp.exp(entropy_of(unit_trace(second)))


def _values(matrix: Float[Array, "d d"]) -> Float[Array, " d"]:
    """The eigenvalues of a positive semi-definite matrix, largest first."""
    trace = jnp.trace(matrix)
    values = eigenvalues(unit_trace(matrix))[::-1]
    return jnp.where(trace == 0, 0.0, _without_noise(values) * trace)


def _without_noise(values: Float[Array, " d"]) -> Float[Array, " d"]:
    """Descending eigenvalues, where those that rounding may have made become 0."""
    rounding = _NOISE * float(jnp.finfo(values.dtype).eps) * values[0]
    return jnp.where(values <= rounding, 0.0, values)
