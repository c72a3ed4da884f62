"""A metric over all layers of a network at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mirjax._checks import ArrayLike, as_mask


def layerwise(metric: Callable[..., Any], /, *, tokens: bool = False) -> Callable[..., Any]:
    """Turns `metric(features, *shared)` into a function of a pytree of activations.

    Layers of equal shape and dtype are stacked and evaluated in one `vmap`, so fifty layers of
    three widths cost three batched calls, and one compilation under `jax.jit`.

    Args:
        metric: a function of features `[n, d]` and of further arguments that all layers share (the
            labels, the rows of the head); it returns an array or a pytree of arrays. Examples are
            `effective_rank`, and `feature_interplay` with `head[labels]`, whose width may differ.
        tokens: whether the leaves are hidden states `[..., tokens, width]`: the tokens are then
            the samples, and the axes before them batch axes of the metric.

    Returns:
        `(activations, *shared, mask=None) -> pytree` with the structure of `activations` and the
        metric of each layer as its leaf. Leaves of the activations must be `[n, d]`, or with
        `tokens` have the shape of the mask and a width: others raise `ValueError`, since pooling
        and flattening of `[n, height, width, channels]` give different metrics. The mask
        `[..., tokens]` (or `[n]`), True or 1 for what counts, goes to the metric as `weights`,
        which it must have.

    Differentiable like `metric`; gradients reach all layers. Memory: a copy of the activations.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> activations = {"stem": jnp.eye(4), "blocks": [jnp.ones((4, 6)), jnp.eye(4, 6)]}
        >>> ranks = mirjax.layerwise(mirjax.effective_rank)(activations)
        >>> print(f"{ranks['stem']:.2f} {ranks['blocks'][0]:.2f} {ranks['blocks'][1]:.2f}")
        4.00 1.00 4.00
        >>> hidden, mask = {"last": jnp.stack([jnp.eye(4)] * 2)}, jnp.array([[1] * 4, [1, 1, 0, 0]])
        >>> mirjax.layerwise(mirjax.effective_rank, tokens=True)(hidden, mask=mask)["last"].round(3)
        Array([4., 2.], dtype=float32)
    """

    def over_layers(activations: Any, /, *shared: ArrayLike, mask: ArrayLike | None = None) -> Any:
        paths, structure = jax.tree_util.tree_flatten_with_path(activations)
        # The positions of the layers of each shape and dtype.
        groups: dict[Any, list[int]] = {}
        for position, (path, leaf) in enumerate(paths):
            _check_leaf(jax.tree_util.keystr(path), jnp.shape(leaf), tokens, mask)
            groups.setdefault((jnp.shape(leaf), jnp.result_type(leaf)), []).append(position)
        options = {} if mask is None else {"weights": as_mask(mask)}
        results: list[Any] = [None] * len(paths)
        for members in groups.values():
            stacked = jnp.stack([paths[position][1] for position in members])
            values = jax.vmap(lambda features: metric(features, *shared, **options))(stacked)
            # Back to the place of each layer in the tree.
            for row, position in enumerate(members):
                results[position] = jax.tree.map(lambda value, i=row: value[i], values)
        return jax.tree.unflatten(structure, results)

    return over_layers


def _check_leaf(name: str, shape: tuple[int, ...], tokens: bool, mask: ArrayLike | None) -> None:
    if not tokens and len(shape) != 2:
        raise ValueError(
            f"activations{name} must be [n, d], got {shape}. Pool or reshape it first; for hidden "
            "states [..., tokens, width] of a transformer use layerwise(metric, tokens=True)."
        )
    if tokens and len(shape) < 2:
        raise ValueError(f"activations{name} must be [..., tokens, width], got {shape}.")
    if mask is not None and shape[:-1] != jnp.shape(mask):
        raise ValueError(
            f"activations{name} of shape {shape} and mask of shape {jnp.shape(mask)} disagree: "
            f"expected a mask of shape {shape[:-1]}."
        )
