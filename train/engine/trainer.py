"""The trainer: groups of lanes go through one compiled call together, for many steps at a time."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from train.engine.loader import Loader
from train.engine.sharding import (
    BY_LANE,
    DATA,
    EVERYWHERE,
    LANES,
    by_hand,
    constrain,
    from_owners,
    local_values,
    mesh_of,
    over_lanes,
    owned,
    padded,
    padded_states,
    place,
    whole,
)
from train.engine.state import TrainState
from train.engine.step import Terms
from train.models import is_convolutional
from train.run import hosts
from train.run.errors import RunError
from train.run.lanes import Lane, concatenated
from train.run.loop import Metrics
from train.run.settings import ImageSettings

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


class Group(NamedTuple):
    """Lanes that go through a call together."""

    states: TrainState
    """Their stacked states; the last is repeated if the rows of the mesh would be uneven."""
    lanes: Sequence[Lane]


class Trainer:
    """Trains lanes of equal shapes, group after group, through one compiled call.

    Args:
        step: one step of stacked lanes, which is compiled here.
        loader: where the batches come from.
        lanes: the networks to train.
        states: the stacked states of all lanes, at the step to continue from.
        mesh: the devices, over which lanes and batches are divided.
        steps_per_call: steps in one call of the compiled function; if None, 100, or 1 where that is
            slow. With a streaming loader it is always 1.
        lanes_per_call: lanes in a group; if None, as many as fit in the memory of the devices, or
            one for each row of the mesh where several are slow.
        slow_together: whether the step is slow in a loop and for several lanes; see `is_slow`.
        unfinished: of a run that was interrupted between two events, what `unfinished` gave there.
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
        unfinished: dict[str, Any] | None = None,
    ):
        self._chunk = 1 if loader.streamed else steps_per_call or (1 if slow_together else 100)
        self._call: Any = make_call(step, loader, looped=self._chunk > 1, mesh=mesh)
        self.step = int(states.step[0])
        """The step that all lanes have reached."""
        self._loader, self._mesh = loader, mesh
        rows = mesh.shape[LANES]

        def needs(size: int) -> int:
            return self._needs(padded(lanes[:size], mesh), states)

        size = lanes_per_call or (
            rows if slow_together else largest_that_fits(len(lanes), needs, multiple_of=rows)
        )
        self.rows = [range(i, min(i + size, len(lanes))) for i in range(0, len(lanes), size)]
        """The lanes of each group."""
        self._lanes = [lanes[r.start : r.stop] for r in self.rows]
        # Copied, since a call donates the arrays that it is given.
        self._states = [
            place(padded_states(_copied(states, group), mesh), mesh, BY_LANE) for group in self.rows
        ]
        self._batches = [loader.batches(padded(group, mesh)) for group in self._lanes]
        # Calls that are started before the previous one is waited for, so that devices do not idle.
        # Not with several groups: their calls would run side by side and need memory for both.
        self._started: deque[tuple[int, Progress]] = deque()
        self._ahead = 1 if len(self._states) == 1 else 0
        # Each process has the sums of the lanes that it owns.
        self._owned = [owned(mesh, len(group)) for group in self._lanes]
        self._since = self.step
        # The leaves of the terms, and their structure once a call has told it.
        self._sums: list[list[np.ndarray]] = [[] for _ in self.rows]
        self._structure: Any = None
        if unfinished is not None:
            self._since, sums = unfinished["since"], unfinished["sums"]
            for group, (r, places) in enumerate(zip(self.rows, self._owned, strict=True)):
                of_lanes = [sums[r[i]] for i in places]
                self._sums[group] = list(np.asarray(of_lanes, np.float64).T)

    @property
    def largest_group(self) -> int:
        """The number of lanes in the largest group."""
        return max(map(len, self.rows))

    @property
    def groups(self) -> list[Group]:
        """The states of each group, and its lanes."""
        return [Group(*group) for group in zip(self._states, self._lanes, strict=True)]

    def advance(self, to: int) -> list[Metrics]:
        """Trains every lane up to step `to`; returns the mean terms of these steps, by lane.

        Raises:
            RunError: a term of the loss became non-finite.
        """
        while self.step < to:
            self.call(to)
        self.wait()
        return self.terms()

    def call(self, to: int) -> None:
        """Starts one call of each group, which ends at step `to` or before."""
        count = min(self._chunk, to - self.step)
        for group, batches in enumerate(self._batches):
            sources, indices = batches(self.step, count)
            indices = self._filled(indices)
            if self._mesh.size > 1:
                indices = place(indices, self._mesh, self._loader.indices_spec)
            self._states[group], progress = self._call(self._states[group], sources, indices, count)
            self._started.append((group, progress))
            self.wait(self._ahead)
        self.step += count

    def wait(self, most: int = 0) -> None:
        """Waits until at most so many calls are under way."""
        while len(self._started) > most:
            group, progress = self._started.popleft()
            lanes = self._owned[group]
            progress = jax.tree.map(lambda x, lanes=lanes: local_values(x, lanes), progress)
            self._stop_if_not_finite(group, progress)
            # In float64, because float32 would lose digits over many calls.
            leaves, self._structure = jax.tree.flatten(progress.total)
            before = self._sums[group] or [0.0] * len(leaves)
            self._sums[group] = [
                b + np.asarray(x, np.float64) for b, x in zip(before, leaves, strict=True)
            ]

    def terms(self) -> list[Metrics]:
        """The mean terms of the steps since the last call of this, by lane."""
        taken, found = self.step - self._since, {}
        for rows, lanes, sums in zip(self.rows, self._owned, self._sums, strict=True):
            # Without any step there are no terms.
            named = jax.tree.unflatten(self._structure, sums).named() if sums else {}
            for i, lane in enumerate(lanes):
                found[rows[lane]] = {f"step_{k}": float(v[i]) / taken for k, v in named.items()}
        self._since, self._sums = self.step, [[] for _ in self.rows]
        return from_owners(found)

    def unfinished(self) -> dict[str, Any]:
        """The sums of the terms since the last event, as plain values for a checkpoint."""
        found = {}
        for rows, lanes, sums in zip(self.rows, self._owned, self._sums, strict=True):
            for i, lane in enumerate(lanes):
                found[rows[lane]] = [float(leaf[i]) for leaf in sums]
        return {"since": self._since, "sums": from_owners(found)}

    def all_states(self) -> TrainState:
        """The stacked states of all lanes, complete in each process."""
        sizes = map(len, self.rows)
        return concatenated(
            [
                jax.tree.map(lambda x, size=size: x[:size], whole(states))
                for states, size in zip(self._states, sizes, strict=True)
            ]
        )

    def _needs(self, lanes: Sequence[Lane], states: TrainState) -> int:
        """Bytes that a call with these lanes takes on each device."""
        size, by_lane = len(lanes), NamedSharding(self._mesh, BY_LANE)
        states = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=by_lane), states
        )
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
        for number, step in enumerate(progress.bad_step):
            if step < 0:
                continue
            terms = {name: float(v[number]) for name, v in progress.bad_terms.named().items()}
            # The sum is non-finite whenever a term is, so only the term is named.
            bad = [k for k, v in terms.items() if not np.isfinite(v) and k != "loss"] or ["loss"]
            lane = self._lanes[group][self._owned[group][number]]
            where = ", ".join([f"seed {lane.seed}", *(f"{k} {v}" for k, v in lane.tags.items())])
            raise RunError(
                f"The loss became non-finite at step {step} ({where}): {', '.join(bad)} is "
                f"{', '.join(str(terms[k]) for k in bad)}. Try a smaller --learning-rate or weight "
                "of that term. The metrics up to the last evaluation are kept."
            )


def _copied(states: TrainState, rows: range) -> TrainState:
    return jax.tree.map(lambda x: jnp.copy(x[rows.start : rows.stop]), states)


def advance(
    trainers: Sequence[Trainer], to: int, *, stop: Callable[[], bool]
) -> list[Metrics] | None:
    """Trains the lanes of all trainers as `Trainer.advance` does, unless somebody asks to stop.

    All of them are at the same step, and take turns call by call, so that they stop together. The
    result is None if `stop`, which is asked before each call, ended the training before `to`.
    """
    while trainers[0].step < to:
        if stop():
            for trainer in trainers:
                trainer.wait()
            return None
        for trainer in trainers:
            trainer.call(to)
            # Their calls would need memory for all of them at once.
            if len(trainers) > 1:
                trainer.wait()
    for trainer in trainers:
        trainer.wait()
    return [terms for trainer in trainers for terms in trainer.terms()]


def make_call(
    step: Step,
    loader: Loader,
    *,
    looped: bool,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, Progress]]:
    """Compiles `(states, sources, indices, count) -> (states, progress)` for stacked lanes.

    Step i is given `loader.take(sources, indices[i])`, a batch for each lane. Only the first
    `count` rows of `indices` are used, so that a shorter call needs no compilation of its own. With
    `looped=False` there is one row and no loop. The states are donated. Each row of the mesh has
    its own lanes, and its devices divide their batches.
    """
    # Compiled as a part of the call; jitted here so that shape and body of the loop share a trace.
    step = jax.jit(step)

    def once(states: TrainState, sources: Any, indices: Any) -> tuple[TrainState, Progress]:
        batch = loader.take(sources, indices)
        if loader.divided:
            batch = tuple(constrain(x, mesh, None, DATA) for x in batch)
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

    sources, indices = (by_hand(spec) for spec in (loader.sources_spec, loader.indices_spec))
    arguments = BY_LANE, sources, indices, EVERYWHERE
    # Said of the results too: the compiler may call lanes on one row undivided, and the next call
    # would be compiled anew for that.
    call = over_lanes(call, mesh, arguments, BY_LANE)
    if mesh is None or mesh.size == 1:
        return jax.jit(call, donate_argnums=0)
    return jax.jit(call, donate_argnums=0, out_shardings=NamedSharding(mesh, BY_LANE))


def mesh_for(settings: ImageSettings, lanes: Sequence[Lane]) -> Mesh:
    """The mesh of a run on images, for as many of its lanes as go into one call.

    Raises:
        ValueError: the devices that the settings name cannot be used so.
    """
    return mesh_of(
        min(settings.lanes_per_call or len(lanes), len(lanes)),
        settings.batch_size,
        devices=settings.devices,
        lane_devices=settings.lane_devices,
    )


def is_slow(model: str) -> bool:
    """Whether a loop, or several networks at once, is much slower: for convolutions on a CPU."""
    return jax.default_backend() == "cpu" and is_convolutional(model)


def largest_that_fits(
    lanes: int, needs: Callable[[int], int], *, available: int | None = None, multiple_of: int = 1
) -> int:
    """The largest divisor of `lanes` for which `needs` is at most 0.9 of the available bytes.

    Divisors that are no multiple of `multiple_of` are left out, but for `lanes` itself; without any
    other the result is `multiple_of`.

    By default all memory of the device is available, and not only what is free just now, so that a
    resumed run gets the same answer. A device that does not report its memory holds all lanes.
    """
    if available is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        # All processes have to come to the same number.
        limits = hosts.gathered(stats.get("bytes_limit"))
        if None in limits:
            return lanes
        available = min(map(int, limits))
    # A single lane has to fit anyway, and asking would cost a compilation.
    sizes = [lanes // k for k in range(1, lanes) if lanes % k == 0]
    sizes = [size for size in sizes if size == lanes or size % multiple_of == 0]
    least = min(multiple_of, lanes)
    return next((size for size in sizes if needs(size) <= math.floor(0.9 * available)), least)
