"""One step on the whole table of training pairs, and the loader that provides the tables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from train.engine.loader import Batches
from train.engine.optimizers import Optimizer
from train.engine.sharding import BY_LANE, EVERYWHERE, place
from train.engine.state import TrainState
from train.engine.step import Terms, UsedTerms, descend, information_terms
from train.modular.task import Task
from train.run.lanes import PAIRS, Lane, stream_key

Forward = Callable[[Any, Array], tuple[Array, Array, Array]]
"""`(params, pairs) -> (logits, features, head)`."""


def make_step(
    forward: Forward,
    optimizer: Optimizer,
    used: UsedTerms,
    *,
    information_steps: tuple[int, int],
    information_batch: int,
) -> Callable[..., tuple[TrainState, Terms]]:
    """The step of stacked lanes: `(states, pairs, labels) -> (states, terms)`.

    From the first of `information_steps` up to the last, information terms on `information_batch`
    pairs join the loss; the pairs are drawn anew for each step. All lanes are at the same step.
    """

    def step_with(used: UsedTerms) -> Callable[..., tuple[TrainState, Terms]]:
        def step(state: TrainState, pairs: Array, labels: Array) -> tuple[TrainState, Terms]:
            def loss(params: Any) -> tuple[Array, Terms]:
                logits, features, head = forward(params, pairs)
                ce = jnp.mean(precise_cross_entropy(logits, labels))
                # Zeros outside of the interval, so that both sides of the condition agree in shape.
                information = jnp.zeros(()), jnp.zeros(())
                if any(used):
                    key = jax.random.fold_in(stream_key(state.seed, state.copy, PAIRS), state.step)
                    size = min(information_batch, len(labels))
                    drawn = jax.random.choice(key, len(labels), (size,), False)
                    information = information_terms(features[drawn], head, labels[drawn], used)
                terms = Terms.of(ce, information, state.knobs)
                return terms.loss, terms

            gradient, terms = jax.grad(loss, has_aux=True)(state.params)
            return descend(state, gradient, optimizer), terms

        return each_lane(step)

    # Outside of `information_steps` the terms are not even computed.
    plain = step_with(UsedTerms(False, False))
    if not any(used):
        return plain
    informed, (first, last) = step_with(used), information_steps

    def step(states: TrainState, pairs: Array, labels: Array) -> tuple[TrainState, Terms]:
        # Outside of `vmap` a condition is a branch; inside, both sides would be computed.
        now = states.step[0]
        inside = (first <= now) & (now < last)
        return jax.lax.cond(inside, informed, plain, states, pairs, labels)

    return step


def each_lane(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with a leading axis of lanes on its arguments and results."""

    def stepped(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments)[0]) > 1:
            return jax.vmap(step)(*arguments)
        # Under `vmap`, rows that pairs pick take a CPU much longer, even if there is one lane.
        return jax.tree.map(lambda x: x[None], step(*jax.tree.map(lambda x: x[0], arguments)))

    return stepped


def precise_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy `[n]` with a small relative error, however small it is.

    It is `log(1 + Σ_{j≠y} exp(l_j - l_y))`, in which nothing cancels, unlike in `logsumexp(l) -
    l_y`. So a loss of 1e-9 and its gradient are right in float32; the usual form gives multiples of
    1e-7, or 0.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)
    others = jnp.arange(logits.shape[1])[None, :] != labels[:, None]
    return jax.nn.softplus(jax.nn.logsumexp(logits - of_label, axis=1, where=others))


class TableLoader:
    """Gives each lane all training pairs of its task at every step."""

    # A table is too small to be cut over several devices.
    streamed, divided = False, False
    sources_spec, indices_spec = BY_LANE, EVERYWHERE

    def __init__(self, tasks: Sequence[tuple[Lane, Task]], mesh: Mesh):
        self._tasks, self._mesh = tasks, mesh

    def batches(self, lanes: Sequence[Lane]) -> Batches:
        """The pairs and labels of these lanes, `[lanes, n, ...]`, the same at every step."""
        sources = place(self._stacked(lanes), self._mesh, BY_LANE)
        return lambda _, count: (sources, np.zeros((count, 0), np.int32))

    def example(self, lanes: Sequence[Lane]) -> tuple[Any, Any]:
        """The tables themselves."""
        return self._stacked(lanes), np.zeros((1, 0), np.int32)

    @staticmethod
    def take(sources: Any, indices: Any) -> tuple[Array, ...]:
        """All pairs and labels; there is nothing to choose."""
        del indices
        return sources

    def _stacked(self, lanes: Sequence[Lane]) -> tuple[Array, Array]:
        # All lanes of a trainer have equally many pairs to train on.
        tasks = [next(task for other, task in self._tasks if other == lane) for lane in lanes]
        size = tasks[0].train_size
        return (
            jnp.asarray(np.stack([task.pairs[:size] for task in tasks])),
            jnp.asarray(np.stack([task.labels[:size] for task in tasks])),
        )
