"""The images of a semi-supervised run: a pool of which some keep their labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.data import batch_indices, load
from train.feeds import Batches
from train.images import DataError, ImageData, RecordSplit, Split
from train.labelled import labelled_indices
from train.lanes import Lane
from train.parallel import replicated
from train.settings import Settings

# Streams of one seed, beside those that `train.lanes` draws on the device.
_LABELLED, _UNLABELLED = 11, 12


@dataclasses.dataclass(frozen=True)
class Pool:
    """All training images, with and without labels."""

    data: ImageData
    images: np.ndarray
    """uint8 `[n, h, w, c]`: the training split, then the images that never had a label."""
    truth: np.ndarray
    """int32 `[n]`, -1 where there is none. What is no labelled sample's is read by measurements alone."""
    labelled: dict[int, np.ndarray]
    """For each seed the indices of the samples that keep their labels."""

    def labelled_split(self, seed: int) -> Split:
        """The labelled samples of a seed."""
        chosen = self.labelled[seed]
        return Split(self.images[chosen], self.truth[chosen])

    def known(self) -> Split:
        """The samples of the pool whose label is known to measurements: the training split."""
        known = self.truth >= 0
        return Split(self.images[known], self.truth[known])


def load_pool(settings: Settings, labels: int | None) -> Pool:
    """The data set of the settings with `labels` labels for each seed; all of them if None.

    Raises:
        DataError: the images do not fit in memory, or the labels cannot be drawn.
    """
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        memory_limit_mib=settings.memory_limit_mib,
        image_size=settings.image_size,
        unlabelled=True,
    )
    return pool_of(settings, data, labels)


def pool_of(settings: Settings, data: ImageData, labels: int | None) -> Pool:
    """As `load_pool`, of a data set at hand."""
    train, more = data.train, data.unlabelled
    if isinstance(train, RecordSplit) or isinstance(more, RecordSplit):
        raise DataError(
            f"{data.name}: semi-supervised training keeps all images in memory. Give a larger --memory-limit-mib "
            f"than {settings.memory_limit_mib}."
        )
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    everything = np.arange(len(train))
    labelled = {
        seed: everything
        if labels is None
        else labelled_indices(data.name, train.labels, labels, seed=seed)
        for seed in seeds
    }
    missing = set(range(data.num_classes)) - set(train.labels[labelled[seeds[0]]].tolist())
    if missing:
        names = ", ".join(data.class_names[i] for i in sorted(missing))
        raise DataError(f"{data.name}: no labelled image of the class {names}.")
    images, truth = train.images, train.labels
    if more is not None:
        images = np.concatenate([images, more.images])
        truth = np.concatenate([truth, more.labels])
    return Pool(data, images, truth, labelled)


class PoolFeed:
    """Labelled and unlabelled batches, drawn on their own; the images are on the device.

    Each is one permutation after the other, of the labelled samples of the lane's seed and of the whole
    pool. Lanes of one seed see the same batches.
    """

    streamed = False

    def __init__(self, pool: Pool, batch_size: int, unlabelled: int, mesh: Mesh):
        self._pool, self._sizes = pool, (batch_size, unlabelled)
        self._sources = replicated((jnp.asarray(pool.images), jnp.asarray(pool.truth)), mesh)

    def of(self, lanes: Sequence[Lane]) -> Batches:
        """Indices into the pool, labelled and unlabelled."""
        feeds: dict[tuple[int, int], Any] = {}

        def draw(seed: int, purpose: int, step: int) -> np.ndarray:
            chosen = self._pool.labelled[seed]
            samples = len(chosen) if purpose == _LABELLED else len(self._pool.truth)
            size = self._sizes[purpose == _UNLABELLED]
            if not size:
                return np.zeros(0, np.int32)
            if (seed, purpose) not in feeds:
                own = int(np.random.SeedSequence((seed, purpose)).generate_state(1)[0])
                feeds[seed, purpose] = batch_indices(samples, size, seed=own, start_step=step)
            drawn = next(feeds[seed, purpose])
            return (chosen[drawn] if purpose == _LABELLED else drawn).astype(np.int32)

        def batches(step: int, count: int) -> tuple[Any, Any]:
            indices = {}
            for name, purpose in (("labelled", _LABELLED), ("unlabelled", _UNLABELLED)):
                rows = []
                for i in range(count):
                    own = {x.seed: None for x in lanes}
                    drawn = {seed: draw(seed, purpose, step + i) for seed in own}
                    rows.append(np.stack([drawn[x.seed] for x in lanes]))
                indices[name] = np.stack(rows)
            return self._sources, indices

        return batches

    def example(self, lanes: int) -> tuple[Any, Any]:
        """The images themselves, and zeros."""
        names = zip(("labelled", "unlabelled"), self._sizes, strict=True)
        return self._sources, {k: np.zeros((1, lanes, size), np.int32) for k, size in names}

    @staticmethod
    def take(sources: Any, indices: Any) -> tuple[Array, ...]:
        """Images and labels, unlabelled images, their labels for measurements, their indices."""
        images, truth = sources
        labelled, unlabelled = indices["labelled"], indices["unlabelled"]
        return (
            images[labelled],
            truth[labelled],
            images[unlabelled],
            truth[unlabelled],
            unlabelled,
        )
