"""The interplay of a whole data set with its bounds, put together from three entropies."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mirjax._batch.gram import normalize_rows
from mirjax._batch.kernels import Interplay, combine
from mirjax._dataset import memory
from mirjax._dataset.estimate import Options, estimate_entropy, is_met
from mirjax._dataset.lanczos import Estimate
from mirjax._dataset.marginals import Marginals, joint_entropy_of_moments, of_sums
from mirjax._dataset.sums import Sums
from mirjax._linalg.spectrum import entropy_rounding

# Up to this side one decomposition is cheaper than some hundred products, and exact.
EXACT_SIDE = 4096


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*Interplay._fields, "lower", "upper", "standard_error", "weight"],
    meta_fields=["method", "products", "converged"],
)
@dataclasses.dataclass(frozen=True)
class DatasetInterplay:
    """`Interplay` of a whole data set, with what is known of its error. A pytree.

    Attributes:
        entropy1: and the six fields that follow: as in `Interplay`.
        lower: a lower bound of each field that holds without any probability. For rounding 2e-5 nats
            for each nat of entropy are taken off already (1e-12 in float64), and with `"lanczos"`
            `8 eps (1 + √rank λ_max) log(N / eps)` nats.
        upper: an upper bound of each in the same sense.
        standard_error: of the stochastic part, and of what else was estimated; 0 where all is exact.
        weight: of all samples that count; their number, if no weights were given.
        method: the one that ran, `"exact"` or `"lanczos"`.
        products: how many products with a vector were spent.
        converged: whether the tolerance was met; True if none was asked for.
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
    """Of a decomposition: bounds as wide as its rounding."""
    joint, nothing = result.joint_entropy, jnp.zeros_like(result.joint_entropy)
    rounding = entropy_rounding(joint.dtype) * jnp.maximum(joint, 1.0)
    estimate = Estimate(joint, nothing, nothing, joint - rounding, joint + rounding)
    fields = _assemble(result.entropy1, result.entropy2, estimate, weight)
    return DatasetInterplay(
        **fields, method="exact", products=0, converged=is_met(estimate, options)
    )


def exact_joint(known: Marginals, joint: Array, options: Options) -> DatasetInterplay:
    """Of exact marginals and an exact joint entropy."""
    return exact_result(combine(known.entropy1, known.entropy2, joint), known.weight, options)


def estimated_joint(known: Marginals, options: Options) -> DatasetInterplay:
    """Of exact marginals and products with the operator."""
    joint, products, converged = estimate_entropy(known.operator, options)
    fields = _assemble(known.entropy1, known.entropy2, joint, known.weight)
    return DatasetInterplay(**fields, method="lanczos", products=products, converged=converged)


def is_exact(options: Options, side: int) -> bool:
    """Whether a side of this size is decomposed."""
    return options.method == "exact" or (options.method == "auto" and side <= EXACT_SIDE)


def interplay_of_sums(
    sums: Sums, head: Array, options: Options, *, samples: int | None = None
) -> DatasetInterplay:
    """From the statistics of `ClassMoments` and a head of their dtype; `samples` if that is known."""
    classes, width = head.shape
    side, size = width * min(classes, width), head.dtype.itemsize
    exact = is_exact(options, side)
    moments = memory.of_moments(classes, width, size)
    needs = {
        "exact": moments + memory.of_matrix(side, size),
        "lanczos": moments + memory.of_vectors(side, options.rank_for(side), size),
    }
    what = f"d, C = {width}, {classes}"
    memory.check("exact" if exact else "lanczos", needs, options.memory_limit, what)
    known = of_sums(sums, head, samples)
    if exact:
        joint = joint_entropy_of_moments(known.operator.moments, normalize_rows(head))
        return exact_joint(known, joint, options)
    return estimated_joint(known, options)


@jax.jit
def _assemble(entropy1: Array, entropy2: Array, joint: Estimate, weight: Array) -> dict[str, Any]:
    """All fields with their bounds, as intervals of the three entropies."""
    most, least = jnp.maximum(entropy1, entropy2), jnp.minimum(entropy1, entropy2)
    rounding = entropy_rounding(joint.value.dtype) * jnp.maximum(most, 1.0)
    empty = weight == 0
    # A joint kernel has at least the entropy of either, and at most that of both.
    floor, ceiling = most - rounding, entropy1 + entropy2 + 2 * rounding
    lower = jnp.clip(joint.lower, floor, ceiling)
    upper = jnp.clip(joint.upper, floor, ceiling)
    middle = jnp.clip(jnp.clip(joint.value, lower, upper), most, entropy1 + entropy2)
    middle = jnp.where(empty, 0.0, middle)
    value = combine(entropy1, entropy2, middle)
    shared = (
        jnp.maximum(entropy1 + entropy2 - 2 * rounding - upper, 0.0),
        entropy1 + entropy2 + 2 * rounding - lower,
    )
    apart = value.entropy_difference
    nothing = entropy_rounding(joint.value.dtype)
    defined = ~(least <= nothing)  # NaN stays NaN
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
