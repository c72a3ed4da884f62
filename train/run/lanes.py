"""Lanes: the networks that one compiled step trains side by side, with seeds and knobs of their
own.

Also where their random numbers come from: keys on the device, seeds for NumPy and grain.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.run.settings import RunSettings

# What a seed is used for. Draws for one purpose never depend on those for another.
INIT, ORDER, AUGMENT, PAIRS = 0, 1, 2, 3
# Above all purposes, so that the keys of copies differ from those of the first network.
_OFFSET_OF_COPIES = 16


class Knobs(NamedTuple):
    """Numbers in which lanes of one compiled step may differ; arrays once they are in a state."""

    learning_rate: float | Array
    """The peak of its schedule."""
    weight_decay: float | Array
    smoothing: float | Array = 0.0
    """ε of label smoothing."""
    mi_weight: float | Array = 0.0
    ed_weight: float | Array = 0.0


@dataclasses.dataclass(frozen=True)
class Lane:
    """One network in training."""

    seed: int
    """Decides the initial weights, the order of the data and the augmentation."""
    knobs: Knobs
    tags: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    """Values by which the metrics tell lanes of the same seed apart."""
    copy: int = 0
    """Copies of one seed start from the same weights but draw their order of the data and their
    augmentation independently, from `branch_step` on."""
    branch_step: int = 0
    """The step at which a copy branches off; before it, it draws what copy 0 draws."""

    @property
    def name(self) -> str:
        """The tags and the seed, as the name of a folder."""
        return "-".join([*(f"{k}{v}" for k, v in self.tags.items()), f"seed{self.seed}"])

    def as_json(self) -> dict[str, Any]:
        """The lane as plain values, for the settings file."""
        return dataclasses.asdict(self) | {"knobs": self.knobs._asdict(), "tags": dict(self.tags)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Lane":
        """The lane that `as_json` wrote."""
        fields: dict[str, Any] = {**values, "knobs": Knobs(**values["knobs"])}
        return cls(**fields)


def lanes_of(settings: RunSettings, **swept: Sequence[float]) -> list[Lane]:
    """A lane for each seed and each combination of the swept knobs, which become its tags."""
    # A swept knob is no setting of its command; the others that it lacks keep their defaults.
    fixed = {name: getattr(settings, name) for name in Knobs._fields if hasattr(settings, name)}
    combinations = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())
    ]
    return [
        Lane(seed, Knobs(**fixed | tags), tags)
        for tags in combinations
        for seed in settings.seed_range()
    ]


def take_lane(states: Any, place: int) -> Any:
    """The state of one lane of a stacked tree."""
    return jax.tree.map(lambda x: x[place], states)


def concatenated(groups: Sequence[Any]) -> Any:
    """The stacked states of all lanes, from the stacked states of each group."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)


def host_seed(seed: int, purpose: int) -> int:
    """The seed, below 2^32, of what NumPy or grain draws for one purpose."""
    return int(np.random.SeedSequence((seed, purpose)).generate_state(1)[0])


def stream_key(seed: Array, copy: Array, purpose: int) -> Array:
    """The key of what a copy of a seed draws for one purpose."""
    # Copy 0 draws what the seed would draw without any copies.
    key = jax.random.key(seed)
    other = jax.random.fold_in(jax.random.fold_in(key, _OFFSET_OF_COPIES + purpose), copy)
    return jnp.where(copy == 0, jax.random.fold_in(key, purpose), other)
