"""What the semi-supervised algorithms share: what they see, what they give, and the losses they use."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array


class Views(NamedTuple):
    """One step's unlabelled samples as the network sees them."""

    weak: Array
    """Logits `[u, num_classes]` of the weakly augmented images."""
    strong: Array
    """Logits `[u, num_classes]` of the strongly augmented ones. Views that an algorithm does not use are
    empty, u = 0."""
    places: Array
    """Their indices `[u]` in the pool of unlabelled samples."""
    progress: Array
    """Share of all steps that are done, in [0, 1)."""


class Pseudo(NamedTuple):
    """What an algorithm makes of the views."""

    targets: Array
    """A distribution over classes for each sample, `[u, num_classes]`, without a gradient."""
    weights: Array
    """What each sample counts, `[u]` in [0, 1], without a gradient."""
    loss: Array
    """Mean over all u samples of weight times cross-entropy against the target."""
    penalty: Array
    """What is added besides, with its weight; 0 for most."""


class Algorithm(Protocol):
    """A frozen dataclass of an algorithm's settings, with pure functions of its state."""

    @property
    def uses(self) -> tuple[str, ...]:
        """Of the views `weak` and `strong`, those that go through the network."""
        ...

    def init(self, num_classes: int, pool: int) -> Any:
        """The state before the first step, for a pool of so many unlabelled samples."""

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """The state after the step's samples were seen, and what is to be learned of them."""
        ...

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The confidence `[num_classes]` from which a pseudo-label of each class counts."""
        ...


def option(default: float, text: str) -> Any:
    """A field of an algorithm that is an option of the commands, with its help text."""
    return dataclasses.field(default=default, metadata={"option": text})


def probabilities(logits: Array) -> Array:
    """Softmax without a gradient."""
    return jax.lax.stop_gradient(jax.nn.softmax(logits))


def one_hot_of(q: Array) -> Array:
    """The most probable class of each row, as a distribution."""
    return jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=q.dtype)


def weighted_cross_entropy(logits: Array, targets: Array, weights: Array) -> Array:
    """Mean over all samples, those of weight 0 counted in, of weight times cross-entropy."""
    return -jnp.mean(weights * jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def moving(old: Array, new: Array, momentum: float) -> Array:
    """`momentum · old + (1 - momentum) · new`."""
    return momentum * old + (1 - momentum) * new


def in_unit_interval(settings: Any, *names: str) -> None:
    """Raises `ValueError` for settings outside (0, 1]."""
    for name in names:
        if not 0 < getattr(settings, name) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {getattr(settings, name)}.")
