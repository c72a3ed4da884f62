"""Plots of the metrics on Matplotlib axes (`pip install "mirjax[plot]"`).

Each function draws on `ax`, or on new axes if none are given, and returns the axes. Nothing is
shown or saved, and no global state of Matplotlib is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mirjax._batch.entropy import effective_rank
from mirjax._batch.gram import normalize_rows
from mirjax._checks import ArrayLike, as_float
from mirjax._dataset.bias import BatchBias

Axes = Any
"""`matplotlib.axes.Axes`."""


def curve(
    x: Sequence[Any],
    mean: Sequence[float],
    spread: Sequence[float] | None = None,
    /,
    *,
    label: str | None = None,
    colour: str | None = None,
    style: str = "-",
    marker: str = "",
    ax: Axes = None,
) -> Axes:
    """A line over x with the band `mean ± spread`.

    Args:
        x: `[k]` numbers or names.
        mean: `[k]`, for instance the mean over seeds.
        spread: `[k]`, for instance the standard deviation over seeds. Without it no band is drawn.
        label: Text in the legend.
        colour: Matplotlib colour; by default the next one of the axes.
        style: Matplotlib style of the line.
        marker: Matplotlib marker.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> from mirjax import plot
        >>> ax = plot.curve([0, 100, 200], [0.1, 0.3, 0.4], [0.01, 0.02, 0.01], label="MIR")
        >>> len(ax.lines), len(ax.collections)
        (1, 1)
    """
    ax = _axes(ax)
    _same_length("mean", mean, x)
    (line,) = ax.plot(
        x, mean, label=label, color=colour, linestyle=style, marker=marker, markersize=3
    )
    if spread is not None:
        _same_length("spread", spread, x)
        centre, width = np.asarray(mean, float), np.asarray(spread, float)
        colour = line.get_color()
        ax.fill_between(x, centre - width, centre + width, color=colour, alpha=0.2, linewidth=0)
    return ax


def levels(
    values: Mapping[str, float], /, *, colour: str = "black", style: str = ":", ax: Axes = None
) -> Axes:
    """Horizontal lines, for instance at the values that metrics reach at neural collapse.

    Args:
        values: Maps the name of each line in the legend to its height.
        colour: Matplotlib colour.
        style: Matplotlib style of the lines.
        ax: Axes to draw on.

    Returns:
        The axes.

    Example:
        >>> import mirjax
        >>> from mirjax import plot
        >>> ax = plot.curve([0, 1], [0.3, 0.6], label="MIR")
        >>> ax = plot.levels({"at collapse": mirjax.theory.collapsed_mir(10)}, ax=ax)
        >>> [text.get_text() for text in ax.legend().get_texts()]
        ['MIR', 'at collapse: 0.952']
    """
    ax = _axes(ax)
    for name, value in values.items():
        label = f"{name}: {float(value):.3f}"
        ax.axhline(float(value), color=colour, linestyle=style, linewidth=1, label=label)
    return ax


def spectrum(
    features: Float[ArrayLike, "n d"],
    /,
    *,
    label: str | None = None,
    colour: str | None = None,
    ax: Axes = None,
) -> Axes:
    r"""The eigenvalues of `G(features) / n`, largest first, whose entropy is `feature_entropy`.

    Both axes are logarithmic. Eigenvalues below `max(n, d) · eps` of the largest are rounding
    errors and are not drawn. The legend shows the effective rank.

    Args:
        features: `[n, d]`, one sample per row.
        label: Text in the legend, before the effective rank.
        colour: Matplotlib colour.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: as in `feature_entropy`.

    Example:
        >>> import jax
        >>> from mirjax import plot
        >>> ax = plot.spectrum(jax.random.normal(jax.random.key(0), (200, 16)), label="noise")
        >>> print(ax.lines[0].get_label(), len(ax.lines[0].get_xdata()))
        noise, effective rank 15.5 16
    """
    features = as_float(features, "features", axes="n d")
    # Squared singular values of the rows: small eigenvalues are lost in a Gram matrix.
    rows = np.asarray(normalize_rows(features), np.float64) / np.sqrt(len(features))
    values = np.square(np.linalg.svd(rows, compute_uv=False))
    kept = values > max(rows.shape) * jnp.finfo(features.dtype).eps * values.max(initial=0.0)
    ax = _axes(ax)
    rank = f"effective rank {float(effective_rank(features)):.1f}"
    name = rank if label is None else f"{label}, {rank}"
    ax.loglog(np.arange(1, 1 + kept.sum()), values[kept], label=name, color=colour)
    ax.set_xlabel("number")
    ax.set_ylabel("eigenvalue")
    return ax


def path(
    fractions: Sequence[float],
    mean: Sequence[float],
    spread: Sequence[float] | None = None,
    /,
    *,
    label: str | None = None,
    colour: str | None = None,
    style: str = "-",
    marker: str = "",
    ax: Axes = None,
) -> Axes:
    """A metric along the line between two networks, with the chord between its end points.

    A loss above its chord, or an accuracy below it, shows a barrier.

    Args:
        fractions: `[k]`, ascending, from one network (0) to the other (1).
        mean: `[k]`, as in `curve`.
        spread: `[k]`, as in `curve`.
        label: Text in the legend.
        colour: Matplotlib colour.
        style: Matplotlib style of the line; the chord is dotted.
        marker: Matplotlib marker.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: as in `curve`.

    Example:
        >>> from mirjax import plot
        >>> ax = plot.path([0.0, 0.5, 1.0], [0.4, 1.3, 0.6], label="loss")
        >>> ax.lines[1].get_ydata().tolist()
        [0.4, 0.6]
    """
    look = {"colour": colour, "style": style, "marker": marker}
    ax = curve(fractions, mean, spread, label=label, **look, ax=ax)
    ends = [fractions[0], fractions[-1]], [mean[0], mean[-1]]
    ax.plot(*ends, color=ax.lines[-1].get_color(), linestyle=":", linewidth=1)
    return ax


def batch_bias(
    bias: BatchBias,
    /,
    *,
    metric: str = "mir",
    kind: Literal["plain", "adjusted", "debiased"] = "plain",
    label: str = "",
    colour: str | None = None,
    ax: Axes = None,
) -> Axes:
    """A metric over batch size, mean ± standard deviation, with a line at the value of the set.

    Args:
        bias: Result of `mirjax.batch_bias`.
        metric: Name of a field of `Interplay`.
        kind: `"plain"`, as `interplay` gives it; `"adjusted"` for chance (of MIR alone, beside the
            plain value of the set); or `"debiased"`, of order 2.
        label: Text in the legend, before "batches" and "whole set".
        colour: Matplotlib colour.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: the kind is unknown, or an adjusted metric is not MIR.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> from mirjax import plot
        >>> head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(128) % 4
        >>> features = head[labels] + jax.random.normal(jax.random.key(0), (128, 8))
        >>> ax = plot.batch_bias(mirjax.batch_bias(features, head, labels, batch_sizes=(16, 64)))
        >>> ax.get_xscale()
        'log'
    """
    match kind:
        case "plain":
            mean, spread, whole = (getattr(x, metric) for x in (bias.mean, bias.spread, bias.whole))
        case "debiased":
            parts = bias.debiased, bias.debiased_spread, bias.whole_debiased
            mean, spread, whole = (getattr(part, metric) for part in parts)
        case "adjusted" if metric == "mir":
            mean, spread, whole = bias.adjusted_mir, bias.adjusted_spread, bias.whole.mir
        case _:
            raise ValueError(
                "kind must be 'plain', 'debiased' or, of the metric 'mir', 'adjusted', got "
                f"{kind!r} of {metric!r}."
            )
    ax, prefix = _axes(ax), f"{label}, " if label else ""
    bars = ax.errorbar(
        np.asarray(bias.batch_sizes),
        np.asarray(mean),
        np.asarray(spread),
        color=colour,
        marker="o",
        markersize=3,
        capsize=2,
        label=f"{prefix}batches",
    )
    levels(
        {f"{prefix}whole set": float(whole)}, colour=bars.lines[0].get_color(), style="--", ax=ax
    )
    ax.set_xscale("log", base=2)
    ax.set_xlabel("batch size")
    return ax


def _axes(ax: Axes) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "mirjax.plot needs Matplotlib: pip install 'mirjax[plot]'."
        raise ModuleNotFoundError(message) from None
    # Not pyplot, which would keep the figure alive and choose a backend.
    return Figure(layout="constrained").subplots()


def _same_length(name: str, values: Sequence[float], x: Sequence[Any]) -> None:
    if len(values) != len(x):
        raise ValueError(
            f"{name} has {len(values)} values for {len(x)} of x: pass one value for each x."
        )
