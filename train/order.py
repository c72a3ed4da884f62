"""Which samples each step of each lane takes."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array

from train.lanes import ORDER, Lane, stream_key


def copies_at(lanes: Sequence[Lane], step: int) -> tuple[int, ...]:
    """The copy whose draws each lane takes at a step: copy 0 before it branches off."""
    return tuple(lane.copy if step >= lane.branch_step else 0 for lane in lanes)


class BatchOrder:
    """A permutation an epoch, a function of seed, copy and epoch alone."""

    def __init__(self, lanes: Sequence[Lane], samples: int, batch_size: int):
        if samples < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the training split, {samples} samples."
            )
        self._lanes, self._batch = lanes, batch_size
        self._seeds = np.asarray([lane.seed for lane in lanes], np.int32)
        self.steps_per_epoch = samples // batch_size
        self._epochs: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

        def order(seed: Array, copy: Array, epoch: Array) -> Array:
            key = jax.random.fold_in(stream_key(seed, copy, ORDER), epoch)
            return jax.random.permutation(key, samples)[: self.steps_per_epoch * batch_size]

        self._order = jax.jit(jax.vmap(order, in_axes=(0, 0, None)))

    def __call__(self, step: int, count: int) -> np.ndarray:
        """Indices `[count, lanes, batch]` of the steps from `step` on."""
        return np.stack([self._of_step(step + i) for i in range(count)])

    def _of_step(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps_per_epoch)
        wanted = epoch, copies_at(self._lanes, step)
        if wanted not in self._epochs:
            kept = {k: order for k, order in self._epochs.items() if k[0] >= epoch - 1}
            copies = np.asarray(wanted[1], np.int32)
            kept[wanted] = np.asarray(self._order(self._seeds, copies, epoch), np.int32)
            self._epochs = kept
        return self._epochs[wanted][:, place * self._batch : (place + 1) * self._batch]
