"""Lanes in groups that go through one compiled call together, many steps in each."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.engine.loader import Feed
from train.engine.sharding import cut, replicated
from train.engine.state import TrainState
from train.models import is_convolutional
from train.run.folder import RunError
from train.run.lanes import Lane
from train.run.settings import Settings


class Progress(NamedTuple):
    """What a call over several steps tells, for each lane."""

    total: Any
    """Sum of the terms over the steps of the call."""
    bad_step: Array
    """The first step with a non-finite term, or -1."""
    bad_terms: Any
    """The terms of that step."""


class Groups:
    """Trains all lanes, group after group, through one compiled call."""

    def __init__(
        self,
        settings: Settings,
        lanes: Sequence[Lane],
        states: TrainState,
        step: Callable,
        feed: Feed,
        mesh: Mesh,
    ):
        slow = is_slow(settings)
        default = 1 if slow else 100
        self._chunk = 1 if feed.streamed else settings.steps_per_call or default
        self._call: Any = make_call(step, feed.take, looped=self._chunk > 1, mesh=mesh)
        self._step = int(states.step[0])
        self._feed = feed

        def needs(size: int) -> int:
            return self._needs(size, states)

        size = settings.lanes_per_call or (1 if slow else largest_that_fits(len(lanes), needs))
        self.rows = [range(i, min(i + size, len(lanes))) for i in range(0, len(lanes), size)]
        self._lanes = [lanes[r.start : r.stop] for r in self.rows]
        self.states = [
            # Copied, since the calls take what they are given.
            replicated(jax.tree.map(lambda x, r=r: jnp.copy(x[r.start : r.stop]), states), mesh)
            for r in self.rows
        ]
        self._batches = [feed.of(group) for group in self._lanes]

    def advance(self, to: int) -> list[dict[str, float]]:
        """Trains every lane up to step `to`; the mean terms of the steps taken, for each lane."""
        taken, totals = to - self._step, [np.zeros(1)] * len(self.states)
        names: tuple[str, ...] = ()
        # What a call tells is waited for once the next has started, so that the device goes on meanwhile. Calls of
        # several groups would run side by side, and need the memory of both.
        begun: deque[tuple[int, Any]] = deque()
        ahead = 1 if len(self.states) == 1 else 0

        def wait(most: int) -> None:
            nonlocal names
            while len(begun) > most:
                group, progress = begun.popleft()
                progress = jax.device_get(progress)
                self._stop_if_not_finite(group, progress)
                names = progress.total._fields
                totals[group] = totals[group] + np.stack(progress.total, axis=1)

        while self._step < to:
            count = min(self._chunk, to - self._step)
            for group in range(len(self.states)):
                sources, indices = self._batches[group](self._step, count)
                self.states[group], progress = self._call(
                    self.states[group], sources, self._filled(indices), count
                )
                begun.append((group, progress))
                wait(ahead)
            self._step += count
        wait(0)
        means = np.concatenate(totals) / taken
        return [
            {f"step_{name}": float(v) for name, v in zip(names, row, strict=True)} for row in means
        ]

    def all_states(self) -> TrainState:
        """The states of all lanes, stacked."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.states)

    def _needs(self, size: int, states: TrainState) -> int:
        """Bytes that a call of `size` lanes takes on each device."""
        states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), states)
        sources, indices = self._feed.example(size)
        compiled = self._call.lower(states, sources, self._filled(indices), 1).compile()
        found = compiled.memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes + found.argument_size_in_bytes

    def _filled(self, indices: Any) -> Any:
        """With zeros for the steps of a full call that are not taken: one shape, one compilation."""

        def fill(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.zeros((self._chunk - len(x), *x.shape[1:]), x.dtype)])

        return jax.tree.map(fill, indices)

    def _stop_if_not_finite(self, group: int, progress: Progress) -> None:
        for place, step in enumerate(progress.bad_step):
            if step < 0:
                continue
            terms = {name: float(v[place]) for name, v in progress.bad_terms._asdict().items()}
            bad = [k for k, v in terms.items() if not np.isfinite(v) and k != "loss"] or ["loss"]
            lane = self._lanes[group][place]
            where = ", ".join([f"seed {lane.seed}", *(f"{k} {v}" for k, v in lane.tags.items())])
            raise RunError(
                f"The loss became non-finite at step {step} ({where}): {', '.join(bad)} is "
                f"{', '.join(str(terms[k]) for k in bad)}. Try a smaller --learning-rate or weight of "
                "that term. The metrics up to the last evaluation are kept."
            )


def make_call(
    step: Callable[..., tuple[TrainState, Any]],
    take: Callable[[Any, Any], tuple[Array, ...]],
    *,
    looped: bool,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Progress]]:
    """Compiles `(states, sources, indices, count) -> (states, progress)` for all lanes.

    Step i is given what `take(sources, indices[i])` takes, one batch a lane; see `train.engine.loader`. The
    first `count` rows of `indices` are used, so that a short call needs no compilation of its own. With
    `looped=False` there is one row and no loop. The states are donated. Batches are cut over the
    devices of the mesh.
    """
    # Compiled as one with what calls it; by itself so that the loop below traces it once.
    all_lanes = jax.jit(jax.vmap(step))

    def once(states: TrainState, sources: Any, indices: Any) -> tuple[TrainState, Progress]:
        batch = take(sources, indices)
        if mesh is not None and mesh.size > 1:
            batch = tuple(cut(x, mesh, axis=1) for x in batch)
        new, terms = all_lanes(states, *batch)
        finite = jnp.all(jnp.isfinite(jnp.stack(terms)), axis=0)
        return new, Progress(terms, jnp.where(finite, -1, new.step), terms)

    def call(
        states: TrainState, sources: Any, indices: Any, count: int
    ) -> tuple[TrainState, Progress]:
        def at(i: Any) -> Any:
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

        _, progress = jax.eval_shape(once, states, sources, at(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), progress.total)
        none = Progress(zeros, jnp.full(states.step.shape, -1, states.step.dtype), zeros)
        return jax.lax.fori_loop(0, count, body, (states, none))

    return jax.jit(call, donate_argnums=0)


def is_slow(settings: Settings) -> bool:
    """Convolutions on a CPU: several times slower when batched over networks or in a loop."""
    return jax.default_backend() == "cpu" and is_convolutional(settings.model)


def largest_that_fits(
    lanes: int, needs: Callable[[int], int], *, available: int | None = None
) -> int:
    """The largest divisor of `lanes` whose need in bytes is below 0.9 of what is available.

    Without a number, all memory of the device (not what is free just now, so that a resumed run finds
    the same); a device that does not say holds all lanes.
    """
    if available is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" not in stats:
            return lanes
        available = int(stats["bytes_limit"])
    # A single lane has to fit: nothing is asked, which would be a compilation.
    sizes = [lanes // k for k in range(1, lanes) if lanes % k == 0]
    return next((size for size in sizes if needs(size) <= math.floor(0.9 * available)), 1)
