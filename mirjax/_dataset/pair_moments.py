"""MIR and HDR of order 2 of a population, averaged over batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.debiased import DebiasedInterplay
from mirjax._batch.gram import safe_sqrt
from mirjax._batch.interplay import checked_arguments
from mirjax._batch.kernels import Interplay
from mirjax._batch.pairs import interplay_of_purities, pairs_of_labels
from mirjax._checks import ArrayLike, as_groups
from mirjax._linalg.precision import matmul
from mirjax._mesh import automatic


class PairMoments(NamedTuple):
    """Means over the pairs of samples within each batch: a few numbers, whatever the sizes.

    They are a pytree: they can be the carry of `lax.scan`, be donated, or be saved. Start with
    `zeros`, add batches with `update`, combine workers with `merge`, or with `reduce` inside
    `shard_map` and `pmap`; `interplay` gives MIR and HDR of the population, as
    `debiased_interplay` does from one batch.

    Batches must be drawn at random; one that is sorted by class has too many pairs of one class.
    If the head changes from batch to batch, as it does in training, the result is an average over
    that part of the training. A plain `jax.lax.psum` of the state is wrong, since `scatter` is
    about the mean of its own batches.

    Attributes:
        weight: `Σ_{i≠j} w_i w_j` over all batches.
        batches: the number of batches of equal weight that say as much.
        purities: `[3]`, the weighted means over the pairs of the squared entries of both Gram
            matrices and of their product.
        scatter: `[3, 3]`, of the means of the batches about `purities`, with the same weights.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> head, key = jax.random.normal(jax.random.key(0), (5, 8)), jax.random.key(1)
        >>> moments = mirjax.PairMoments.zeros()
        >>> for i in range(20):
        ...     labels = jax.random.randint(jax.random.fold_in(key, i), (32,), 0, 5)
        ...     noise = jax.random.normal(jax.random.fold_in(key, 100 + i), (32, 8))
        ...     moments = moments.update(head[labels] + noise, head, labels)
        >>> result = moments.interplay()
        >>> print(f"{result.mir:.2f} ± {result.standard_error.mir:.2f}")
        0.43 ± 0.01
    """

    weight: Float[Array, ""]
    batches: Float[Array, ""]
    purities: Float[Array, " 3"]
    scatter: Float[Array, "3 3"]

    @classmethod
    def zeros(cls, *, dtype: Any = jnp.float32) -> "PairMoments":
        """The state of no batch.

        Args:
            dtype: float32, or float64 if it is enabled in JAX.

        Raises:
            TypeError: the dtype is another one.
        """
        if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
            raise TypeError(f"dtype must be float32 or float64, got {jnp.dtype(dtype).name}.")
        return cls(*(jnp.zeros(shape, dtype) for shape in ((), (), (3,), (3, 3))))

    def update(
        self,
        features: Float[ArrayLike, "*batch n d"],
        head: Float[ArrayLike, "*batch c d"],
        labels: Int[ArrayLike, "*batch n"],
        weights: Float[ArrayLike, "*batch n"] | None = None,
        groups: Int[ArrayLike, "*batch n"] | None = None,
    ) -> "PairMoments":
        """Adds a batch, or several.

        Args:
            features: `[..., n, d]`; batch axes are so many batches, and only samples of the same
                batch are compared.
            head: `[..., num_classes, d]`.
            labels: integers `[..., n]`.
            weights: non-negative `[..., n]`, whose squares are finite; weight 0 drops a sample
                exactly. A batch with fewer than two samples adds nothing.
            groups: integers `[..., n]`; pairs within a group are left out.

        Returns:
            A new state. It is NaN where a counted sample has a NaN or an invalid label.

        Raises:
            TypeError, ValueError: shapes or dtypes do not match.

        Cost: two Gram matrices, `O(n² d)`.
        """
        features, head, labels, weights = checked_arguments(features, head, labels, weights)
        groups = as_groups(groups, features)
        dtype = self.weight.dtype

        def single(features: Array, head: Array, labels: Array, weights: Array, *groups: Array):
            sums = pairs_of_labels(features, head, labels, weights, *groups)
            whole = jnp.sum(jnp.where(sums.share == 0, 0.0, weights))
            is_empty = sums.weight == 0
            purities = sums.sums / jnp.where(is_empty, 1.0, sums.weight)
            return (sums.weight * whole * whole).astype(dtype), purities.astype(dtype)

        extra = [] if groups is None else [groups]
        signature = "(n,d),(c,d),(n),(n)" + ",(n)" * len(extra) + "->(),(k)"
        vectorized = automatic(jnp.vectorize(single, signature=signature))
        weight, purities = vectorized(features, head, labels, weights, *extra)
        weight, purities = weight.reshape(-1), purities.reshape(-1, 3)
        ones = jnp.where(weight == 0, 0.0, jnp.ones_like(weight))
        new = PairMoments(weight, ones, purities, jnp.zeros((len(weight), 3, 3), dtype))
        return self.merge(merged(new))

    def merge(self, other: "PairMoments") -> "PairMoments":
        """The state of all batches of both; up to rounding the order does not matter."""
        return merged(jax.tree.map(lambda a, b: jnp.stack([a, b]), self, other))

    def reduce(self, axis_name: str | tuple[str, ...]) -> "PairMoments":
        """The state of the batches of all devices, inside `shard_map`, `pmap` or `vmap`.

        Args:
            axis_name: the name of the mapped axis, or several of them.

        Returns:
            The same state on every device.
        """
        weight = lax.psum(self.weight, axis_name)
        share = self.weight / jnp.where(weight == 0, 1.0, weight)
        purities = lax.psum(share * self.purities, axis_name)
        apart = self.purities - purities
        scatter = self.scatter + self.weight * apart[:, None] * apart[None, :]
        parts = _over(jnp.square(share), self.batches), scatter
        parts, scatter = lax.psum(parts, axis_name)
        return PairMoments(weight, _over(1.0, parts), purities, scatter)

    def interplay(self) -> DebiasedInterplay:
        """MIR, HDR and the entropies of order 2 of the population.

        Returns:
            `DebiasedInterplay`, with the standard error over batches, whose weights should be about
            equal. NaN without a pair; the standard error is NaN for a single batch.
        """
        purities = jnp.where(self.weight == 0, jnp.nan, self.purities)
        slopes = jnp.stack(jax.jacfwd(interplay_of_purities)(purities))
        covariance = self.scatter / self.weight / (self.batches - 1)
        # One batch is one up to rounding.
        covariance = jnp.where(self.batches < 1.0 + 1e-4, jnp.nan, covariance)
        variance = jnp.sum(matmul(slopes, covariance) * slopes, axis=1)
        errors = Interplay(*safe_sqrt(jnp.maximum(variance, 0.0)))
        return DebiasedInterplay(*interplay_of_purities(purities), errors)


def merged(states: PairMoments) -> PairMoments:
    """One state of several, which lie along the first axis."""
    whole = jnp.sum(states.weight)
    # Increments to the mean of the first, so that equal batches leave it as it is.
    share = states.weight / jnp.where(whole == 0, 1.0, whole)
    mean = states.purities[0] + matmul(share, states.purities - states.purities[:1])
    mean = jnp.where(whole == 0, 0.0, mean)
    apart = states.purities - mean[None, :]
    scatter = matmul((states.weight[:, None] * apart).T, apart)
    batches = _over(1.0, jnp.sum(_over(jnp.square(share), states.batches)))
    return PairMoments(whole, batches, mean, scatter + jnp.sum(states.scatter, axis=0))


def _over(part: Array | float, whole: Array) -> Array:
    """The quotient, and 0 where there is nothing to divide by."""
    return jnp.where(whole == 0, 0.0, part / jnp.where(whole == 0, 1.0, whole))
