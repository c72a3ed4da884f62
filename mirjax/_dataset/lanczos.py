"""Entropy of an operator of unit trace from products alone: an estimate, its error, and a bracket.

Block subspace iteration splits off the top of the spectrum. The trace of the rest is known, and
often the trace of its square. Its entropy is estimated by stochastic Lanczos quadrature with these
two as control variates. The bracket is valid even if the iteration has not converged and whatever
the random vectors are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from mirjax._dataset.bounds import Split, entropy_bounds, entropy_terms, split
from mirjax._dataset.operators import Operator
from mirjax._linalg.decompositions import eigh
from mirjax._linalg.precision import matmul


class Subspace(NamedTuple):
    """An orthonormal basis, with Ritz values and squared residuals (`leaks`) of its vectors."""

    basis: Float[Array, "size k"]
    values: Float[Array, " k"]
    leaks: Float[Array, " k"]


class Quadrature(NamedTuple):
    """The results of Lanczos iteration for each probe on the complement.

    Attributes:
        first: `⟨v, A v⟩` for the unit probe v.
        second: `⟨v, A² v⟩`.
        entropy: `⟨v, -A log A v⟩`, the mean of the Gauss rule (an upper bound) and the
            Gauss-Radau rule with a node at 0 (a lower bound), after half the steps and after all
            of them.
        gap: half the difference of the two rules, after half the steps and after all of them.
        nodes: nodes of the Gauss rule.
        weights: weights of the Gauss rule.
    """

    first: Float[Array, " m"]
    second: Float[Array, " m"]
    entropy: Float[Array, "m 2"]
    gap: Float[Array, "m 2"]
    nodes: Float[Array, "m t"]
    weights: Float[Array, "m t"]


class Known(NamedTuple):
    """What is known of an operator before any product.

    Attributes:
        purity: `tr(A²)`, or an upper bound of it.
        rank_bound: the number of eigenvalues that can be non-zero.
        dimension: that of the space in which random vectors are drawn.
    """

    purity: Float[Array, ""]
    rank_bound: Float[Array, ""]
    dimension: Float[Array, ""]


class Estimate(NamedTuple):
    """An entropy in nats, its standard error, and deterministic bounds.

    `sampling_error` is the part of the error that more probes reduce.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    sampling_error: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("rank", "iterations"))
def top_subspace(
    operator: Operator, key: Array, *, rank: int, iterations: int, start: Array | None = None
) -> Subspace:
    """`iterations` steps of block subspace iteration with `rank` vectors, including `start`.

    Costs `iterations + 1` products with `rank` vectors.
    """
    fresh = rank if start is None else rank - start.shape[1]
    basis = operator.draw(functools.partial(jax.random.rademacher, key), fresh)
    # New vectors start orthogonal to those that have converged already.
    if start is not None:
        basis = basis - matmul(start, matmul(start.T, basis))
        basis = jnp.concatenate([start, basis], axis=1)
    basis = _orthonormal(basis)
    for _ in range(iterations):
        basis = _orthonormal(operator.apply(basis))
    image = operator.apply(basis)
    projected = matmul(basis.T, image)
    # Rayleigh-Ritz: the basis is rotated to the eigenvectors of the projected operator.
    rotation, values = eigh(0.5 * (projected + projected.T))
    rotated = matmul(image, rotation)
    leaks = jnp.sum(jnp.square(rotated), axis=0) - jnp.square(values)
    return Subspace(matmul(basis, rotation), values, leaks)


def _orthonormal(columns: Array, passes: int = 3) -> Array:
    """An orthonormal basis of the columns from k × k Gram matrices alone; zero columns stay zero.

    A Gram matrix only resolves columns down to about √eps of the largest. So the columns are
    rotated, scaled to unit norm and decomposed again; each pass resolves another factor √eps.
    Unlike a QR decomposition this works on sharded rows.
    """
    eps = float(jnp.finfo(columns.dtype).eps)
    for step in range(passes):
        norms = jnp.sqrt(jnp.sum(jnp.square(columns), axis=0))
        columns = columns / jnp.where(norms > 0, norms, 1.0)[None, :]
        rotation, squares = eigh(matmul(columns.T, columns))
        if step == passes - 1:
            # What is still null after the last pass is linearly dependent.
            small = squares <= len(squares) * eps
            inverse_root = jnp.where(small, 0.0, lax.rsqrt(jnp.where(small, 1.0, squares)))
            rotation = rotation * inverse_root[None, :]
        columns = matmul(columns, rotation)
    return columns


@functools.partial(jax.jit, static_argnames=("probes", "degree"))
def probe_complement(
    operator: Operator, basis: Array, key: Array, *, probes: int, degree: int
) -> Quadrature:
    """Lanczos iteration from random vectors orthogonal to `basis`.

    Costs `degree` products with `probes` vectors.
    """
    random = operator.draw(functools.partial(jax.random.normal, key), probes)
    # Twice: the first pass leaves a rounding error along the basis.
    for _ in range(2):
        random = random - matmul(basis, matmul(basis.T, random))
    norms = jnp.sqrt(jnp.sum(jnp.square(random), axis=0, keepdims=True))
    vectors = random / jnp.where(norms > 0, norms, 1.0)
    alpha, beta = _lanczos(operator, vectors, degree)
    pairs = [_both_rules(alpha[:t].T, beta[: t - 1].T) for t in (degree // 2, degree)]
    entropy, gap = (jnp.stack(part, axis=1) for part in zip(*pairs, strict=True))
    nodes, weights = jax.vmap(_gauss_rule)(alpha.T, beta.T)
    second = jnp.square(alpha[0]) + jnp.square(beta[0])
    return Quadrature(alpha[0], second, entropy, gap, nodes, weights)


def _lanczos(operator: Operator, start: Array, degree: int) -> tuple[Array, Array]:
    """Diagonals `[degree, m]` and off-diagonals `[degree - 1, m]` for each column of `start`."""
    eps = float(jnp.finfo(start.dtype).eps)

    def step(carry: tuple[Array, Array, Array], _: None):
        before, now, coupling = carry
        image = operator.apply(now) - coupling * before
        alpha = jnp.sum(image * now, axis=0, keepdims=True)
        image = image - alpha * now
        # Again, since rounding leaves a part along the last vector.
        image = image - jnp.sum(image * now, axis=0, keepdims=True) * now
        beta = jnp.sqrt(jnp.sum(jnp.square(image), axis=0, keepdims=True))
        # Where the Krylov space is exhausted, all further vectors and their weights are zero.
        done = beta <= 4 * eps * (jnp.abs(alpha) + coupling)
        beta = jnp.where(done, 0.0, beta)
        after = jnp.where(done, 0.0, image / jnp.where(done, 1.0, beta))
        return (now, after, beta), (alpha, beta)

    zero = jnp.zeros_like(start)
    carry = zero, start, zero[:1]
    _, (alpha, beta) = lax.scan(step, carry, None, length=degree)
    return alpha[:, 0], beta[:-1, 0]


def _both_rules(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Mean of the Gauss and the Gauss-Radau rule, and half their difference, for each probe."""

    def apply(diagonal: Array) -> Array:
        nodes, weights = jax.vmap(_gauss_rule)(diagonal, beta)
        return jnp.sum(weights * entropy_terms(nodes), axis=1)

    gauss = apply(alpha)
    # The Gauss rule is the upper bound; rounding may say otherwise.
    radau = jnp.minimum(apply(jax.vmap(_with_zero)(alpha, beta)), gauss)
    return 0.5 * (gauss + radau), 0.5 * (gauss - radau)


def _gauss_rule(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Nodes and weights of the quadrature rule that belongs to a tridiagonal matrix."""
    matrix = jnp.diag(alpha) + jnp.diag(beta, -1) + jnp.diag(beta, 1)
    vectors, values = eigh(matrix)
    return jnp.maximum(values, 0.0), jnp.square(vectors[0])


def _with_zero(alpha: Array, beta: Array) -> Array:
    """The diagonal with the last entry changed so that 0 is an eigenvalue (Gauss-Radau)."""
    # The last pivot of an LDLᵀ decomposition must vanish for that.
    tiny = jnp.finfo(alpha.dtype).tiny

    def step(pivot: Array, entry: tuple[Array, Array]) -> tuple[Array, None]:
        centre, coupling = entry
        below = jnp.where(pivot > tiny, jnp.square(coupling) / jnp.maximum(pivot, tiny), 0.0)
        return centre - below, None

    pivot, _ = lax.scan(step, alpha[0], (alpha[1:-1], beta[:-1]))
    last = jnp.where(pivot > tiny, jnp.square(beta[-1]) / jnp.maximum(pivot, tiny), alpha[-1])
    return alpha.at[-1].set(jnp.minimum(last, alpha[-1]))


@jax.jit
def known_of(operator: Operator) -> Known:
    """What an operator tells of itself."""
    return Known(operator.purity(), operator.rank_bound, operator.dimension)


@functools.partial(jax.jit, static_argnames="purity_is_exact")
def summarize(
    subspace: Subspace,
    probes: Quadrature,
    known: Known,
    *,
    purity_is_exact: bool,
) -> Estimate:
    """The estimate from a subspace and probes on its complement."""
    parts = split(
        subspace.values,
        subspace.leaks,
        known.rank_bound,
        known.purity,
        purity_is_exact=purity_is_exact,
    )
    # The mean of a probe times this is a trace.
    drawn = jnp.maximum(known.dimension - len(subspace.values), 0.0)
    lower, upper = entropy_bounds(parts)
    theta = parts.values
    # `⟨q, -A log A q⟩` lies between f(θ) and f(θ) - θ log(1 + leak/θ²). The estimate is
    # the middle, which is correct to second order in the residual.
    doubtful = theta * jnp.log1p(
        jnp.where(theta > 0, parts.leaks / jnp.square(jnp.where(theta > 0, theta, 1.0)), 0.0)
    )
    top = jnp.sum(entropy_terms(theta)) - 0.5 * jnp.sum(doubtful)
    rest, variance = _complement(parts, drawn, probes, purity_is_exact)
    # With no mass left there is no complement, and the probes are rounding errors.
    empty = parts.mass == 0
    value = top + jnp.where(empty, 0.0, rest)
    variance = jnp.where(empty, 0.0, variance)
    # Systematic errors. The divisors of half the distance between the bounds come from experiments:
    # with them two standard errors cover at least 90 % (tests/test_lanczos.py).
    gap = jnp.where(empty, 0.0, drawn * jnp.mean(probes.gap[:, 1]))
    systematic = jnp.sum(doubtful) / 4, gap / 5, parts.rounding / 4
    error = jnp.sqrt(variance + sum(jnp.square(s) for s in systematic))
    return Estimate(jnp.clip(value, lower, upper), error, jnp.sqrt(variance), lower, upper)


def _complement(
    parts: Split, drawn: Array, probes: Quadrature, purity_is_exact: bool
) -> tuple[Array, Array]:
    """Estimate of the trace of `-A log A` on the complement, and its variance."""
    # Nodes are scaled to [0, 1], for a well-conditioned fit.
    scale = jnp.max(probes.nodes)
    scale = jnp.where(scale > 0, scale, 1.0)
    x = (probes.nodes / scale).reshape(-1)
    root = jnp.sqrt(probes.weights.reshape(-1))
    powers = [jnp.ones_like(x), x, jnp.square(x)][: 3 if purity_is_exact else 2]
    # The control variates are the powers of x whose trace is known; that of 1 is known since probes
    # have unit norm. The fit minimises the mean square of f minus the controls over the spectrum,
    # and so the variance of a probe.
    terms = probes.nodes.reshape(-1) * -jnp.log(jnp.where(x > 0, x, 1.0))
    design = jnp.stack(powers, axis=1) * root[:, None]
    fit = jnp.linalg.lstsq(design, terms * root)[0]
    controls = [parts.mass - drawn * probes.first]
    if purity_is_exact:
        controls.append(parts.squares - drawn * probes.second)
    # f(x) = -x log(x / scale) - x log(scale); the second term is a multiple of the first control.
    slope = fit[1] / scale - jnp.log(scale)
    # The true value lies at about the same relative position between the two rules after any number
    # of steps; how the middle moved while the gap closed shows this position.
    middle, gap = jnp.mean(probes.entropy, axis=0), jnp.mean(probes.gap, axis=0)
    closed = gap[0] - gap[1]
    position = jnp.where(
        closed > 0, (middle[1] - middle[0]) / jnp.where(closed > 0, closed, 1.0), 0.0
    )
    entropy = probes.entropy[:, 1] + jnp.clip(position, -1.0, 1.0) * probes.gap[:, 1]
    estimates = drawn * entropy + slope * controls[0]
    if purity_is_exact:
        estimates = estimates + fit[2] / jnp.square(scale) * controls[1]
    # Each fitted slope takes a degree of freedom.
    fitted = 1 + len(controls)
    variance = jnp.var(estimates, ddof=min(fitted, len(estimates) - 1)) / len(estimates)
    return jnp.mean(estimates), variance
