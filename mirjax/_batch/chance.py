"""The level that MIR reaches by chance: the interplay with permuted labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.interplay import checked_arguments, interplay
from mirjax._batch.kernels import Interplay, adjusted_ratio
from mirjax._checks import ArrayLike
from mirjax._mesh import automatic


class ChanceInterplay(NamedTuple):
    """The interplay of a batch, beside what labels without any relation to the features reach.

    Attributes:
        plain: the `Interplay` of the batch, as `interplay` gives it.
        chance: the mean `Interplay` over random permutations of the labels.
        standard_error: an `Interplay` of the standard errors of `chance`, 0 for one permutation.
        adjusted_mir: `(MI - MI_chance) / (min(H1, H2) - MI_chance)`: 0 at chance level and 1 where
            MI is as large as it can be; 0 where chance reaches all of it (0/0).
    """

    plain: Interplay
    chance: Interplay
    standard_error: Interplay
    adjusted_mir: Float[Array, "*batch"]


def chance_interplay(
    features: Float[ArrayLike, "*batch n d"],
    head: Float[ArrayLike, "*batch c d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    key: Array,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    permutations: int = 16,
) -> ChanceInterplay:
    r"""`interplay`, the level that permuted labels reach, and MIR adjusted for it.

    The MIR of a batch is well above 0 even if labels and features have nothing to do with each
    other. As the adjusted mutual information of clusterings does, `adjusted_mir` measures from that
    level.

    It is no estimate of the population: it still depends on the batch, less than MIR does. It falls
    short of the value of the whole set where a batch has about as many samples as there are
    classes, since permuted labels then reach nearly everything; and it is 0 by definition for a
    batch of one class. `debiased_interplay` does not have these limits, at order 2.

    Args:
        features: `[..., n, d]`, one sample per row.
        head: `[..., num_classes, d]`.
        labels: integers `[..., n]`.
        key: random key of the permutations, which are the same along batch axes.
        weights: non-negative `[..., n]`; only labels of samples that count are permuted, among each
            other.
        permutations: how many, a positive integer.

    Returns:
        `ChanceInterplay`. Degenerate input: as in `interplay`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or `permutations` is not positive.
        MemoryError: the joint matrix does not fit.

    Cost: `permutations + 1` times that of `interplay`. Differentiable like it.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> z, w = (jax.random.normal(jax.random.key(i), (n, 20)) for i, n in ((40, 64), (41, 10)))
        >>> result = mirjax.chance_interplay(z, w, jnp.arange(64) % 10, key=jax.random.key(2))
        >>> print(f"{result.plain.mir:.2f} {result.chance.mir:.2f} {result.adjusted_mir:.2f}")
        0.47 0.46 0.02

    Source: adjustment for chance as in Vinh, Epps & Bailey 2010 (JMLR 11), for the mutual
    information of Song et al. 2024 (arXiv 2406.03999).
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}.")
    features, head, labels, weights = checked_arguments(features, head, labels, weights)
    batch = jnp.broadcast_shapes(features.shape[:-2], labels.shape[:-1], weights.shape[:-1])
    labels, weights = (jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (labels, weights))
    plain = interplay(features, head, labels, weights=weights)

    def of_permuted(features: Array, head: Array, labels: Array, weights: Array, key: Array):
        # What `interplay` drops.
        is_zero = jnp.vectorize(
            lambda rows, y: jnp.all(rows == 0, -1)[y], signature="(c,d),(n)->(n)"
        )
        inside = (labels >= 0) & (labels < head.shape[-2])
        dropped = (weights == 0) | jnp.all(features == 0, axis=-1)
        dropped |= inside & is_zero(head, jnp.where(inside, labels, 0))

        def one(key: Array) -> Interplay:
            shuffled = _permuted(labels, dropped, key)
            return interplay(features, head, shuffled, weights=weights)

        # A loop: all permutations at once would take so many times the memory.
        return lax.map(one, jax.random.split(key, permutations))

    found = automatic(of_permuted)(features, head, labels, weights, key)
    chance = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
    ddof = min(1, permutations - 1)
    error = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=ddof) / permutations**0.5, found)
    largest = jnp.minimum(plain.entropy1, plain.entropy2)
    adjusted = adjusted_ratio(plain.mutual_information, largest, chance.mutual_information)
    return ChanceInterplay(plain, chance, error, adjusted)


def _permuted(labels: Array, dropped: Array, key: Array) -> Array:
    """The labels of the samples that count in another order; the others stay where they are."""
    drawn = jax.random.uniform(key, labels.shape[-1:])
    # The places of the samples that count come first, in their order and in a random one.
    places = jnp.argsort(dropped, axis=-1, stable=True)
    others = jnp.argsort(jnp.where(dropped, 2.0, drawn), axis=-1)
    moved = jnp.take_along_axis(labels, others, axis=-1)
    return jnp.take_along_axis(moved, jnp.argsort(places, axis=-1), axis=-1)
