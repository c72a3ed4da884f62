"""Settings of semi-supervised runs, and of comparisons of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from train.run.lanes import Lane, lanes_of
from train.run.settings import Settings
from train.ssl.algorithms import Algorithm, algorithm
from train.ssl.step import Part


@dataclasses.dataclass(frozen=True)
class Semisupervised(Settings):
    """One semi-supervised algorithm on a data set of which few samples keep their labels."""

    algorithm: Literal[
        "supervised", "pseudo_label", "uda", "fixmatch", "flexmatch", "softmatch", "freematch"
    ] = "freematch"
    """What is learned of the unlabelled images; `supervised` does not read them."""
    learning_rate: float = 0.03
    """At the start; `cos(7 π k / 16 K)` of it at step k of K."""
    labels: int | None = 40
    """Samples that keep their labels, as many of each class, drawn by the seed; all, if None."""
    unlabelled_ratio: int = 7
    """Unlabelled samples a step, as a multiple of `batch_size`."""
    unlabelled_weight: float = 1.0
    """Of the loss on unlabelled samples."""
    threshold: float | None = None
    """Confidence from which on pseudo-labels count; the algorithm's own, if not given."""
    temperature: float | None = None
    """Of the targets of `uda`."""
    statistics_momentum: float = 0.999
    """Weight of the old statistics in `softmatch` and `freematch`; short runs need less."""
    fairness_weight: float | None = None
    """Of the fairness term of `freematch`; 0.01, if not given."""
    augment: bool = True
    """Weak augmentation: reflect-pad by an eighth of the side, crop, flip."""
    flip: bool | None = None
    """Whether weak augmentation flips; if not given, all data sets but those of digits."""
    average_momentum: float = 0.999
    """Of the moving average of the weights, which is what is evaluated."""
    mi_weight: float = 0.0
    """Weight of the mutual information of features and head rows, in nats (maximised)."""
    ed_weight: float = 0.0
    """Weight of the difference of their entropies, in nats (minimised)."""
    information_on: tuple[Part, ...] = ("labelled", "weak")
    """Samples of these two terms, together."""
    information_samples: Literal["passed", "all"] = "passed"
    """Unlabelled ones by the weight that the algorithm gives them, or all alike."""
    information_rows: Literal["hard", "soft"] = "hard"
    """Their rows of the head: of the pseudo-label, or the mean by the weak prediction."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side that the two terms do not train."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("unlabelled_ratio", "labels")
        for name in ("average_momentum", "statistics_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        self.distinct("information_on")
        if self.unlabelled_weight < 0:
            raise ValueError(
                f"unlabelled_weight must not be negative, got {self.unlabelled_weight}."
            )
        for name in ("train_size", "eval_layers"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is for supervised training; give --labels instead of a size."
                )
        self.method()
        if self.mi_weight or self.ed_weight:
            self.fits_terms()

    def fits_terms(self) -> None:
        """Raises `ValueError` if the information terms are on samples that the algorithm does not use."""
        uses = ("labelled", *self.method().uses)
        if not set(self.information_on) <= set(uses):
            raise ValueError(
                f"information_on must be of {', '.join(uses)} with {self.algorithm}, got "
                f"{', '.join(self.information_on)}."
            )

    def method(self) -> Algorithm:
        """The algorithm with its settings."""
        adapts = self.algorithm in ("softmatch", "freematch")
        return algorithm(
            self.algorithm,
            threshold=self.threshold,
            temperature=self.temperature,
            momentum=self.statistics_momentum if adapts else None,
            fairness_weight=self.fairness_weight,
        )


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
