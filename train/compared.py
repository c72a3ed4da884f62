"""What comparisons of semi-supervised runs share: the settings of each run, the lanes with a term."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from train.lanes import Lane, lanes_of
from train.semisupervised import Semisupervised

C = TypeVar("C", bound="Compared")


@dataclasses.dataclass(frozen=True)
class Compared(Semisupervised):
    """Several semi-supervised runs beside each other."""

    weights: tuple[float, ...] = (0.1,)
    """Of the information terms, one at a time."""

    def __post_init__(self):
        if self.mi_weight or self.ed_weight:
            raise ValueError("the weights are what is compared here: give --weights instead.")
        super().__post_init__()
        self.distinct("weights")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, got {self.weights}.")

    def single(self, folder: str, **changes: Any) -> Semisupervised:
        """The settings of one of the runs, in a folder below `out`."""
        return Semisupervised(**_values(self) | changes | {"out": self.out / folder})

    def known(self, name: str, there: Mapping[str, Any]) -> None:
        """Raises `ValueError` if a setting names what there is not, or something twice."""
        self.distinct(name)
        unknown = [value for value in getattr(self, name) if value not in there]
        if unknown:
            raise ValueError(
                f"{name} {', '.join(unknown)} are unknown. There are: {', '.join(there)}."
            )


def preset_of(kind: type[C], base: Semisupervised, **changes: Any) -> C:
    """The settings of a single run as those of a comparison."""
    return kind(**_values(base) | changes)


def lanes(settings: Semisupervised, weights: Sequence[float], *, plain: bool = True) -> list[Lane]:
    """A lane for each seed and each term and weight, and without a term if `plain`."""
    kinds: list[tuple[str, float, dict[str, float]]] = [("", 0.0, {})] if plain else []
    for weight in weights:
        kinds += [("MI", weight, {"mi_weight": weight}), ("ED", weight, {"ed_weight": weight})]
    return [
        dataclasses.replace(
            lane, knobs=lane.knobs._replace(**knobs), tags={"terms": name, "weight": weight}
        )
        for lane in lanes_of(settings)
        for name, weight, knobs in kinds
    ]


def _values(settings: Semisupervised) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(Semisupervised)}
