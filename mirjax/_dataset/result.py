"""The interplay of a whole data set and its bounds, from the three entropies."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax import _memory as memory
from mirjax._batch.gram import normalize_rows
from mirjax._batch.kernels import Interplay, combine
from mirjax._dataset.estimate import Options, estimate_entropy, is_met
from mirjax._dataset.lanczos import Estimate
from mirjax._dataset.marginals import Marginals, joint_entropy_of_moments, of_sums
from mirjax._dataset.sums import Sums
from mirjax._linalg.rounding import entropy_rounding

# Up to this side a decomposition is cheaper than some hundred products, and exact. On a TPU it is
# compiled for minutes: a program of its own for each halving of the side down to 256, each with the
# QR decompositions of a polar iteration. Half the side has one of them less, the largest, and still
# is exact for ten classes of 128 features.
EXACT_SIDE = 4096
EXACT_SIDE_ON_TPU = 2048


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*Interplay._fields, "lower", "upper", "standard_error", "weight"],
    meta_fields=["method", "products", "converged"],
)
@dataclasses.dataclass(frozen=True)
class DatasetInterplay:
    """`Interplay` of a whole data set, with bounds and standard errors. A pytree.

    Attributes:
        entropy1: this and the next six fields are as in `Interplay`.
        entropy2: as in `Interplay`.
        joint_entropy: as in `Interplay`.
        mutual_information: as in `Interplay`.
        entropy_difference: as in `Interplay`.
        mir: as in `Interplay`.
        hdr: as in `Interplay`.
        lower: a deterministic lower bound of each field. It already includes an allowance for
            rounding of 2e-5 nats per nat of entropy (1e-12 in float64), and with `"lanczos"` a
            further `8 eps (1 + √rank λ_max) log(N / eps)` nats.
        upper: a deterministic upper bound of each field, with the same allowance.
        standard_error: the error of the stochastic part and of other estimates; 0 where all is
            exact.
        weight: the total weight of the samples that count: their number, if no weights were given.
        method: the method that ran, `"exact"` or `"lanczos"`.
        products: the number of products with a vector that were computed.
        converged: whether the tolerance was met; True if there was none.
    """

    entropy1: Float[Array, ""]
    entropy2: Float[Array, ""]
    joint_entropy: Float[Array, ""]
    mutual_information: Float[Array, ""]
    entropy_difference: Float[Array, ""]
    mir: Float[Array, ""]
    hdr: Float[Array, ""]
    lower: Interplay
    upper: Interplay
    standard_error: Interplay
    weight: Float[Array, ""]
    method: str
    products: int
    converged: bool


def exact_result(result: Interplay, weight: Array, options: Options) -> DatasetInterplay:
    """The result of a decomposition, whose bounds are as wide as its rounding."""
    joint, nothing = result.joint_entropy, jnp.zeros_like(result.joint_entropy)
    rounding = entropy_rounding(joint.dtype) * jnp.maximum(joint, 1.0)
    estimate = Estimate(joint, nothing, nothing, joint - rounding, joint + rounding)
    fields = _assemble(result.entropy1, result.entropy2, estimate, weight)
    return DatasetInterplay(
        **fields, method="exact", products=0, converged=is_met(estimate, options)
    )


def exact_joint(marginals: Marginals, joint: Array, options: Options) -> DatasetInterplay:
    """The result from exact marginals and an exact joint entropy."""
    result = combine(marginals.entropy1, marginals.entropy2, joint)
    return exact_result(result, marginals.weight, options)


def estimated_joint(marginals: Marginals, options: Options) -> DatasetInterplay:
    """The result from exact marginals and products with the operator."""
    joint, products, converged = estimate_entropy(marginals.operator, options)
    fields = _assemble(marginals.entropy1, marginals.entropy2, joint, marginals.weight)
    return DatasetInterplay(**fields, method="lanczos", products=products, converged=converged)


def is_exact(options: Options, side: int) -> bool:
    """Whether a matrix with this side is decomposed."""
    limit = options.exact_side
    if limit is None:
        limit = EXACT_SIDE_ON_TPU if jax.default_backend() == "tpu" else EXACT_SIDE
    return options.method == "exact" or (options.method == "auto" and side <= limit)


def interplay_of_sums(
    sums: Sums, head: Array, options: Options, *, samples: int | None = None
) -> DatasetInterplay:
    """The result from the sums of `ClassMoments` and a head; pass `samples` if n is known."""
    classes, width = head.shape
    side, itemsize = width * min(classes, width), head.dtype.itemsize
    exact = is_exact(options, side)
    moments = memory.of_moments(classes, width, itemsize)
    needs = {
        "exact": moments + memory.of_matrix(side, itemsize),
        "lanczos": moments + memory.of_vectors(side, options.rank_for(side), itemsize),
    }
    what = f"d, C = {width}, {classes}"
    memory.check("exact" if exact else "lanczos", needs, options.memory_limit, what)
    marginals = of_sums(sums, head, samples)
    if exact:
        joint = joint_entropy_of_moments(marginals.operator.moments, normalize_rows(head))
        return exact_joint(marginals, joint, options)
    return estimated_joint(marginals, options)


@jax.jit
def _assemble(entropy1: Array, entropy2: Array, joint: Estimate, weight: Array) -> dict[str, Any]:
    """All fields and their bounds, by interval arithmetic on the three entropies."""
    most, least = jnp.maximum(entropy1, entropy2), jnp.minimum(entropy1, entropy2)
    rounding = entropy_rounding(joint.value.dtype) * jnp.maximum(most, 1.0)
    empty = weight == 0
    # The joint entropy is at least the larger of the two, and at most their sum.
    floor, ceiling = most - rounding, entropy1 + entropy2 + 2 * rounding
    lower = jnp.clip(joint.lower, floor, ceiling)
    upper = jnp.clip(joint.upper, floor, ceiling)
    # The estimate keeps to what holds without rounding, so that MI and MIR are not negative.
    middle = jnp.clip(jnp.clip(joint.value, lower, upper), most, entropy1 + entropy2)
    middle = jnp.where(empty, 0.0, middle)
    value = combine(entropy1, entropy2, middle)
    shared = (
        jnp.maximum(entropy1 + entropy2 - 2 * rounding - upper, 0.0),
        entropy1 + entropy2 + 2 * rounding - lower,
    )
    apart = value.entropy_difference
    nothing = entropy_rounding(joint.value.dtype)
    defined = ~(least <= nothing)  # not `least > nothing`: NaN stays NaN
    # Each ratio is least where its numerator is least and its denominator greatest.
    bounds = []
    for sign, joint_bound, shared_bound in ((-1, lower, shared[0]), (1, upper, shared[1])):
        slack = sign * rounding
        difference = jnp.maximum(apart + 2 * slack, 0.0)
        ratio = shared_bound / jnp.where(defined, jnp.maximum(least - slack, rounding), 1.0)
        contrast = difference / jnp.maximum(most - slack, rounding)
        bounds.append(
            Interplay(
                entropy1=jnp.maximum(entropy1 + slack, 0.0),
                entropy2=jnp.maximum(entropy2 + slack, 0.0),
                joint_entropy=jnp.maximum(joint_bound, 0.0),
                mutual_information=shared_bound,
                entropy_difference=difference,
                mir=jnp.where(defined, jnp.clip(ratio, 0.0, 1 + rounding), 0.0),
                hdr=jnp.where(most <= nothing, 0.0, jnp.clip(contrast, 0.0, 1.0)),
            )
        )
    bounds = [jax.tree.map(lambda b: jnp.where(empty, 0.0, b), b) for b in bounds]
    # The marginals are exact: only what contains the joint entropy has a standard error.
    error = jnp.where(empty, 0.0, joint.standard_error)
    none = jnp.zeros_like(error)
    errors = Interplay(
        entropy1=none,
        entropy2=none,
        joint_entropy=error,
        mutual_information=error,
        entropy_difference=none,
        mir=jnp.where(defined, error / jnp.where(defined, least, 1.0), 0.0),
        hdr=none,
    )
    return value._asdict() | {
        "lower": bounds[0],
        "upper": bounds[1],
        "standard_error": errors,
        "weight": weight,
    }
