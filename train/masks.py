"""Masks of unstructured pruning: which weights of a network stay."""

from typing import Any, Literal

import jax
import numpy as np

Method = Literal["magnitude", "random"]


def sparse_masks(
    params: Any, sparsity: float, method: Method = "magnitude", *, seed: int = 0
) -> Any:
    """Masks that drop a share of all weights of a network, counted over all its kernels together.

    Args:
        params: a pytree of arrays. Kernels (two axes or more) are pruned, the head's among them; biases
            and batch norm stay whole.
        sparsity: the share of weights to drop, in [0, 1]; `round(sparsity · weights)` are dropped.
        method: `"magnitude"` drops the smallest (the first of equal ones), `"random"` any.
        seed: of the random choice.

    Returns:
        Booleans of the structure of `params`; False where a weight is dropped.

    Raises:
        ValueError: the sparsity is not in [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}.")
    leaves, structure = jax.tree.flatten(params)
    sizes = [np.size(leaf) if np.ndim(leaf) > 1 else 0 for leaf in leaves]
    if method == "random":
        scores = np.random.default_rng(seed).random(sum(sizes))
    else:
        scores = np.abs(np.concatenate([np.ravel(x) for x in leaves if np.ndim(x) > 1]))
    keep = np.ones(len(scores), bool)
    keep[np.argsort(scores, kind="stable")[: round(sparsity * len(scores))]] = False
    parts = iter(np.split(keep, np.cumsum([size for size in sizes if size])[:-1]))
    masks = [
        next(parts).reshape(np.shape(x)) if np.ndim(x) > 1 else np.ones(np.shape(x), bool)
        for x in leaves
    ]
    return jax.tree.unflatten(structure, masks)


def sparsity_of(params: Any) -> float:
    """The share of zeros among the weights of all kernels."""
    kernels = [np.asarray(x) for x in jax.tree.leaves(params) if np.ndim(x) > 1]
    return float(sum(np.sum(x == 0) for x in kernels) / sum(x.size for x in kernels))
