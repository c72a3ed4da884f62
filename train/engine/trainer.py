"""The trainer: groups of lanes go through one compiled call together, for many steps at a time."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.engine.loader import Loader
from train.engine.sharding import cut, replicated
from train.engine.state import TrainState
from train.engine.step import Terms
from train.models import is_convolutional
from train.run.errors import RunError
from train.run.lanes import Lane, concatenated
from train.run.loop import Metrics

Step = Callable[..., tuple[TrainState, Terms]]
"""`(states, *batch) -> (states, terms)`: one optimizer step of stacked lanes."""


class Progress(NamedTuple):
    """What a call over several steps reports for each lane."""

    total: Terms
    """The sums of the terms over the steps of the call."""
    bad_step: Array
    """The first step with a non-finite term, or -1."""
    bad_terms: Terms
    """The terms of that step."""


class Trainer:
    """Trains lanes of equal shapes, group after group, through one compiled call.

    Args:
        step: one step of stacked lanes, which is compiled here.
        loader: where the batches come from.
        lanes: the networks to train.
        states: the stacked states of all lanes, at the step to continue from.
        mesh: the devices over which each batch is divided.
        steps_per_call: steps in one call of the compiled function; if None, 100, or 1 where that is
            slow. With a streaming loader it is always 1.
        lanes_per_call: lanes in a group; if None, as many as fit in the memory of the device, or 1
            where several are slow.
        slow_together: whether the step is slow in a loop and for several lanes; see `is_slow`.
    """

    def __init__(
        self,
        step: Step,
        loader: Loader,
        lanes: Sequence[Lane],
        states: TrainState,
        mesh: Mesh,
        *,
        steps_per_call: int | None = None,
        lanes_per_call: int | None = None,
        slow_together: bool = False,
    ):
        self._chunk = 1 if loader.streamed else steps_per_call or (1 if slow_together else 100)
        self._call: Any = make_call(step, loader.take, looped=self._chunk > 1, mesh=mesh)
        self._step = int(states.step[0])
        self._loader = loader

        def needs(size: int) -> int:
            return self._needs(lanes[:size], states)

        size = lanes_per_call or (1 if slow_together else largest_that_fits(len(lanes), needs))
        self.rows = [range(i, min(i + size, len(lanes))) for i in range(0, len(lanes), size)]
        """The lanes of each group."""
        self._lanes = [lanes[r.start : r.stop] for r in self.rows]
        self.states = [
            # Copied, since a call donates the arrays that it is given.
            replicated(jax.tree.map(lambda x, r=r: jnp.copy(x[r.start : r.stop]), states), mesh)
            for r in self.rows
        ]
        """The stacked states of each group."""
        self._batches = [loader.batches(group) for group in self._lanes]

    @property
    def largest_group(self) -> int:
        """The number of lanes in the largest group."""
        return max(map(len, self.rows))

    def advance(self, to: int) -> list[Metrics]:
        """Trains every lane up to step `to`; returns the mean terms of these steps, by lane.

        Raises:
            RunError: a term of the loss became non-finite.
        """
        taken = to - self._step
        if taken == 0:
            return [{} for rows in self.rows for _ in rows]
        sums: list[list[Terms]] = [[] for _ in self.states]
        # A call is started before the previous one is waited for, so that the device does not idle.
        # Not with several groups: their calls would run side by side and need memory for both.
        started: deque[tuple[int, Progress]] = deque()
        ahead = 1 if len(self.states) == 1 else 0

        def wait(most: int) -> None:
            while len(started) > most:
                group, progress = started.popleft()
                progress = jax.device_get(progress)
                self._stop_if_not_finite(group, progress)
                # In float64, because float32 would lose digits over many calls.
                sums[group].append(
                    jax.tree.map(lambda x: np.asarray(x, np.float64), progress.total)
                )

        while self._step < to:
            count = min(self._chunk, to - self._step)
            for group, batches in enumerate(self._batches):
                sources, indices = batches(self._step, count)
                self.states[group], progress = self._call(
                    self.states[group], sources, self._filled(indices), count
                )
                started.append((group, progress))
                wait(ahead)
            self._step += count
        wait(0)
        totals = [jax.tree.map(lambda *calls: sum(calls), *of_group) for of_group in sums]
        return [
            {f"step_{name}": float(total[i]) / taken for name, total in terms.named().items()}
            for rows, terms in zip(self.rows, totals, strict=True)
            for i in range(len(rows))
        ]

    def all_states(self) -> TrainState:
        """The stacked states of all lanes."""
        return concatenated(self.states)

    def _needs(self, lanes: Sequence[Lane], states: TrainState) -> int:
        """Bytes that a call with these lanes takes on each device."""
        size = len(lanes)
        states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), states)
        sources, indices = self._loader.example(lanes)
        # Compiled from shapes alone: nothing of this size is allocated.
        compiled = self._call.lower(states, sources, self._filled(indices), 1).compile()
        memory = compiled.memory_analysis()
        return (
            memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
        )

    def _filled(self, indices: Any) -> Any:
        """Indices padded to the length of a full call, since each new shape costs a compilation."""

        def fill(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.zeros((self._chunk - len(x), *x.shape[1:]), x.dtype)])

        return jax.tree.map(fill, indices)

    def _stop_if_not_finite(self, group: int, progress: Progress) -> None:
        for place, step in enumerate(progress.bad_step):
            if step < 0:
                continue
            terms = {name: float(v[place]) for name, v in progress.bad_terms.named().items()}
            # The sum is non-finite whenever a term is, so only the term is named.
            bad = [k for k, v in terms.items() if not np.isfinite(v) and k != "loss"] or ["loss"]
            lane = self._lanes[group][place]
            where = ", ".join([f"seed {lane.seed}", *(f"{k} {v}" for k, v in lane.tags.items())])
            raise RunError(
                f"The loss became non-finite at step {step} ({where}): {', '.join(bad)} is "
                f"{', '.join(str(terms[k]) for k in bad)}. Try a smaller --learning-rate or weight "
                "of that term. The metrics up to the last evaluation are kept."
            )


def make_call(
    step: Step,
    take: Callable[[Any, Any], tuple[Array, ...]],
    *,
    looped: bool,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Progress]]:
    """Compiles `(states, sources, indices, count) -> (states, progress)` for stacked lanes.

    Step i is given `take(sources, indices[i])`, a batch for each lane; see `train.engine.loader`.
    Only the first `count` rows of `indices` are used, so that a shorter call needs no compilation
    of its own. With `looped=False` there is one row and no loop. The states are donated. Batches
    are divided over the devices of the mesh.
    """
    # Compiled as a part of the call; jitted here so that shape and body of the loop share a trace.
    step = jax.jit(step)

    def once(states: TrainState, sources: Any, indices: Any) -> tuple[TrainState, Progress]:
        batch = take(sources, indices)
        if mesh is not None and mesh.size > 1:
            batch = tuple(cut(x, mesh, axis=1) for x in batch)
        new, terms = step(states, *batch)
        # Checked on the device: a copy to the host at every step would stall it.
        finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(terms))), axis=0)
        return new, Progress(terms, jnp.where(finite, -1, new.step), terms)

    def call(
        states: TrainState, sources: Any, indices: Any, count: int
    ) -> tuple[TrainState, Progress]:
        def at(i: Array | int) -> Any:
            return jax.tree.map(lambda x: x[i], indices)

        if not looped:
            return once(states, sources, at(0))

        def body(i: Array, carry: tuple[TrainState, Progress]) -> tuple[TrainState, Progress]:
            states, so_far = carry
            states, now = once(states, sources, at(i))
            good = so_far.bad_step < 0
            return states, Progress(
                jax.tree.map(jnp.add, so_far.total, now.total),
                jnp.where(good, now.bad_step, so_far.bad_step),
                jax.tree.map(lambda a, b: jnp.where(good, b, a), so_far.bad_terms, now.bad_terms),
            )

        # The loop may take any number of steps, so it starts from sums of zero of the right shapes.
        _, progress = jax.eval_shape(once, states, sources, at(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), progress.total)
        none = Progress(zeros, jnp.full(states.step.shape, -1, states.step.dtype), zeros)
        return jax.lax.fori_loop(0, count, body, (states, none))

    return jax.jit(call, donate_argnums=0)


def is_slow(model: str) -> bool:
    """Whether a loop, or several networks at once, is much slower: for convolutions on a CPU."""
    return jax.default_backend() == "cpu" and is_convolutional(model)


def largest_that_fits(
    lanes: int, needs: Callable[[int], int], *, available: int | None = None
) -> int:
    """The largest divisor of `lanes` for which `needs` is at most 0.9 of the available bytes.

    By default all memory of the device is available, and not only what is free just now, so that a
    resumed run gets the same answer. A device that does not report its memory holds all lanes.
    """
    if available is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" not in stats:
            return lanes
        available = int(stats["bytes_limit"])
    # A single lane has to fit anyway, and asking would cost a compilation.
    sizes = [lanes // k for k in range(1, lanes) if lanes % k == 0]
    return next((size for size in sizes if needs(size) <= math.floor(0.9 * available)), 1)
