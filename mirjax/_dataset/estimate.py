"""The entropy of an operator: one round of products, or rounds until a tolerance is met."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mirjax import _memory as memory
from mirjax._dataset.lanczos import (
    Estimate,
    Quadrature,
    Subspace,
    known_of,
    probe_complement,
    summarize,
    top_subspace,
)
from mirjax._dataset.operators import Operator

DatasetMethod = Literal["auto", "exact", "lanczos"]
Target = Literal["standard_error", "bracket"]

# Of the first round: (ITERATIONS + 1) · RANK + DEGREE · PROBES = 704 products.
RANK, PROBES, DEGREE, ITERATIONS = 128, 16, 20, 2
MAX_PRODUCTS = 20_000
# Above this rank the k × k decompositions of the subspace cost more than the products.
LARGEST_RANK = 1024
# Tolerances are relative to the entropy, or to this many nats if the entropy is smaller.
SMALL = 0.25


class Options(NamedTuple):
    """The options of `dataset_interplay`, which documents them."""

    method: DatasetMethod = "auto"
    key: Array | None = None
    tolerance: float | None = None
    target: Target = "standard_error"
    rank: int | None = None
    probes: int | None = None
    max_products: int | None = None
    memory_limit: int | None = None
    exact_side: int | None = None

    def checked(self) -> "Options":
        """The options themselves, if they are valid.

        Raises:
            ValueError: the message names the option, what it must be and what it is.
        """
        for name, allowed in (
            ("method", ("auto", "exact", "lanczos")),
            ("target", ("standard_error", "bracket")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, got "
                    f"{getattr(self, name)!r}."
                )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}.")
        for name, least in (
            ("rank", 1),
            ("probes", 2),
            ("max_products", 1),
            ("memory_limit", 1),
            ("exact_side", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        return self

    def rank_for(self, size: int) -> int:
        """How many vectors at the top of the spectrum are split off first."""
        return min(self.rank or RANK, size)


def estimate_entropy(operator: Operator, options: Options) -> tuple[Estimate, int, bool]:
    """The entropy of the operator, the number of products spent, whether the tolerance is met."""
    key = jax.random.key(0) if options.key is None else options.key
    probes = options.probes or PROBES
    rank, iterations = options.rank_for(operator.size), ITERATIONS
    known = known_of(operator)
    purity_is_exact = operator.purity_is_exact

    # Even and odd numbers, so that no random key is used twice.
    def enlarge(subspace: Subspace | None, round_: int) -> Subspace:
        start = None if subspace is None else subspace.basis
        draw = jax.random.fold_in(key, 2 * round_)
        return top_subspace(operator, draw, rank=rank, iterations=iterations, start=start)

    def probe(subspace: Subspace, round_: int) -> Quadrature:
        draw = jax.random.fold_in(key, 2 * round_ + 1)
        return probe_complement(operator, subspace.basis, draw, probes=probes, degree=DEGREE)

    subspace = enlarge(None, 0)
    quadrature = probe(subspace, 0)
    products = (iterations + 1) * rank + DEGREE * probes
    limit = memory.available() if options.memory_limit is None else options.memory_limit
    round_ = 0
    while True:
        estimate = summarize(subspace, quadrature, known, purity_is_exact=purity_is_exact)
        if options.tolerance is None or is_met(estimate, options):
            return estimate, products, True
        # More products do not turn NaN into a number.
        if not bool(jnp.isfinite(estimate.value)):
            return estimate, products, False
        budget = options.max_products or MAX_PRODUCTS
        round_ += 1
        if options.target == "standard_error" and _probes_help(estimate, options.tolerance):
            # As many probes again as there are: their number doubles each time.
            batches = len(quadrature.first) // probes
            cost = batches * probes * DEGREE
            if products + cost > budget:
                return estimate, products, False
            products += cost
            new = [probe(subspace, round_ * 4096 + b) for b in range(batches)]
            quadrature = jax.tree.map(lambda *parts: jnp.concatenate(parts), quadrature, *new)
            continue
        # More vectors alone would leave more eigenvalues at the edge of the subspace unconverged,
        # so the number of iterations grows too.
        rank, iterations = min(2 * rank, operator.size), iterations + 1
        cost = (iterations + 1) * rank + DEGREE * probes
        itemsize = subspace.basis.dtype.itemsize
        # Where a larger subspace does not pay, or does not fit, the estimate stays as it is.
        if (
            rank > max(operator.size // 4, 2 * RANK)
            or rank > LARGEST_RANK
            or products + cost > budget
            or memory.of_vectors(operator.size, rank, itemsize) > limit
        ):
            return estimate, products, False
        subspace = enlarge(subspace, round_)
        quadrature = probe(subspace, round_)
        products += cost


def is_met(estimate: Estimate, options: Options) -> bool:
    """Whether the error is below the tolerance, if there is one."""
    if options.tolerance is None:
        return True
    width = 0.5 * (estimate.upper - estimate.lower)
    error = width if options.target == "bracket" else estimate.standard_error
    return bool(error <= options.tolerance * jnp.maximum(estimate.value, SMALL))


def _probes_help(estimate: Estimate, tolerance: float) -> bool:
    """Whether up to 16 times as many probes meet the tolerance; if not, more must be split off."""
    size = max(float(estimate.value), SMALL) * tolerance
    systematic = float(estimate.standard_error) ** 2 - float(estimate.sampling_error) ** 2
    return systematic + float(estimate.sampling_error) ** 2 / 16 < size**2
