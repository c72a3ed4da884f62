"""The images of a semi-supervised run: a pool in which some keep their labels, and its loader."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from train.data.batches import batch_indices
from train.data.load import load
from train.data.subsets import draw_balanced
from train.data.types import DataError, ImageData, RecordSplit, Split, agree_on, check_classes
from train.engine.loader import Batches
from train.engine.sharding import DATA, EVERYWHERE, LANES, place
from train.run.lanes import Lane, host_seed
from train.run.settings import ImageSettings
from train.ssl.labels import labelled_indices

# Purposes of the draws on the host, beside those that `train.run.lanes` draws on the device.
_LABELLED, _UNLABELLED = 11, 12


@dataclasses.dataclass(frozen=True)
class Pool:
    """All training images, with and without labels."""

    data: ImageData
    images: np.ndarray
    """uint8 `[n, h, w, c]`: the training split, then the images that never had a label."""
    truth: np.ndarray
    """int32 `[n]`: the labels, -1 where there is none. Only measurements read those of samples that
    did not keep them."""
    labelled: dict[int, np.ndarray]
    """The indices of the samples that keep their labels, for each seed."""

    def labelled_split(self, seed: int) -> Split:
        """The labelled samples of a seed."""
        return self._split(self.labelled[seed])

    def hidden(self, seed: int) -> np.ndarray:
        """`[n]`: whether training does not see the label of a sample though measurements do."""
        hidden = self.truth >= 0
        hidden[self.labelled[seed]] = False
        return hidden

    def hidden_split(self, seed: int) -> Split:
        """The samples of the pool whose labels are hidden from a seed."""
        return self._split(np.flatnonzero(self.hidden(seed)))

    def _split(self, chosen: np.ndarray) -> Split:
        # The whole pool is not copied.
        if len(chosen) == len(self.truth):
            return Split(self.images, self.truth)
        return Split(self.images[chosen], self.truth[chosen])


def load_pool(settings: ImageSettings, labels: int | None) -> Pool:
    """The data set of the settings, with `labels` labels for each seed, or all if None.

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
    """The same as `load_pool` for a data set that is loaded already."""
    check_classes(data)
    agree_on(data)
    train, more = data.train, data.unlabelled
    if isinstance(train, RecordSplit) or isinstance(more, RecordSplit):
        raise DataError(
            f"{data.name}: semi-supervised training keeps all images in memory. Give a larger "
            f"--memory-limit-mib than {settings.memory_limit_mib}."
        )
    # A class without labels could never be learned.
    missing = set(range(data.num_classes)) - set(train.labels.tolist())
    if missing:
        names = ", ".join(data.class_names[i] for i in sorted(missing))
        raise DataError(f"{data.name}: no labelled image of the class {names}.")
    seeds = settings.seed_range()
    if labels is None:
        labelled = dict.fromkeys(seeds, np.arange(len(train)))
    elif ":" in settings.dataset:
        # These are the user's own data; the index files are for published data sets.
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
    """Labelled and unlabelled batches, drawn independently; each device has the images.

    Both go through one permutation after another: the former of the labelled samples of a seed, the
    latter of the whole pool. Lanes with the same seed see the same batches.
    """

    streamed, divided = False, True
    sources_spec, indices_spec = EVERYWHERE, PartitionSpec(None, LANES, DATA)

    def __init__(self, pool: Pool, batch_size: int, unlabelled: int, mesh: Mesh):
        self._pool, self._sizes = pool, {_LABELLED: batch_size, _UNLABELLED: unlabelled}
        self._sources = place((jnp.asarray(pool.images), jnp.asarray(pool.truth)), mesh)

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """Labelled and unlabelled indices into the pool, and whether the latter are hidden."""
        streams: dict[tuple[int, int], Iterator[np.ndarray]] = {}
        # Lanes of a seed share a stream, so each seed draws once, in the order of the lanes.
        seeds = list(dict.fromkeys(lane.seed for lane in lanes))
        hidden = {seed: self._pool.hidden(seed) for seed in seeds}

        def draw(seed: int, purpose: int, step: int) -> np.ndarray:
            size, labelled = self._sizes[purpose], self._pool.labelled[seed]
            # The supervised baseline takes no unlabelled samples at all.
            if not size:
                return np.zeros(0, np.int32)
            # Opened at the step that first asks for it, which is that of a resumed run.
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
            # Only pseudo-labels of samples whose labels training does not see are judged.
            judged = [hidden[lane.seed][unlabelled[:, i]] for i, lane in enumerate(lanes)]
            indices = {"labelled": labelled, "unlabelled": unlabelled}
            return self._sources, indices | {"judged": np.stack(judged, axis=1)}

        return batches

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """The images themselves, and zeros as indices."""
        labelled, unlabelled = (
            np.zeros((1, len(lanes), size), np.int32) for size in self._sizes.values()
        )
        indices = {"labelled": labelled, "unlabelled": unlabelled}
        return self._sources, indices | {"judged": np.zeros(unlabelled.shape, bool)}

    @staticmethod
    def take(sources: Any, indices: Any) -> tuple[Array, ...]:
        """The batches: images, labels, unlabelled images, their true labels, and their indices.

        The true labels are for measurements; they are -1 where training sees the label or where
        there is none.
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
