"""Jitted functions that several test files share, since compiling takes most of the time."""

import jax
import jax.numpy as jnp

import mirjax

interplay = jax.jit(mirjax.interplay)
class_interplay = jax.jit(mirjax.class_interplay)
update = jax.jit(mirjax.ClassMoments.update, static_argnames=("shards", "precision"))
update_pairs = jax.jit(mirjax.PairMoments.update)
collapse_of_moments = jax.jit(mirjax.ClassMoments.collapse)
spectra_of_moments = jax.jit(mirjax.ClassMoments.spectra, static_argnames="per_class")
neural_collapse = jax.jit(mirjax.neural_collapse, static_argnames=("num_classes", "precision"))


def mixed_entropies(features, head, labels, weights, mix):
    """One scalar out of which `mix` picks any of the three entropies: one gradient to compile."""
    result = mirjax.interplay(features, head, labels, weights=weights)
    return jnp.dot(mix, jnp.stack(result[:3]))


mixed_gradient = jax.jit(jax.grad(mixed_entropies, argnums=(0, 1, 3)))
