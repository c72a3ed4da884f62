"""How many products an entropy is worth: one round of them, or rounds until a tolerance is met."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mirjax.lanczos import (
    Estimate,
    Quadrature,
    Subspace,
    probe_complement,
    summarize,
    top_subspace,
)
from mirjax.operators import Operator

Method = Literal["auto", "exact", "lanczos"]
Target = Literal["standard_error", "bracket"]

RANK, PROBES, DEGREE, ITERATIONS = 128, 16, 20, 2
MAX_PRODUCTS = 20_000


class Options(NamedTuple):
    """What `dataset_interplay` documents."""

    method: Method = "auto"
    key: Array | None = None
    tolerance: float | None = None
    target: Target = "standard_error"
    rank: int | None = None
    probes: int | None = None
    max_products: int | None = None
    memory_limit: int | None = None

    def checked(self) -> "Options":
        """Itself, or an error that names the option."""
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
        for name, least in (("rank", 1), ("probes", 2), ("max_products", 1), ("memory_limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        return self

    def rank_for(self, size: int) -> int:
        """How many vectors of the top of the spectrum are split off first."""
        return min(self.rank or RANK, size)


def estimate_entropy(operator: Operator, options: Options) -> tuple[Estimate, int, bool]:
    """The entropy of the operator, the products spent, and whether the tolerance was met."""
    key = jax.random.key(0) if options.key is None else options.key
    probes = options.probes or PROBES
    rank = options.rank_for(operator.size)
    purity, count = _known(operator)
    exact = operator.purity_is_exact

    def enlarge(subspace: Subspace | None, round_: int) -> Subspace:
        start = None if subspace is None else subspace.basis
        draw = jax.random.fold_in(key, 2 * round_)
        return top_subspace(operator, draw, rank=rank, iterations=ITERATIONS, start=start)

    def probe(subspace: Subspace, round_: int) -> Quadrature:
        draw = jax.random.fold_in(key, 2 * round_ + 1)
        return probe_complement(operator, subspace.basis, draw, probes=probes, degree=DEGREE)

    subspace = enlarge(None, 0)
    found = probe(subspace, 0)
    products = (ITERATIONS + 1) * rank + DEGREE * probes
    round_ = 0
    while True:
        estimate = summarize(subspace, found, count, purity, exact=exact)
        if options.tolerance is None:
            return estimate, products, True
        if _error(estimate, options.target) <= options.tolerance:
            return estimate, products, True
        budget = options.max_products or MAX_PRODUCTS
        more_probes = options.target == "standard_error" and _probes_help(
            estimate, options.tolerance
        )
        round_ += 1
        if more_probes:
            batches = len(found.first) // probes
            cost = batches * probes * DEGREE
            if products + cost > budget:
                return estimate, products, False
            new = [probe(subspace, round_ * 4096 + b) for b in range(batches)]
            found = jax.tree.map(lambda *parts: jnp.concatenate(parts), found, *new)
        else:
            rank = min(2 * rank, operator.size)
            cost = (ITERATIONS + 1) * rank + DEGREE * probes
            if rank == subspace.basis.shape[1] or products + cost > budget:
                return estimate, products, False
            subspace = enlarge(subspace, round_)
            found = probe(subspace, round_)
        products += cost


def _error(estimate: Estimate, target: Target) -> float:
    """What the tolerance is held against, relative to the entropy."""
    width = 0.5 * (estimate.upper - estimate.lower)
    error = width if target == "bracket" else estimate.standard_error
    return float(error / jnp.maximum(jnp.abs(estimate.value), jnp.finfo(error.dtype).tiny))


def _probes_help(estimate: Estimate, tolerance: float) -> bool:
    """Whether up to 16 times as many probes meet the tolerance; else more must be split off first."""
    size = float(estimate.value) * tolerance
    systematic = float(estimate.standard_error) ** 2 - float(estimate.sampling_error) ** 2
    return systematic + float(estimate.sampling_error) ** 2 / 16 < size**2


@jax.jit
def _known(operator: Operator) -> tuple[Array, Array]:
    return operator.purity(), operator.count
