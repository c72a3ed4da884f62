"""Measures of a representation's spectrum that people ask for by name, each as published.

All take features `[..., n, d]`, one sample per row, and `weights`, of which 0 drops a sample
exactly. They differ in what they take the spectrum of: `σ` are the singular values of the features
as they are, `λ` the eigenvalues of their covariance. `measure` gives all of them, and
`ClassMoments.spectra` gives them for a set that is seen in batches.

For the samples of each class on its own let the weights broadcast, `features[None]` with
`weights=labels == jnp.arange(num_classes)[:, None]`, or ask `measure` for it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from mirjax._batch.entropy import effective_rank
from mirjax._batch.spectra import (
    Rows,
    debiased_participation_of,
    largest_share_of,
    lidar_of,
    participation_of,
    prepared,
    rankme_of,
    spectrum_of,
)
from mirjax._batch.spectra import Spectra as Spectra
from mirjax._checks import (
    ArrayLike,
    as_float,
    as_labels,
    common_float,
    decay_range,
    ridge,
    same_size,
    sample_weights,
)
from mirjax._mesh import automatic

_ROWS = "(n,d),(n)"


def eigenvalues(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch k"]:
    r"""The eigenvalues `λ` of the covariance of the features, largest first.

    The covariance is `Σ w (z - z̄)(z - z̄)ᵀ / Σw`, divided by the weight and not by one less.

    Args:
        features: `[..., n, d]`, one sample per row.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `[..., k]` with `k = min(n, d)`, in squared units of the features: in float32 infinite or 0
        for features beyond 1e19 or below 1e-19. NaN for NaN in a sample that counts, or a negative
        weight.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    Cost: singular values, `O(n d min(n, d))`. Once differentiable; eigenvalues that are 0 up to
    rounding have derivative 0, and where some coincide, only what treats them alike has the right
    one.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.array([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
        >>> mirjax.spectra.eigenvalues(features).round(4)
        Array([0.5, 0.5], dtype=float32)
    """
    features, weights = _checked(features, weights)

    def single(rows: Array, w: Array) -> Array:
        return spectrum_of(prepared(rows, w, centre=True), 1, 2)[0]

    return automatic(jnp.vectorize(single, signature=f"{_ROWS}->(k)"))(features, weights)


def rankme(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    r"""RankMe: `exp(-Σ p log p)` with `p = σ / Σσ + 1e-7`.

    Of singular values, of rows as they are, not centred. `mirjax.effective_rank` is the same of
    `σ²` of unit rows.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `[...]`, up to the 1e-7 from 1 to `min(n, d)`; 1 where all features are 0.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    What n does to it: with fewer samples than features it is at most n, and it rises with n until n
    is several times d; compare values of the same n. Known against it: it is blind to what the
    directions mean, so that noise raises it, and a large common mean lowers it.

    Cost: singular values, `O(n d min(n, d))`. Once differentiable, at any rank.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.spectra.rankme(jnp.eye(6, 4)):.3f}")
        4.000

    Source: Garrido et al. 2023 (arXiv 2210.02885), equation 1.
    """
    return _over_batches(rankme_of, features, weights, centre=False)


def stable_rank(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The stable rank: `Σσ² / σ_1²`, the squared Frobenius norm over the squared spectral norm.

    Of rows as they are, not centred.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `[...]`, from 1 to `min(n, d)`; 1 where all features are 0.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    What n does to it: little, once the largest singular value stands out; noise of few samples
    lowers it. Known against it: a common mean, as after a ReLU, is the largest singular value, and
    then it says little else.

    Cost: `O(n d min(n, d))`. Twice differentiable; values that share the largest share the
    derivative.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> print(f"{mirjax.spectra.stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))):.3f}")
        1.500

    Source: Rudelson & Vershynin 2007 (arXiv math/0503442).
    """
    return _over_batches(largest_share_of, features, weights, centre=False)


def nesum(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    r"""NESum: `Σλ / λ_1`, the sum of the eigenvalues of the covariance over the largest.

    Of centred rows; it is the `stable_rank` of `features - mean`.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `[...]`, from 1 (collapse to a line) to `min(n - 1, d)` (white); 1 without any variance.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    What n does to it: noise of few samples raises `λ_1`, and so lowers it. Known against it: it
    looks at one eigenvalue, however all others decay.

    Cost: `O(n d min(n, d))`. Twice differentiable, as `stable_rank`.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> cross = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> print(f"{mirjax.spectra.nesum(cross + 7.0):.3f}")
        1.250

    Source: He & Ozay 2022, "Exploring the gap between collapsed and whitened features in
    self-supervised learning" (ICML).
    """
    return _over_batches(largest_share_of, features, weights, centre=True)


def participation_ratio(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    centre: bool = True,
    debiased: bool = False,
) -> Float[Array, "*batch"]:
    r"""The participation ratio: `(Σλ)² / Σλ²`.

    Of the covariance, so of centred rows that are not normalised. Without bias it is a ratio of two
    unbiased estimates, of `(Σλ)²` and of `Σλ²` of the population: means of products of differences
    over quadruples of different samples.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        centre: whether to subtract the mean; if not, `λ` are the eigenvalues of the second moment.
        debiased: whether to estimate the value of the population that the samples come from.

    Returns:
        `[...]`, from 1 to `min(n, d)`; 1 without any variance. Debiased values scatter and are not
        clipped; they are NaN without any variance, with fewer than four samples (two, if not
        centred), and where so few have nearly all of the weight.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    What n does to it: n samples of a wide, white population have about `n d / (n + d)`; debiased
    there is no such bias but that of a ratio, of the order of its squared standard error. Known
    against it: as every sum of squares it is dominated by the largest eigenvalues.

    Cost: `O(n d min(n, d))`, no decomposition and no n × n matrix where d is smaller. Twice
    differentiable.

    Example:
        >>> import jax, mirjax
        >>> noise = jax.random.normal(jax.random.key(0), (100, 50))
        >>> plain = mirjax.spectra.participation_ratio(noise)
        >>> print(f"{plain:.1f} {mirjax.spectra.participation_ratio(noise, debiased=True):.1f}")
        32.3 48.5

    Source: Gao et al. 2017 (bioRxiv 214262); the unbiased estimate after Chun et al. 2025
    (arXiv 2509.26560).
    """
    estimate = functools.partial(debiased_participation_of, centre=centre)
    function = estimate if debiased else participation_of
    return _over_batches(function, features, weights, centre=centre)


def alpha_req(
    features: Float[ArrayLike, "*batch n d"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    first: int = 6,
    last: int = 100,
) -> Float[Array, "*batch"]:
    r"""α-ReQ: the power of the decay of the spectrum, `λ_k ∝ k^-α` for `first <= k <= last`.

    Minus the slope of the line through `log λ_k` over `log k`, fitted by least squares in which k
    has the weight `1 / k`, as in the published code: each octave then counts about the same. Of the
    covariance, so of centred rows that are not normalised.

    Args:
        features: `[..., n, d]`, one sample per row, of any scale.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        first: the number of the first eigenvalue of the range, from 1.
        last: that of the last; a range that goes beyond the spectrum ends with it.

    Returns:
        `[...]`; 0 for a flat spectrum, and more the faster it decays. Published as best near 1.
        Eigenvalues that are 0 up to rounding are left out; NaN where fewer than two are left.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or the range is empty.

    What n does to it: the sample spectrum decays faster than that of the population, by far where n
    is not many times `last`; compare values of the same n. Known against it: the value depends on
    the range as much as on the network, and few spectra are straight lines: look at them
    (`mirjax.plot.spectra`).

    Cost: singular values, `O(n d min(n, d))`. Once differentiable.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> noise = jax.random.normal(jax.random.key(0), (200, 41))
        >>> basis = jnp.linalg.qr(noise.at[:, 0].set(1.0))[0]
        >>> features = basis[:, 1:] / jnp.arange(1.0, 41.0)[None, :] ** 0.75
        >>> print(f"{mirjax.spectra.alpha_req(features):.3f}")
        1.500

    Source: Agrawal et al. 2022, "α-ReQ: assessing representation quality in self-supervised
    learning by measuring eigenspectrum decay" (NeurIPS).
    """
    decay_range(first, last)

    def single(rows: Rows) -> Array:
        return spectrum_of(rows, first, last)[1]

    return _over_batches(single, features, weights, centre=True)


def lidar(
    features: Float[ArrayLike, "*batch n d"],
    labels: Int[ArrayLike, "*batch n"],
    /,
    *,
    num_classes: int,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    delta: float = 1e-4,
) -> Float[Array, "*batch"]:
    r"""LiDAR: `exp(-Σ p log p)` of `Σ_w^{-1/2} Σ_b Σ_w^{-1/2}`, the rank of linear discriminants.

    `Σ_b` is the covariance of the class means, each class with its share of the samples, `Σ_w` the
    mean covariance within the classes plus `delta` times the identity, and `p` the d eigenvalues
    over their sum, plus 1e-7. The published classes are images, with their augmented views as
    samples; true classes serve as well, and then it measures linear discriminants. Rows as they
    are, centred by class.

    Args:
        features: `[..., n, d]`, one sample per row. Unlike the other measures it depends on their
            scale, through `delta`.
        labels: integers `[..., n]`.
        num_classes: the number of classes (images).
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        delta: what is added to the eigenvalues of `Σ_w`, in squared units of the features.

    Returns:
        `[...]`, from 1 to `min(num_classes - 1, d)`, up to the 1e-7; 1 where all class means
        coincide. NaN for a label outside `[0, num_classes)` of a sample that counts.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, or `delta` is not positive.

    What n does to it: with few samples per class, `Σ_w` comes out too small in some directions, and
    these dominate; the paper takes 50 views of 1,000 images. Known against it: it tells how evenly
    classes are spread, not how far apart they are; and where the samples of each class coincide
    (collapse), `delta` decides.

    Cost: decompositions of side `min(n, d)`; no array of classes by classes, or of d × d where n is
    smaller. Differentiable, in reverse and forward mode, once.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> head, labels = mirjax.theory.simplex_etf(5, 8), jnp.arange(40) % 5
        >>> print(f"{mirjax.spectra.lidar(head[labels], labels, num_classes=5):.3f}")
        4.000

    Source: Thilak et al. 2023 (arXiv 2312.04000), section 4.
    """
    features, weights = _checked(features, weights)
    labels = _labels_of(features, labels, num_classes)
    ridge(delta)

    def single(rows: Array, y: Array, w: Array) -> Array:
        y, w = _valid(y, w, num_classes)
        return lidar_of(prepared(rows, w, centre=True), y, num_classes, delta)

    vectorized = jnp.vectorize(single, signature="(n,d),(n),(n)->()")
    return automatic(vectorized)(features, labels, weights)


def diff_effective_rank(
    before: Float[ArrayLike, "*batch n d1"],
    after: Float[ArrayLike, "*batch n d2"],
    /,
    *,
    weights: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Diff-eRank: how much training lowered the effective rank, `eRank(before) - eRank(after)`.

    With `eRank = mirjax.effective_rank(·, centre=True)`: rows are centred, then divided by their
    norm, and p are the shares of `σ²`.

    Args:
        before: `[..., n, d1]`, features of the samples by the untrained network.
        after: `[..., n, d2]`, those by the trained one.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.

    Returns:
        `[...]`, positive where training removed directions ("noise reduction").

    Raises:
        TypeError, ValueError: shapes or dtypes do not match.

    What n does to it: both ranks rise with n, up to d; compare values of the same n. Known against
    it: the rank of the untrained network depends on its initialisation, and the difference with it.

    Cost and differentiability: as `effective_rank`.

    Example:
        >>> import jax, jax.numpy as jnp, mirjax
        >>> before = jax.random.normal(jax.random.key(0), (500, 8))
        >>> after = before.at[:, 2:].set(0.0)
        >>> print(f"{mirjax.spectra.diff_effective_rank(before, after):.1f}")
        5.9

    Source: Wei et al. 2024 (arXiv 2401.17139), definition 2.
    """
    before, after = as_float(before, "before", axes="n d1"), as_float(after, "after", axes="n d2")
    same_size(before, "before", after, "after", axis=(-2, -2), what="the number of samples n")
    before, after = common_float(before, after)
    weights = sample_weights(weights, before, "before")
    ranks = (effective_rank(rows, weights=weights, centre=True) for rows in (before, after))
    first, second = ranks
    return first - second


def measure(
    features: Float[ArrayLike, "*batch n d"],
    labels: Int[ArrayLike, "*batch n"] | None = None,
    /,
    *,
    num_classes: int | None = None,
    weights: Float[ArrayLike, "*batch n"] | None = None,
    per_class: bool = False,
    first: int = 6,
    last: int = 100,
    delta: float = 1e-4,
) -> Spectra:
    """All measures of this module at once, with what they share computed once in a compiled call.

    Args:
        features: `[..., n, d]`, one sample per row.
        labels: integers `[..., n]`, for `lidar` and `per_class`.
        num_classes: the number of classes, with `labels`.
        weights: non-negative `[..., n]`; weight 0 drops a sample exactly.
        per_class: whether to measure the samples of each class on its own: each field then has an
            axis of classes behind the batch axes, and there is no `lidar`.
        first: the range of `alpha_req`.
        last: the range of `alpha_req`.
        delta: as in `lidar`.

    Returns:
        `Spectra`, each field as the function of the same name gives it; `lidar` is None without
        labels.

    Raises:
        TypeError, ValueError: as in the functions; or labels come without `num_classes`, or
            `per_class` without labels.

    Cost: two sets of singular values, the spectra of four matrices of side `min(n, d)`, and
    `lidar`; with `per_class` once for each class, one after the other. Compiled, it takes about ten
    times the memory of the features. Differentiable as the functions are.

    Example:
        >>> import jax, mirjax
        >>> found = mirjax.spectra.measure(jax.random.normal(jax.random.key(0), (400, 16)))
        >>> print(f"{found.rankme:.2f} {found.nesum:.2f} {found.participation_ratio_debiased:.2f}")
        15.92 11.91 16.09
    """
    features, weights = _checked(features, weights)
    if labels is not None and num_classes is None:
        raise ValueError("labels need num_classes, the number of classes.")
    if per_class and labels is None:
        raise ValueError("per_class=True needs labels.")
    decay_range(first, last)
    ridge(delta)
    options = {"first": first, "last": last}
    if labels is None or num_classes is None:
        return _of_all(features, weights, **options)
    if per_class:
        labels = _labels_of(features, labels, num_classes)
        # Batch axes that one of them lacks.
        batch = jnp.broadcast_shapes(labels.shape, weights.shape)
        labels, weights = (jnp.broadcast_to(x, batch) for x in (labels, weights))
        features = jnp.broadcast_to(
            features, (*jnp.broadcast_shapes(batch[:-1], features.shape[:-2]), *features.shape[-2:])
        )
        labels, weights = (jnp.broadcast_to(x, features.shape[:-1]) for x in (labels, weights))
        valid = (labels >= 0) & (labels < num_classes)
        weights = jnp.where(valid | (weights == 0), weights, jnp.nan)

        def of_class(number: Array) -> Spectra:
            mine = (labels == number) | jnp.isnan(weights)
            return _of_all(features, jnp.where(mine, weights, 0.0), **options)

        by_class = lax.map(of_class, jnp.arange(num_classes, dtype=labels.dtype))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, features.ndim - 2), by_class)
    classes = lidar(features, labels, num_classes=num_classes, weights=weights, delta=delta)
    return _of_all(features, weights, **options)._replace(lidar=classes)


def _of_all(features: Array, weights: Array, *, first: int, last: int) -> Spectra:
    def spectrum(rows: Array, w: Array) -> tuple[Array, Array]:
        return spectrum_of(prepared(rows, w, centre=True), first, last)

    both = automatic(jnp.vectorize(spectrum, signature=f"{_ROWS}->(k),()"))
    values, decays = both(features, weights)
    return Spectra(
        eigenvalues=values,
        rankme=rankme(features, weights=weights),
        stable_rank=stable_rank(features, weights=weights),
        participation_ratio=participation_ratio(features, weights=weights),
        participation_ratio_debiased=participation_ratio(features, weights=weights, debiased=True),
        nesum=nesum(features, weights=weights),
        alpha_req=decays,
        lidar=None,
        effective_rank=effective_rank(features, weights=weights),
        effective_rank_centred=effective_rank(features, weights=weights, centre=True),
    )


def _over_batches(
    function: Callable[[Rows], Array],
    features: ArrayLike,
    weights: ArrayLike | None,
    *,
    centre: bool,
) -> Array:
    """A function of prepared rows, for any number of batch axes."""

    def single(rows: Array, w: Array) -> Array:
        return function(prepared(rows, w, centre=centre))

    vectorized = jnp.vectorize(single, signature=f"{_ROWS}->()")
    return automatic(vectorized)(*_checked(features, weights))


def _checked(features: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    features = as_float(features, "features", axes="n d")
    return features, sample_weights(weights, features, "features")


def _labels_of(features: Array, labels: ArrayLike, num_classes: int) -> Array:
    labels = as_labels(labels)
    same_size(features, "features", labels, "labels", axis=(-2, -1), what="the number of samples n")
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive, got {num_classes}.")
    return labels


def _valid(labels: Array, weights: Array, num_classes: int) -> tuple[Array, Array]:
    """Labels with 0 in place of invalid ones, whose samples get the weight NaN."""
    valid = (labels >= 0) & (labels < num_classes)
    return jnp.where(valid, labels, 0), jnp.where(valid | (weights == 0), weights, jnp.nan)
