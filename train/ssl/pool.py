"""The images of a semi-supervised run: a pool of which some keep their labels."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.data.batches import batch_indices
from train.data.load import load
from train.data.subsets import draw_balanced
from train.data.types import DataError, ImageData, RecordSplit, Split
from train.engine.loader import Batches
from train.engine.sharding import replicated
from train.run.lanes import Lane, host_seed
from train.run.settings import ImageSettings
from train.ssl.labels import labelled_indices

# Streams of one seed, beside those that `train.run.lanes` draws on the device.
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
        return self._split(self.labelled[seed])

    def hidden(self, seed: int) -> np.ndarray:
        """Whether training does not see a sample's label though measurements do, `[n]`."""
        hidden = self.truth >= 0
        hidden[self.labelled[seed]] = False
        return hidden

    def hidden_split(self, seed: int) -> Split:
        """The samples of the pool whose labels a seed is not told."""
        return self._split(np.flatnonzero(self.hidden(seed)))

    def _split(self, chosen: np.ndarray) -> Split:
        if len(chosen) == len(self.truth):
            return Split(self.images, self.truth)
        return Split(self.images[chosen], self.truth[chosen])


def load_pool(settings: ImageSettings, labels: int | None) -> Pool:
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


def pool_of(settings: ImageSettings, data: ImageData, labels: int | None) -> Pool:
    """As `load_pool`, of a data set at hand."""
    train, more = data.train, data.unlabelled
    if isinstance(train, RecordSplit) or isinstance(more, RecordSplit):
        raise DataError(
            f"{data.name}: semi-supervised training keeps all images in memory. Give a larger --memory-limit-mib "
            f"than {settings.memory_limit_mib}."
        )
    missing = set(range(data.num_classes)) - set(train.labels.tolist())
    if missing:
        names = ", ".join(data.class_names[i] for i in sorted(missing))
        raise DataError(f"{data.name}: no labelled image of the class {names}.")
    seeds = settings.seed_range()
    if labels is None:
        labelled = dict.fromkeys(seeds, np.arange(len(train)))
    elif ":" in settings.dataset:
        # The user's own data; the index files are of the published ones.
        labelled = {seed: draw_balanced(train.labels, labels, seed=seed) for seed in seeds}
    else:
        labelled = {
            seed: labelled_indices(data.name, train.labels, labels, seed=seed) for seed in seeds
        }
    images, truth = train.images, train.labels
    if more is not None:
        images = np.concatenate([images, more.images])
        truth = np.concatenate([truth, more.labels])
    return Pool(data, images, truth, labelled)


class PoolLoader:
    """Labelled and unlabelled batches, drawn independently; the images are on the device.

    Each is one permutation after the other, of the labelled samples of the lane's seed and of the whole
    pool. Lanes of one seed see the same batches.
    """

    streamed = False

    def __init__(self, pool: Pool, batch_size: int, unlabelled: int, mesh: Mesh):
        self._pool, self._sizes = pool, {_LABELLED: batch_size, _UNLABELLED: unlabelled}
        self._sources = replicated((jnp.asarray(pool.images), jnp.asarray(pool.truth)), mesh)

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """Indices into the pool, labelled and unlabelled, and whether labels of the latter are hidden."""
        streams: dict[tuple[int, int], Iterator[np.ndarray]] = {}
        seeds = list(dict.fromkeys(lane.seed for lane in lanes))
        hidden = {seed: self._pool.hidden(seed) for seed in seeds}

        def draw(seed: int, purpose: int, step: int) -> np.ndarray:
            size, labelled = self._sizes[purpose], self._pool.labelled[seed]
            if not size:
                return np.zeros(0, np.int32)
            # Opened where it is first asked for: at the step of a resumed run.
            if (seed, purpose) not in streams:
                samples = len(labelled) if purpose == _LABELLED else len(self._pool.truth)
                streams[seed, purpose] = batch_indices(
                    samples, size, seed=host_seed(seed, purpose), start_step=step
                )
            drawn = next(streams[seed, purpose])
            return (labelled[drawn] if purpose == _LABELLED else drawn).astype(np.int32)

        def of_lanes(purpose: int, step: int) -> np.ndarray:
            drawn = {seed: draw(seed, purpose, step) for seed in seeds}
            return np.stack([drawn[lane.seed] for lane in lanes])

        def batches(step: int, count: int) -> tuple[Any, Any]:
            labelled, unlabelled = (
                np.stack([of_lanes(purpose, step + i) for i in range(count)])
                for purpose in (_LABELLED, _UNLABELLED)
            )
            judged = [hidden[lane.seed][unlabelled[:, i]] for i, lane in enumerate(lanes)]
            indices = {"labelled": labelled, "unlabelled": unlabelled}
            return self._sources, indices | {"judged": np.stack(judged, axis=1)}

        return batches

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """The images themselves, and zeros."""
        labelled, unlabelled = (
            np.zeros((1, len(lanes), size), np.int32) for size in self._sizes.values()
        )
        indices = {"labelled": labelled, "unlabelled": unlabelled}
        return self._sources, indices | {"judged": np.zeros(unlabelled.shape, bool)}

    @staticmethod
    def take(sources: Any, indices: Any) -> tuple[Array, ...]:
        """Images and labels; unlabelled images, their labels for measurements (-1 where training is told
        the label, or nobody is), their indices.
        """
        images, truth = sources
        labelled, unlabelled = indices["labelled"], indices["unlabelled"]
        return (
            images[labelled],
            truth[labelled],
            images[unlabelled],
            jnp.where(indices["judged"], truth[unlabelled], -1),
            unlabelled,
        )
