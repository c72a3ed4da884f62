"""How rows are split over devices."""

import jax

from mirjax._checks import ArrayLike


def row_shards(features: ArrayLike) -> int:
    """The number of equal parts of the rows on devices; 1 inside a transformed function."""
    # A tracer does not know where its values will be.
    sharding = getattr(features, "sharding", None)
    if sharding is None or isinstance(features, jax.core.Tracer):
        return 1
    return features.shape[0] // sharding.shard_shape(features.shape)[0]
