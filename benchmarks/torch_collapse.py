"""Neural collapse in PyTorch, for many classes: pairs of classes and scores go in tiles.

Written from the papers: Papyan, Han & Donoho 2020 (PNAS 117(40)) for NC1 to NC4, Galanti et al.
2021 (arXiv 2112.15121) for the class-distance normalised variance, Liu et al. 2023 (arXiv
2303.06484) and Wu & Papyan 2024 (arXiv 2405.17767) for generalised NC2 and uniform NC3. Classes
without a sample are left out.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

# The entries of a tile.
TILE = 2**22


def collapse(
    features: Tensor, head: Tensor, labels: Tensor, *, papyan: bool, nc4: bool
) -> dict[str, Tensor]:
    """Four measures for many classes; with `papyan` those of 2020 too, and NC4 if asked for."""
    classes, own, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sizes = counts.to(features.dtype)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add(0, own, features)
    means = sums / sizes[:, None]
    within = features - means[own]
    squares = within.square().sum(1)
    variances = features.new_zeros(len(classes)).index_add(0, own, squares) / sizes
    centred, used = means - features.mean(0), head[classes]
    directions, head_directions = normalize(centred, dim=1), normalize(used, dim=1)

    cdnv, generalised = over_pairs(centred, variances)
    fields = {
        "nc1_quotient": squares.mean() / centred.square().sum(1).mean(),
        "cdnv": cdnv,
        "nc2_generalised": generalised,
        "nc3_uniform": (directions * head_directions).sum(1).var(correction=0),
    }
    if papyan:
        # tr(Σ_W Σ_B⁺) / C with Σ_B = MᵀM / C: no d × d matrix.
        projected = within @ torch.linalg.pinv(centred, rtol=1e-5)
        apart = used / torch.linalg.norm(used) - centred / torch.linalg.norm(centred)
        fields |= {
            "nc1": projected.square().sum(1).mean(),
            "nc2_equinorm": equinorm(centred),
            "nc2_equiangle": equiangle(directions),
            "nc2_equinorm_head": equinorm(used),
            "nc2_equiangle_head": equiangle(head_directions),
            "nc3": apart.square().sum(),
        }
    if nc4:
        with torch.no_grad():
            nearest = classes[best(features, 2 * means, -means.square().sum(1))]
            predicted = best(features, head, head.new_zeros(len(head)))
            fields["nc4"] = (nearest == predicted).to(features.dtype).mean()
    return fields


def tiles_of_pairs(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some classes at a time, and where a pair with itself stands among those with all classes."""
    count = len(rows)
    step = max(1, TILE // count)
    every = torch.arange(count, device=rows.device)
    for start in range(0, count, step):
        tile = slice(start, start + step)
        yield tile, every[tile, None] == every


def over_pairs(centred: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Class-distance normalised variance and generalised NC2."""
    norms, directions = centred.square().sum(1), normalize(centred, dim=1)
    pairs = len(centred) * (len(centred) - 1)
    ratio = log = log_square = centred.new_zeros(())
    for tile, itself in tiles_of_pairs(centred):
        distances = norms[tile, None] + norms - 2 * centred[tile] @ centred.T
        ratios = (variances[tile, None] + variances) / (2 * distances.masked_fill(itself, 1.0))
        # Less the logarithm for two directions at right angles: the variance loses no digits.
        apart = (2 - 2 * directions[tile] @ directions.T).masked_fill(itself, 2.0)
        logs = -0.5 * (apart.log() - math.log(2))
        ratio = ratio + ratios.masked_fill(itself, 0.0).sum()
        log, log_square = log + logs.sum(), log_square + logs.square().sum()
    return ratio / pairs, log_square / pairs - (log / pairs) ** 2


def equiangle(directions: Tensor) -> Tensor:
    """Mean of `|cos + 1 / (C - 1)|` over pairs of rows of unit length."""
    others, total = len(directions) - 1, directions.new_zeros(())
    for tile, itself in tiles_of_pairs(directions):
        cosines = directions[tile] @ directions.T
        total = total + (cosines + 1 / others).abs().masked_fill(itself, 0.0).sum()
    return total / (len(directions) * others)


def equinorm(rows: Tensor) -> Tensor:
    """Standard deviation over mean of the norms."""
    norms = torch.linalg.norm(rows, dim=1)
    return norms.std(correction=0) / norms.mean()


def best(rows: Tensor, classes: Tensor, offset: Tensor) -> Tensor:
    """The class with the greatest `rows @ classes.T + offset`, some classes at a time."""
    step = max(1, TILE // len(rows))
    top = rows.new_full((len(rows),), -math.inf)
    place = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for start in range(0, len(classes), step):
        scores = rows @ classes[start : start + step].T + offset[start : start + step]
        value, index = scores.max(1)
        place = torch.where(value > top, index + start, place)
        top = torch.maximum(top, value)
    return place
