"""What semi-supervised algorithms share: their input, their output, and their common losses."""

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
    """Logits `[u, num_classes]` of the strongly augmented images. Views that an algorithm does not
    use are empty (u = 0)."""
    places: Array
    """Indices `[u]` of the samples in the pool of unlabelled samples."""
    progress: Array
    """The share of all steps that are done, in [0, 1)."""


class Pseudo(NamedTuple):
    """The pseudo-labels that an algorithm derives from the views, and their loss."""

    targets: Array
    """A distribution over classes for each sample, `[u, num_classes]`, without a gradient."""
    weights: Array
    """The weights of the samples, `[u]` in [0, 1], without a gradient."""
    loss: Array
    """The mean over all u samples of weight times cross-entropy with the target."""
    penalty: Array
    """What else is added to the loss, already weighted; 0 for most algorithms."""


class Algorithm(Protocol):
    """A frozen dataclass of the settings of an algorithm, with pure functions of its state."""

    @property
    def uses(self) -> tuple[str, ...]:
        """The views, out of `weak` and `strong`, that go through the network."""
        ...

    def init(self, num_classes: int, pool: int) -> Any:
        """The state before the first step, for a pool with this number of unlabelled samples."""

    def step(self, state: Any, views: Views) -> tuple[Any, Pseudo]:
        """The state after the samples of the step, and what is to be learned from them."""
        ...

    def thresholds(self, state: Any, num_classes: int) -> Array:
        """The confidence `[num_classes]` from which pseudo-labels of each class count."""
        ...


def option(default: float, text: str) -> Any:
    """A field of an algorithm that becomes an option of the commands, with its help text."""
    return dataclasses.field(default=default, metadata={"option": text})


def probabilities(logits: Array) -> Array:
    """The softmax, without a gradient."""
    return jax.lax.stop_gradient(jax.nn.softmax(logits))


def one_hot_of(q: Array) -> Array:
    """The most probable class of each row, as a distribution."""
    return jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=q.dtype)


def weighted_cross_entropy(logits: Array, targets: Array, weights: Array) -> Array:
    """The mean over all samples, including those of weight 0, of weight times cross-entropy."""
    return -jnp.mean(weights * jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def moving(old: Array, new: Array, momentum: float) -> Array:
    """`momentum · old + (1 - momentum) · new`."""
    return momentum * old + (1 - momentum) * new


def in_unit_interval(settings: object, *names: str) -> None:
    """Raises `ValueError` for settings outside (0, 1]."""
    for name in names:
        if not 0 < getattr(settings, name) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {getattr(settings, name)}.")
