"""Lanes: what one compiled step trains side by side, each with a seed and knobs of its own."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.run.settings import RunSettings

# What a seed is used for. Draws of one purpose never depend on those of another.
INIT, ORDER, AUGMENT, PAIRS = 0, 1, 2, 3
_OFFSET_OF_COPIES = 16


class Knobs(NamedTuple):
    """Numbers that lanes of one compiled step may differ in."""

    learning_rate: Any
    """At its peak."""
    weight_decay: Any
    smoothing: Any = 0.0
    """ε of label smoothing."""
    mi_weight: Any = 0.0
    ed_weight: Any = 0.0


@dataclasses.dataclass(frozen=True)
class Lane:
    """One network in training."""

    seed: int
    """Of the initial weights, of the order of the data and of the augmentation."""
    knobs: Knobs
    tags: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    """What tells it from other lanes of the same seed, in the metrics."""
    copy: int = 0
    """Copies of one seed start from the same weights and draw order and augmentation on their own..."""
    branch_step: int = 0
    """... from this step on; before it they draw what copy 0 draws."""

    @property
    def name(self) -> str:
        """For folders: the tags and the seed."""
        return "-".join([*(f"{k}{v}" for k, v in self.tags.items()), f"seed{self.seed}"])

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the settings file."""
        return dataclasses.asdict(self) | {"knobs": self.knobs._asdict(), "tags": dict(self.tags)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Lane":
        """The lane that `as_json` wrote."""
        fields: dict[str, Any] = {**values, "knobs": Knobs(**values["knobs"])}
        return cls(**fields)


def lanes_of(settings: RunSettings, **swept: Sequence[float]) -> list[Lane]:
    """A lane for each seed and each combination of the swept knobs, which become its tags."""
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
    """The states of all lanes, stacked, from those of the groups that are trained together."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)


def host_seed(seed: int, purpose: int) -> int:
    """The seed of what NumPy or grain draws for one purpose of a seed, below 2^32."""
    return int(np.random.SeedSequence((seed, purpose)).generate_state(1)[0])


def stream_key(seed: Array, copy: Array, purpose: int) -> Array:
    """The key of what a copy of a seed draws for one purpose."""
    key = jax.random.key(seed)
    other = jax.random.fold_in(jax.random.fold_in(key, _OFFSET_OF_COPIES + purpose), copy)
    return jnp.where(copy == 0, jax.random.fold_in(key, purpose), other)
