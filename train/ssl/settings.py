"""Settings of semi-supervised runs, and of comparisons of them."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from train.engine.step import TermForm
from train.run.lanes import Lane, lanes_of
from train.run.settings import ImageSettings, InformationForm, InformationWeights
from train.ssl.algorithms import (
    ALGORITHMS,
    OPTIONS,
    Algorithm,
    AlgorithmName,
    AlgorithmOptions,
    algorithm,
)
from train.ssl.step import Part, TermPlacement

# Their mirror images would be other signs or none.
_NOT_FLIPPED = ("digits", "mnist", "svhn_cropped")
_NOT_HERE = "{} is for supervised training; give --labels instead of a size."


@dataclasses.dataclass(frozen=True)
class SemisupervisedTraining(InformationForm, AlgorithmOptions, ImageSettings):
    """Training in which few samples keep their labels, whatever the algorithm and the weights."""

    refused: ClassVar[dict[str, str]] = {
        name: _NOT_HERE.format(name) for name in ("train_size", "eval_layers")
    }

    memory_limit_mib: int = 2048
    """Largest size of a training split or of its unlabelled images, all of which are kept on the
    device; a larger test split is streamed. Features up to this size are kept during an
    evaluation."""
    eval_train: bool = True
    """Whether each evaluation also covers the samples whose labels training does not see."""
    learning_rate: float = 0.03
    """Learning rate at the start; at step k of K it is multiplied by `cos(7 π k / 16 K)`."""
    unlabelled_ratio: int = 7
    """Number of unlabelled samples in a step, as a multiple of `batch_size`."""
    unlabelled_weight: float = 1.0
    """Weight of the loss on unlabelled samples."""
    statistics_momentum: float = 0.999
    """Weight of the old statistics in `softmatch` and `freematch`; short runs need a lower one."""
    augment: bool = True
    """Whether weak augmentation is used: reflect-pad by an eighth of the side, crop at random and
    flip half of the images. Strong views always get strong augmentation as well."""
    flip: bool | None = None
    """Whether weak augmentation flips images. If not given, all but digits are."""
    average_momentum: float = 0.999
    """Momentum of the moving average of the weights. The averaged weights are evaluated."""
    information_on: tuple[Part, ...] = ("labelled", "weak")
    """The samples (labelled, weak, strong) that the information terms take, as one set."""
    information_samples: Literal["passed", "all"] = "passed"
    """How unlabelled samples count in these terms: by the weight that the algorithm gives them
    (passed), or all equally (all)."""
    information_rows: Literal["hard", "soft"] = "hard"
    """The row of the head that these terms pair with an unlabelled sample: that of its pseudo-label
    (hard), or the mean of all rows, weighted by the weak prediction (soft)."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side (features or head) that the information terms do not train. If not given, they train
    both."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("unlabelled_ratio")
        for name in ("average_momentum", "statistics_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        self.distinct("information_on")
        if self.unlabelled_weight < 0:
            raise ValueError(
                f"unlabelled_weight must not be negative, got {self.unlabelled_weight}."
            )

    def placement(self) -> TermPlacement:
        """The samples and rows with which the information terms are computed."""
        return TermPlacement(
            self.information_on,
            self.information_samples,
            self.information_rows,
            self.stop_gradient,
            TermForm(self.order, self.debiased),
        )

    def flips(self, dataset: str) -> bool:
        """Whether weak augmentation flips the images of this data set."""
        return dataset not in _NOT_FLIPPED if self.flip is None else self.flip


@dataclasses.dataclass(frozen=True)
class OneAlgorithm(SemisupervisedTraining):
    """One algorithm with one number of labels."""

    algorithm: AlgorithmName = "freematch"
    """The algorithm that learns from the unlabelled images; `supervised` ignores them."""
    labels: int | None = 40
    """Number of samples that keep their labels, equally many of each class, drawn with the seed.
    With None, all samples keep theirs."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("labels")
        # An option that the algorithm lacks, or a value that it refuses, is an error here.
        self.method()

    def method(self) -> Algorithm:
        """The algorithm with its options."""
        options = {name: getattr(self, name) for name in OPTIONS}
        # Not an option, for it has a default here: algorithms without statistics do without it.
        if "statistics_momentum" in {
            f.name for f in dataclasses.fields(ALGORITHMS[self.algorithm])
        }:
            options["statistics_momentum"] = self.statistics_momentum
        return algorithm(self.algorithm, **options)

    def unlabelled_batch(self) -> int:
        """The number of unlabelled samples in a step."""
        return self.unlabelled_ratio * self.batch_size if self.method().uses else 0

    def fits_terms(self) -> None:
        """Raises `ValueError` if the terms need samples that the algorithm does not use."""
        uses = ("labelled", *self.method().uses)
        if not set(self.information_on) <= set(uses):
            raise ValueError(
                f"information_on must be of {', '.join(uses)} with {self.algorithm}, got "
                f"{', '.join(self.information_on)}."
            )


@dataclasses.dataclass(frozen=True)
class Semisupervised(OneAlgorithm, InformationWeights):
    """One semi-supervised algorithm on a data set in which few samples keep their labels."""

    def __post_init__(self):
        super().__post_init__()
        if self.mi_weight or self.ed_weight:
            self.fits_terms()


@dataclasses.dataclass(frozen=True)
class Comparison(SemisupervisedTraining):
    """Several semi-supervised runs that are compared."""

    refused: ClassVar[dict[str, str]] = {
        **SemisupervisedTraining.refused,
        **dict.fromkeys(
            ("mi_weight", "ed_weight"),
            "the weights are what is compared here: give --weights instead.",
        ),
    }

    weights: tuple[float, ...] = (0.1,)
    """Weights of the information terms. Each run uses one term with one of these weights."""

    def __post_init__(self):
        super().__post_init__()
        self.distinct("weights")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive numbers, got {self.weights}.")

    def single(self, folder: str, **changes: Any) -> Semisupervised:
        """The settings of one of the runs, whose folder is below `out`."""
        return Semisupervised(**shared(self, Semisupervised) | changes | {"out": self.out / folder})

    def known(self, name: str, there: Collection[str]) -> None:
        """Raises `ValueError` if a setting names something unknown, or something twice."""
        self.distinct(name)
        unknown = [value for value in getattr(self, name) if value not in there]
        if unknown:
            raise ValueError(
                f"{name} {', '.join(unknown)} are unknown. There are: {', '.join(there)}."
            )


C = TypeVar("C", bound=Comparison)


def comparison_of(kind: type[C], base: Semisupervised, **changes: Any) -> C:
    """The settings of a comparison, taken from those of a single run."""
    return kind(**shared(base, kind) | changes)


def shared(settings: SemisupervisedTraining, kind: type[SemisupervisedTraining]) -> dict[str, Any]:
    """The values of the settings that the other kind also has."""
    names = {field.name for field in dataclasses.fields(settings)}
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(kind) if f.name in names}


def lanes_with_terms(
    settings: SemisupervisedTraining, weights: Sequence[float], *, plain: bool = True
) -> list[Lane]:
    """A lane for each seed, term and weight, and with `plain` one without a term for each seed."""
    kinds: list[tuple[str, float, dict[str, float]]] = [("", 0.0, {})] if plain else []
    for weight in weights:
        kinds += [("MI", weight, {"mi_weight": weight}), ("ED", weight, {"ed_weight": weight})]
    # Seeds outermost, so that lanes that draw the same batches are close together.
    return [
        dataclasses.replace(
            lane, knobs=lane.knobs._replace(**knobs), tags={"terms": name, "weight": weight}
        )
        for lane in lanes_of(settings)
        for name, weight, knobs in kinds
    ]
