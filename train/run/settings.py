"""Settings that training runs share, in parts, so that a command takes only those that it uses."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class Checked:
    """Checks that settings share; each part checks its fields in `__post_init__`, and calls the next."""

    refused: ClassVar[dict[str, str]] = {}
    """Options that users of other commands expect here, and what to give instead."""

    def __post_init__(self):
        """The end of the chain."""

    def at_least_one(self, *names: str) -> None:
        """Raises `ValueError` for settings below 1; None means that none is given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def distinct(self, name: str) -> None:
        """Raises `ValueError` if a swept setting is empty or names a value twice."""
        values = getattr(self, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be different numbers, got {values}.")


@dataclasses.dataclass(frozen=True)
class RunSettings(Checked):
    """What every run of steps needs to know, whatever it trains."""

    steps: int = 2000
    """Number of optimizer steps."""
    seeds: int = 1
    """Number of seeds. They are trained side by side."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    eval_every: int = 200
    """Steps between evaluations on the whole test set."""
    steps_per_call: int | None = None
    """Steps in one call of the compiled function; if not given, 1 for convolutions on a CPU, else 100.
    Does not change results beyond rounding."""
    lanes_per_call: int | None = None
    """Networks (seeds, and what an experiment sweeps) under one `vmap`; the others go through the same
    compiled step after them. If not given: as many as fit in the device's memory, but 1 for convolutions
    on a CPU, where batching them is several times slower."""
    out: Path = Path("runs/supervised")
    """Folder of this run, for settings, metrics, events, checkpoints and pictures."""
    resume: bool = False
    """Continue from the last checkpoint in `out`, or start if there is none."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, a multiple of `eval_every` and equal to it if not given; 0 writes a
    single one at the end. Only the last one is kept."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; needs `pip install wandb`."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("steps", "seeds", "eval_every", "steps_per_call", "lanes_per_call")
        every = self.checkpoint_every or 0
        if every < 0 or every % self.eval_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of eval_every = {self.eval_every} (or 0), "
                f"got {every}."
            )

    def seed_range(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def events(self) -> list[int]:
        """The steps at which the lanes are evaluated, after the start."""
        return [*range(self.eval_every, self.steps, self.eval_every), self.steps]

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is written at this event."""
        every = self.eval_every if self.checkpoint_every is None else self.checkpoint_every
        return step == self.steps or (step > 0 and every > 0 and step % every == 0)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the settings file."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class ModelSettings(Checked):
    """Which network."""

    model: str = "mlp"
    """The network: mlp, conv or wrn-DEPTH-WIDTH, for instance wrn-28-2."""
    batch_norm_momentum: float = 0.9
    """Weight of the old statistics in batch norm. The published 0.999 needs thousands of steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of convolutions and matrix products. Weights, batch statistics, features, losses and
    metrics are always float32."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.batch_norm_momentum < 1:
            raise ValueError(
                f"batch_norm_momentum must be in [0, 1), got {self.batch_norm_momentum}."
            )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Checked):
    """How a network is measured on a split."""

    metric_batch: int = 64
    """Batch size of the metrics that are averaged over batches, as published."""
    eval_train: bool = True
    """Whether each evaluation covers the training split too."""
    eval_batch: int = 500
    """Samples in one forward pass of an evaluation."""
    memory_limit_mib: int = 2048
    """Splits up to this size are kept on the device, larger ones are streamed from disk. Features up to
    this size are kept during an evaluation, for NC4."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("metric_batch", "eval_batch")


@dataclasses.dataclass(frozen=True)
class ImageSettings(EvaluationSettings, ModelSettings, RunSettings):
    """What every training run on images needs to know."""

    dataset: str = "digits"
    """A TFDS name (cifar10, cifar100, stl10, svhn_cropped, fashion_mnist, mnist), `digits`, `folder:PATH`
    or `npz:PATH`."""
    data_dir: str | None = None
    """Folder of the prepared TFDS data; TFDS's own default if not given."""
    image_size: int | None = None
    """Side in pixels to which the images of `folder:PATH` are scaled and cropped."""
    augment: bool = False
    """Augment on the device: reflect-pad by 4, crop at random and flip half of the images."""
    batch_size: int = 64
    """Samples in the batch of a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of the kernels. Biases and batch norm have none."""
    devices: int | None = None
    """Number of devices over which each batch is cut; if not given, the largest that divides it."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("batch_size", "devices")


@dataclasses.dataclass(frozen=True)
class LearningRate(Checked):
    """The learning rate, where it is not what an experiment sweeps."""

    learning_rate: float = 0.03
    """Peak learning rate of SGD, decayed to 0 by a cosine."""


@dataclasses.dataclass(frozen=True)
class InformationWeights(Checked):
    """The weights of the information terms, where they are not what an experiment sweeps."""

    mi_weight: float = 0.0
    """Weight of the mutual information of features and head rows of a batch, in nats (maximised)."""
    ed_weight: float = 0.0
    """Weight of the difference of the entropies of features and head rows, in nats (minimised)."""


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Checked):
    """Label smoothing, where it is not what an experiment sweeps."""

    smoothing: float = 0.0
    """ε of label smoothing: the cross-entropy is against (1 - ε) y + ε / C."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}.")


# The published training on CIFAR-10: SGD of 0.03 with a cosine, batches of 64, WideResNet-28-2. The
# rest is the default of `ImageSettings`.
PAPER: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "wrn-28-2",
    "augment": True,
    "batch_norm_momentum": 0.999,
    "steps": 2**20,
}

# A small network on CIFAR-10 that two cores train in minutes, measured on the test set.
SMALL: dict[str, Any] = {"dataset": "cifar10", "model": "conv", "eval_train": False}
