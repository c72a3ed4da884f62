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
from mirjax._checks import ArrayLike, as_float, decay_range
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


def spectra(
    eigenvalues: Mapping[str, Float[ArrayLike, " k"]],
    /,
    *,
    first: int = 6,
    last: int = 100,
    ax: Axes = None,
) -> Axes:
    r"""Eigenvalues of covariances, each with the line whose slope is `mirjax.spectra.alpha_req`.

    Both axes are logarithmic, and each spectrum is divided by its sum. Eigenvalues that are 0 up to
    rounding are not drawn. The legend shows α; without two eigenvalues in the range there is no
    line.

    Args:
        eigenvalues: maps a name to `[k]`, largest first, as `mirjax.spectra.eigenvalues` gives
            them, or `Spectra.eigenvalues` of moments.
        first: the number of the first eigenvalue that is fitted, from 1.
        last: that of the last.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: the range is empty, or a spectrum is not a vector.

    Example:
        >>> import jax.numpy as jnp
        >>> from mirjax import plot
        >>> ax = plot.spectra({"a power law": 1 / jnp.arange(1.0, 65.0) ** 1.5})
        >>> ax.lines[0].get_label()
        'a power law, α 1.50'
    """
    decay_range(first, last)
    ax = _axes(ax)
    for name, values in eigenvalues.items():
        if np.ndim(values) != 1:
            raise ValueError(f"eigenvalues of {name} must be [k], got shape {np.shape(values)}.")
        rounding = float(jnp.finfo(jnp.asarray(values).dtype).eps)
        drawn = np.asarray(values).astype(np.float64)
        drawn = drawn / (drawn.sum() or 1.0)
        # The same as in `alpha_req`, whose singular values are the roots.
        kept = drawn > (8 * rounding) ** 2 * len(drawn) * drawn.max(initial=0.0)
        number = np.arange(1, 1 + len(drawn))
        (line,) = ax.loglog(number[kept], drawn[kept], marker=".", markersize=3)
        in_range = kept & (number >= first) & (number <= last)
        label = name
        if in_range.sum() >= 2:
            # The weights are squared.
            x, y = np.log(number[in_range]), np.log(drawn[in_range])
            slope, height = np.polyfit(x, y, 1, w=number[in_range] ** -0.5)
            fitted = np.exp(height + slope * x)
            ax.loglog(np.exp(x), fitted, color=line.get_color(), linestyle="--", linewidth=1)
            label = f"{name}, α {-slope:.2f}"
        line.set_label(label)
    ax.set_xlabel("number")
    ax.set_ylabel("share of the variance")
    return ax


def layers(
    measures: Mapping[str, Mapping[str, Sequence[float]]],
    /,
    *,
    names: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """All measures of networks over their layers, a panel for each measure.

    Args:
        measures: maps a name in the legend, such as that of a network, to measures: from the name
            of each to a value for each layer. A measure with one value fewer is one between
            successive layers, and is drawn between them.
        names: of the layers; numbers from 0 by default.
        axes: as many axes to draw on as there are measures; by default those of a new figure.

    Returns:
        The axes, one for each measure, in the order in which they first come.

    Raises:
        ValueError: a measure has another number of values, or there are too few axes.

    Example:
        >>> from mirjax import plot
        >>> axes = plot.layers({"trained": {"rank": [3.0, 5.0, 4.0], "MIR": [0.8, 0.6]}})
        >>> [ax.get_title() for ax in axes], axes[1].lines[0].get_xdata()
        (['rank', 'MIR'], array([0.5, 1.5]))
    """
    panels = list(dict.fromkeys(m for of_one in measures.values() for m in of_one))
    depth = max((len(v) for of_one in measures.values() for v in of_one.values()), default=0)
    depth = depth if names is None else len(names)
    if axes is None:
        axes = _grid(len(panels))
    if len(axes) < len(panels):
        raise ValueError(f"axes: {len(axes)} given for {len(panels)} measures; pass one for each.")
    for ax, panel in zip(axes, panels, strict=False):
        for number, (name, of_one) in enumerate(measures.items()):
            if panel not in of_one:
                continue
            values = [float(value) for value in of_one[panel]]
            if len(values) not in (depth, depth - 1):
                raise ValueError(
                    f"{panel} of {name} has {len(values)} values for {depth} layers: pass one for "
                    "each layer, or for each but the last."
                )
            between = 0.5 * (depth - len(values))
            curve(
                [place + between for place in range(len(values))],
                values,
                label=name,
                colour=f"C{number}",
                marker="o",
                ax=ax,
            )
        ax.set_title(panel)
        ax.set_xlabel("layer")
        if names is not None:
            ax.set_xticks(range(depth), names)
        if len(measures) > 1:
            ax.legend()
    return axes[: len(panels)]


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
    # A line without points has no chord.
    if len(fractions):
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
    return _new_figure().subplots() if ax is None else ax


def _grid(panels: int) -> Sequence[Axes]:
    columns = min(3, max(1, panels))
    rows = max(1, -(-panels // columns))
    figure = _new_figure(figsize=(4.2 * columns, 3.0 * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[panels:]:
        ax.remove()
    return axes[:panels]


def _new_figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "mirjax.plot needs Matplotlib: pip install 'mirjax[plot]'."
        raise ModuleNotFoundError(message) from None
    # Not pyplot, which would keep the figure alive and choose a backend.
    return Figure(layout="constrained", **options)


def _same_length(name: str, values: Sequence[float], x: Sequence[Any]) -> None:
    if len(values) != len(x):
        raise ValueError(
            f"{name} has {len(values)} values for {len(x)} of x: pass one value for each x."
        )
