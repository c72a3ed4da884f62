"""Which operator has the joint entropy of a data set most cheaply, and what it needs."""

from typing import NamedTuple

from mirjax import _memory as memory
from mirjax._dataset.blocks import block_count, block_size
from mirjax._dataset.dense import WORK
from mirjax._dataset.estimate import DEGREE, ITERATIONS, PROBES, Options
from mirjax._dataset.operators import purity_is_worth_it

# A matrix of all samples may take this share of the memory: it is only faster, never needed.
_SHARE = 0.6


class Plan(NamedTuple):
    """One way to products with `A`.

    Attributes:
        operator: `"moments"`, `"rows"`, `"dense"` or `"pairs"`, as in `operators`.
        cost: floating-point operations of the set-up and of one round of products.
        memory: bytes on each device, the data included.
    """

    operator: str
    cost: float
    memory: int


def of_labelled(
    samples: int,
    width: int,
    classes: int,
    shards: int,
    itemsize: int,
    options: Options,
    size: int | None = None,
) -> list[Plan]:
    """The plans for features and a head, the cheapest first.

    With the `size` of `balanced_size`, rows are held in one block for each class.
    """
    here = samples // shards
    rank = min(width, classes)
    data, head = itemsize * here * width, itemsize * classes * width
    # Rows are held in blocks of one class, which have more places than there are rows.
    blocks = classes if size else block_count(here, classes)
    places = (size or block_size(here, classes)) * blocks
    placed = itemsize * places * width
    # By class moments, at a cost that does not depend on the number of samples.
    side, squares = width * rank, classes * width**2
    setup = 2.0 * samples * width**2 + 2.0 * classes * squares
    per_product = 2 * squares + 4 * classes * rank * width
    moments = Plan(
        "moments",
        setup + per_product * _products(options, min(samples, side)),
        max(
            2 * data + 3 * placed + itemsize * squares,
            memory.of_moments(classes, width, itemsize),
            itemsize * squares + _running(side, 2 * classes * width, itemsize, options),
        ),
    )
    # By rows, mixed between the classes.
    per_product = 4 * shards * places * width + min(2 * classes, 4 * width) * classes * width
    rows = Plan(
        "rows",
        per_product * _products(options, samples),
        max(
            # Of balanced classes the rows are held as rows and as columns.
            data + head + placed + (2 * placed if size else placed // 2),
            (2 * placed if size else placed)
            + head
            + _running(places, 2 * width * (blocks + classes), itemsize, options),
        ),
    )
    plans = [moments, rows]
    if shards == 1:
        plans.append(_dense(samples, 2 * width, data + head, itemsize, options))
    return sorted(plans, key=lambda plan: plan.cost)


def of_pair(
    samples: int, width1: int, width2: int, shards: int, itemsize: int, options: Options
) -> list[Plan]:
    """The plans for two representations, the cheapest first."""
    here, pairs = samples // shards, width1 * width2
    data = itemsize * here * (width1 + width2)
    vectors = pairs if pairs < samples else here
    run = _running(vectors, 0, itemsize, options) + itemsize * here * width2
    # The square of the kernel is formed in pieces, where it is worth it.
    is_exact = purity_is_worth_it(samples, width1, width2)
    pieces = 3 * itemsize * min(here * samples, WORK) if is_exact else 0
    plans = [
        Plan(
            "pairs",
            4.0 * samples * pairs * _products(options, min(samples, pairs)),
            max(data + data + data // 2, data + max(run, pieces)),
        )
    ]
    if shards == 1:
        plans.append(_dense(samples, width1 + width2, data, itemsize, options))
    return sorted(plans, key=lambda plan: plan.cost)


def _dense(samples: int, widths: int, data: int, itemsize: int, options: Options) -> Plan:
    vectors = memory.of_vectors(samples, options.rank_for(samples), itemsize)
    pieces = 3 * itemsize * min(samples**2, WORK // 8)
    return Plan(
        "dense",
        2.0 * samples**2 * (widths + _products(options, samples)),
        itemsize * samples**2 + max(2 * data + pieces, vectors),
    )


def _running(size: int, per_column: int, itemsize: int, options: Options) -> int:
    """Bytes of a round of products: vectors, and the temporaries of one column or more."""
    rank = options.rank_for(size)
    temporaries = min(WORK, per_column * rank) + per_column
    return memory.of_vectors(size, rank, itemsize) + itemsize * temporaries


def _products(options: Options, side: int) -> int:
    return (ITERATIONS + 1) * options.rank_for(side) + DEGREE * (options.probes or PROBES)


def choose(plans: list[Plan], limit: int | None) -> Plan:
    """The cheapest plan that fits, or the one that needs the least memory."""
    limit = memory.available() if limit is None else limit
    for plan in plans:
        if plan.memory <= limit * (_SHARE if plan.operator == "dense" else 1):
            return plan
    return min(plans, key=lambda plan: plan.memory)
