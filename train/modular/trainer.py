"""Full-batch training of many small networks at once: many steps in one compiled call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import mirjax
from train.engine.state import TrainState
from train.run.folder import RunError
from train.run.lanes import PAIRS, Lane, stream_key


class Terms(NamedTuple):
    """The loss of a step and what it is made of."""

    loss: Array
    cross_entropy: Array
    mutual_information: Array
    entropy_difference: Array


class Batch(NamedTuple):
    """What the lanes of a group train on, `[lanes, n, ...]`."""

    inputs: Any
    labels: Any


Forward = Callable[[Any, Array], tuple[Array, Array, Array]]
"""`(params, inputs) -> (logits, features, head)`."""


def precise_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy `[n]` with a small relative error, however small it is.

    `log(1 + Σ_{j≠y} exp(l_j - l_y))`: unlike `logsumexp(l) - l_y` it does not cancel, so that a loss of
    1e-9 and its gradient are right in float32, where the usual form gives multiples of 1e-7 or 0.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    others = jnp.arange(logits.shape[1])[None, :] != labels[:, None]
    return jax.nn.softplus(jax.nn.logsumexp(logits - own, axis=1, where=others))


class FullBatch:
    """Trains groups of lanes of equal shapes, each group under one `vmap`."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        states: TrainState,
        groups: Sequence[tuple[range, Batch]],
        forward: Forward,
        transform: optax.GradientTransformation,
        *,
        steps_per_call: int,
        information_steps: tuple[int, int],
        information_batch: int,
    ):
        self._lanes, self._chunk = lanes, steps_per_call
        self.rows = [rows for rows, _ in groups]
        self._batches = [batch for _, batch in groups]
        self.states = [jax.tree.map(lambda x, r=r: x[r.start : r.stop], states) for r in self.rows]
        self._step = int(states.step[0])
        self._calls = []
        for rows in self.rows:
            own = [lanes[i].knobs for i in rows]
            informed = any(knobs.mi_weight or knobs.ed_weight for knobs in own)
            window = information_steps if informed else (0, 0)
            self._calls.append(_make_call(forward, transform, window, information_batch))

    def advance(self, to: int) -> list[dict[str, float]]:
        """Trains every lane up to step `to`; the mean terms of the steps taken, for each lane."""
        totals = [np.zeros((len(rows), len(Terms._fields))) for rows in self.rows]
        taken = to - self._step
        while self._step < to:
            count = min(self._chunk, to - self._step)
            for group, batch in enumerate(self._batches):
                self.states[group], total = self._calls[group](self.states[group], batch, count)
                found = np.stack(jax.device_get(total), axis=1)
                self._stop_if_not_finite(group, found, self._step + count)
                totals[group] += found
            self._step += count
        return [
            {f"step_{name}": float(v) / taken for name, v in zip(Terms._fields, row, strict=True)}
            for row in np.concatenate(totals)
        ]

    def all_states(self) -> TrainState:
        """The states of all lanes, stacked."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.states)

    def _stop_if_not_finite(self, group: int, totals: np.ndarray, step: int) -> None:
        for row, values in zip(self.rows[group], totals, strict=True):
            if not np.all(np.isfinite(values)):
                raise RunError(
                    f"The loss became non-finite before step {step} ({self._lanes[row].name}). Try a "
                    "smaller --learning-rate. The metrics up to the last evaluation are kept."
                )


def _make_call(
    forward: Forward, transform: optax.GradientTransformation, window: tuple[int, int], size: int
) -> Callable[..., tuple[TrainState, Terms]]:
    """Compiles `(states, batch, count) -> (states, sums of terms)`; the states are donated."""

    def objective(params: Any, state: TrainState, batch: Batch, informed: bool) -> Any:
        logits, features, head = forward(params, batch.inputs)
        ce = jnp.mean(precise_cross_entropy(logits, batch.labels))
        if not informed:
            return ce, Terms(ce, ce, jnp.zeros_like(ce), jnp.zeros_like(ce))
        key = jax.random.fold_in(stream_key(state.seed, state.copy, PAIRS), state.step)
        drawn = jax.random.choice(key, len(batch.labels), (min(size, len(batch.labels)),), False)
        rows = features[drawn], head, batch.labels[drawn]
        mi = -mirjax.losses.mutual_information_loss(*rows, method="auto")
        ed = mirjax.losses.entropy_difference_loss(*rows, method="auto")
        total = ce - state.knobs.mi_weight * mi + state.knobs.ed_weight * ed
        return total, Terms(total, ce, mi, ed)

    def step(state: TrainState, batch: Batch, informed: bool) -> tuple[TrainState, Terms]:
        gradient, terms = jax.grad(objective, has_aux=True)(state.params, state, batch, informed)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        decay, rate = state.knobs.weight_decay, state.knobs.learning_rate
        # AdamW: the decay is beside the normalised gradient. Ten steps of warm-up.
        rate = rate * jnp.minimum((state.step + 1) / 10, 1.0)
        params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), terms

    plain, informed = (
        jax.vmap(lambda state, batch, i=i: step(state, batch, i)) for i in (False, True)
    )

    def body(_: Array, carry: tuple[TrainState, Terms], batch: Batch) -> tuple[TrainState, Terms]:
        states, total = carry
        if window[0] < window[1]:
            # All lanes are at the same step, so that this is a branch and no selection.
            now = states.step[0]
            inside = (window[0] <= now) & (now < window[1])
            states, terms = jax.lax.cond(inside, informed, plain, states, batch)
        else:
            states, terms = plain(states, batch)
        return states, jax.tree.map(jnp.add, total, terms)

    def call(states: TrainState, batch: Batch, count: int) -> tuple[TrainState, Terms]:
        zero = Terms(*(jnp.zeros(states.step.shape) for _ in Terms._fields))
        return jax.lax.fori_loop(0, count, lambda i, c: body(i, c, batch), (states, zero))

    return jax.jit(call, donate_argnums=0)
