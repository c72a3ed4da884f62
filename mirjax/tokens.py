"""Metrics of a transformer's hidden states, `[..., prompts, tokens, width]`, under a token mask.

The leading axes are usually the layers, so that one call measures all of them. The mask `[prompts,
tokens]` says which tokens count, at whichever end the padding is; what padding holds does not
matter, NaN included. Tokens that do not count drop out of their order too: the token before and the
token after are neighbours. Capture the hidden states with whatever runs the network.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mirjax._batch.debiased import debiased_feature_interplay
from mirjax._batch.entropy import feature_entropy
from mirjax._batch.gram import normalize_rows, safe_sqrt
from mirjax._batch.interplay import feature_interplay
from mirjax._batch.kernels import Interplay
from mirjax._checks import ArrayLike, as_float, as_mask, entropy_order
from mirjax._mesh import automatic

Mask = Bool[ArrayLike, "*prompts tokens"] | Int[ArrayLike, "*prompts tokens"]
Normaliser = Literal["log_tokens", "log_width", "log_rank", "log_tokens_log_width", "tokens"]
"""What the entropy of a prompt is divided by, with T the number of its tokens that count."""
Pooling = Literal["mean", "last"]
"""How the tokens of a prompt become one row: their mean, or the last one that counts."""


class TokenMeasures(NamedTuple):
    """Measures of hidden states, an entry for each layer; means over prompts.

    Attributes:
        prompt_entropy: mean over prompts of the entropy of their tokens, in nats.
        effective_rank: mean over prompts of its exponential.
        curvature: mean over prompts with three tokens or more of their mean angle, in radians.
        dataset_entropy: entropy of the pooled prompts, in nats.
        between: `Interplay` of the pooled prompts in each layer and the next, one entry fewer.
        debiased: the same without the bias of the number of prompts, at order 2.
        standard_error: the standard errors of `debiased`.
    """

    prompt_entropy: Float[Array, " layers"]
    effective_rank: Float[Array, " layers"]
    curvature: Float[Array, " layers"]
    dataset_entropy: Float[Array, " layers"]
    between: Interplay
    debiased: Interplay
    standard_error: Interplay


def pool(
    hidden: Float[ArrayLike, "*layers prompts tokens width"],
    mask: Mask | None = None,
    /,
    *,
    pooling: Pooling = "mean",
) -> Float[Array, "*layers prompts width"]:
    """One row for each prompt, from the tokens that count.

    Args:
        hidden: `[..., prompts, tokens, width]`.
        mask: `[prompts, tokens]`, True or 1 for a token that counts; all count if not given.
        pooling: `"mean"` of the tokens, or the `"last"` one.

    Returns:
        `[..., prompts, width]`; zero, which all metrics drop, for a prompt without any token.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or the pooling is unknown.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> hidden = jnp.arange(6.0).reshape(1, 3, 2)
        >>> mask = jnp.array([[True, True, False]])
        >>> mirjax.tokens.pool(hidden, mask), mirjax.tokens.pool(hidden, mask, pooling="last")
        (Array([[1., 2.]], dtype=float32), Array([[2., 3.]], dtype=float32))
    """
    hidden, counts = _checked(hidden, mask)
    _known("pooling", pooling, Pooling)
    return automatic(_pooled)(hidden, counts, pooling)


def prompt_entropy(
    hidden: Float[ArrayLike, "*layers prompts tokens width"],
    mask: Mask | None = None,
    /,
    *,
    order: float | int = 1,
    normaliser: Normaliser | None = None,
) -> Float[Array, "*layers prompts"]:
    r"""Entropy of the tokens of each prompt: `feature_entropy` with the tokens as samples.

    Args:
        hidden: `[..., prompts, tokens, width]`.
        mask: `[prompts, tokens]`, True or 1 for a token that counts; all count if not given.
        order: α of the Rényi entropy, a positive Python number or `jnp.inf`.
        normaliser: what to divide by, as published code does in several ways; with T tokens that
            count and d the width: `"log_tokens"` log T, `"log_width"` log d, `"log_rank"`
            log min(T, d), `"log_tokens_log_width"` their product, `"tokens"` T. None: nats.

    Returns:
        `[..., prompts]`, without normaliser from 0 to `log min(T, d)`. 0 for a prompt without
        tokens, and wherever the normaliser is 0.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or the order or the normaliser is not
            one.

    Cost: a decomposition of side `min(tokens, width)` for each prompt. Differentiable as
    `feature_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> hidden = jnp.stack([jnp.eye(4), jnp.ones((4, 4))])
        >>> mirjax.tokens.prompt_entropy(hidden, normaliser="log_tokens").round(4)
        Array([1., 0.], dtype=float32)

    Source: Skean et al. 2025 (arXiv 2502.02013), prompt entropy.
    """
    hidden, counts = _checked(hidden, mask)
    entropy_order(order)
    if normaliser is not None:
        _known("normaliser", normaliser, Normaliser)
    entropy = feature_entropy(hidden, weights=counts, order=order)
    if normaliser is None:
        return entropy
    divisor = _normaliser(normaliser, jnp.sum(counts, axis=-1), hidden.shape[-1])
    # Not plain 0, so that NaN shows.
    return jnp.where(divisor > 0, entropy / jnp.where(divisor > 0, divisor, 1.0), 0 * entropy)


def dataset_entropy(
    hidden: Float[ArrayLike, "*layers prompts tokens width"],
    mask: Mask | None = None,
    /,
    *,
    pooling: Pooling = "mean",
    order: float | int = 1,
) -> Float[Array, "*layers"]:
    r"""Entropy of the pooled prompts: `feature_entropy` with the prompts as samples.

    Args:
        hidden: `[..., prompts, tokens, width]`.
        mask: `[prompts, tokens]`, True or 1 for a token that counts; all count if not given.
        pooling: the `"mean"` of the tokens of a prompt, or the `"last"` one.
        order: α of the Rényi entropy, a positive Python number or `jnp.inf`.

    Returns:
        `[...]` in nats, from 0 to `log min(prompts, width)`; divide it yourself for a normaliser.
        It rises with the number of prompts: compare values of the same number.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or an option is unknown.

    Cost and differentiability: as `feature_entropy`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> hidden = jnp.eye(3)[:, None, :] * jnp.ones((3, 5, 1))
        >>> print(f"{mirjax.tokens.dataset_entropy(hidden):.4f}")
        1.0986

    Source: Skean et al. 2025 (arXiv 2502.02013), dataset entropy.
    """
    return feature_entropy(pool(hidden, mask, pooling=pooling), order=order)


def curvature(
    hidden: Float[ArrayLike, "*layers prompts tokens width"],
    mask: Mask | None = None,
    /,
) -> Float[Array, "*layers prompts"]:
    r"""Mean angle between successive steps from token to token, in radians.

    `mean_k ∠(z_{k+1} - z_k, z_{k+2} - z_{k+1})` over the tokens that count, in their order.

    Args:
        hidden: `[..., prompts, tokens, width]`.
        mask: `[prompts, tokens]`, True or 1 for a token that counts; all count if not given.

    Returns:
        `[..., prompts]`, from 0 (a straight line) to π (back and forth). A step of length 0 has no
        direction, and the angles at it are left out; NaN where none is left, as with fewer than
        three tokens.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    Cost: `O(tokens · width)` for each prompt. Differentiable, with derivative 0 at angles of 0 and
    π.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> corner = jnp.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
        >>> mirjax.tokens.curvature(corner).round(4)
        Array([1.5708], dtype=float32)

    Source: Hosseini & Fedorenko 2023 (arXiv 2311.04930); Skean et al. 2025 (arXiv 2502.02013).
    """
    hidden, counts = _checked(hidden, mask)
    return automatic(_curvature)(hidden, counts)


def measure(
    hidden: Float[ArrayLike, "layers prompts tokens width"],
    mask: Mask | None = None,
    /,
    *,
    pooling: Pooling = "mean",
    normaliser: Normaliser | None = None,
    groups: Int[ArrayLike, " prompts"] | None = None,
) -> TokenMeasures:
    """All of them for all layers, and MIR and HDR from each layer to the next.

    Args:
        hidden: `[layers, prompts, tokens, width]`, at least two layers; the embeddings may be the
            first. `jnp.stack` what the network gives, if it is a list.
        mask: `[prompts, tokens]`, True or 1 for a token that counts; all count if not given.
        pooling: the `"mean"` of the tokens of a prompt, or the `"last"` one.
        normaliser: of `prompt_entropy`.
        groups: integers `[prompts]`; pairs of prompts within a group, such as several of one
            document, are left out of the debiased values.

    Returns:
        `TokenMeasures`. MIR of few prompts is mostly their number, as that of any small batch; the
        debiased values are not.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or an option is unknown.

    Cost: a decomposition of side `min(tokens, width)` for each prompt and layer, and three of side
    `min(prompts, width)` or `prompts` for each layer. Compile it: what its parts share is then
    computed once. Differentiable.

    Example:
        >>> import jax, mirjax
        >>> hidden = jax.random.normal(jax.random.key(0), (3, 40, 9, 16))
        >>> found = jax.jit(mirjax.tokens.measure)(hidden)
        >>> print(f"{found.between.mir[0]:.2f} {found.debiased.mir[0]:.2f}")
        0.60 0.01

    Source: Skean et al. 2025 (arXiv 2502.02013); Song et al. 2024 (arXiv 2406.03999) for MIR and
    HDR.
    """
    given = as_float(hidden, "hidden", axes="layers prompts tokens width")
    if given.ndim != 4 or given.shape[0] < 2:
        raise ValueError(
            "hidden must be [layers, prompts, tokens, width] with at least two layers, got "
            f"{given.shape}. Stack the layers: jnp.stack(hidden_states)."
        )
    hidden, counts = _checked(given, mask)
    entropies = prompt_entropy(given, mask)
    divided = prompt_entropy(given, mask, normaliser=normaliser) if normaliser else entropies
    angles = curvature(given, mask)
    has_tokens = jnp.any(counts > 0, axis=-1)
    pooled = pool(given, mask, pooling=pooling)
    pairs = pooled[:-1], pooled[1:]
    if groups is not None:
        if jnp.shape(groups) != given.shape[1:2]:
            raise ValueError(
                f"groups must be [prompts] = {given.shape[1:2]}, got {jnp.shape(groups)}."
            )
        groups = jnp.broadcast_to(jnp.asarray(groups), pairs[0].shape[:-1])
    debiased = debiased_feature_interplay(*pairs, groups=groups)
    assert debiased.standard_error is not None
    return TokenMeasures(
        prompt_entropy=_mean(divided, has_tokens),
        effective_rank=_mean(jnp.exp(entropies), has_tokens),
        curvature=_mean(angles, _has_angle(hidden, counts)),
        dataset_entropy=feature_entropy(pooled),
        between=feature_interplay(*pairs),
        debiased=debiased.interplay,
        standard_error=debiased.standard_error,
    )


def _checked(hidden: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Hidden states with zeros in place of padding, and 1 or 0 for each token of each layer."""
    hidden = as_float(hidden, "hidden", axes="prompts tokens width")
    if mask is None:
        return hidden, jnp.ones(hidden.shape[:-1], hidden.dtype)
    mask = as_mask(mask)
    if mask.shape != hidden.shape[-3:-1]:
        raise ValueError(
            f"hidden of shape {hidden.shape} and mask of shape {mask.shape} disagree: mask must be "
            f"[prompts, tokens] = {hidden.shape[-3:-1]}."
        )
    counts = jnp.broadcast_to(mask, hidden.shape[:-1])
    return jnp.where(counts[..., None], hidden, 0.0), counts.astype(hidden.dtype)


def _known(name: str, value: object, literal: Any) -> None:
    known = get_args(literal)
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(map(repr, known))}, got {value!r}.")


def _pooled(hidden: Array, counts: Array, pooling: Pooling) -> Array:
    if pooling == "mean":
        number = jnp.sum(counts, axis=-1, keepdims=True)
        share = counts / jnp.where(number == 0, 1.0, number)
        return jnp.sum(share[..., None] * hidden, axis=-2)
    # Places ascend, so that the largest place of a token that counts is the last one.
    places = jnp.broadcast_to(jnp.arange(counts.shape[-1]), counts.shape)
    last = jnp.max(jnp.where(counts > 0, places, 0), axis=-1)
    return jnp.take_along_axis(hidden, last[..., None, None], axis=-2)[..., 0, :]


def _normaliser(name: Normaliser, tokens: Array, width: int) -> Array:
    logs = jnp.log(jnp.maximum(tokens, 1.0)), jnp.log(jnp.full_like(tokens, width))
    match name:
        case "log_tokens":
            return logs[0]
        case "log_width":
            return logs[1]
        case "log_rank":
            return jnp.minimum(*logs)
        case "log_tokens_log_width":
            return logs[0] * logs[1]
        case "tokens":
            return tokens


def _angles(hidden: Array, counts: Array) -> tuple[Array, Array]:
    """The angles between successive steps, and which of them there are."""
    # The tokens that count come first, in their order.
    order = jnp.argsort(counts == 0, axis=-1, stable=True)
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=-2)
    counted = jnp.take_along_axis(counts, order, axis=-1) > 0
    steps = jnp.where(counted[..., 1:, None], hidden[..., 1:, :] - hidden[..., :-1, :], 0.0)
    unit = normalize_rows(steps)
    there = jnp.any(steps != 0, axis=-1)
    there = there[..., 1:] & there[..., :-1]
    # Of two unit vectors; accurate at small angles, where an arc cosine is not.
    apart = safe_sqrt(jnp.sum(jnp.square(unit[..., 1:, :] - unit[..., :-1, :]), axis=-1))
    along = safe_sqrt(jnp.sum(jnp.square(unit[..., 1:, :] + unit[..., :-1, :]), axis=-1))
    # Where there is no angle both are 0, and the derivative would be NaN.
    return 2 * jnp.arctan2(jnp.where(there, apart, 0.0), jnp.where(there, along, 1.0)), there


def _curvature(hidden: Array, counts: Array) -> Array:
    if hidden.shape[-2] < 3:
        return jnp.full(hidden.shape[:-2], jnp.nan, hidden.dtype)
    angles, there = _angles(hidden, counts)
    number = jnp.sum(there, axis=-1).astype(angles.dtype)
    mean = jnp.sum(jnp.where(there, angles, 0.0), axis=-1) / jnp.where(number == 0, 1.0, number)
    # A token that counts and holds NaN shows, though it has no direction.
    broken = jnp.any(jnp.isnan(hidden), axis=(-2, -1))
    return jnp.where((number == 0) | broken, jnp.nan, mean)


def _has_angle(hidden: Array, counts: Array) -> Array:
    if hidden.shape[-2] < 3:
        return jnp.zeros(hidden.shape[:-2], bool)
    return jnp.any(_angles(hidden, counts)[1], axis=-1)


def _mean(values: Array, there: Array) -> Array:
    """The mean over prompts of those that are there; NaN if none is."""
    number = jnp.sum(there, axis=-1).astype(values.dtype)
    return jnp.sum(jnp.where(there, values, 0.0), axis=-1) / number
