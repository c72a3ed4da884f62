"""Settings that training runs share, in parts, so that a command has only those that it uses."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class Checked:
    """Shared checks: the `__post_init__` of each part checks its fields, then calls the next."""

    refused: ClassVar[dict[str, str]] = {}
    """Options that users may expect from other commands, and what to give instead."""

    def __post_init__(self):
        """Ends the chain of checks."""

    def at_least_one(self, *names: str) -> None:
        """Raises `ValueError` for settings below 1; None stands for a setting that is not given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def distinct(self, name: str) -> None:
        """Raises `ValueError` if a swept setting is empty or has the same value twice."""
        values = getattr(self, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be different numbers, got {values}.")


@dataclasses.dataclass(frozen=True)
class RunSettings(Checked):
    """What every training run needs to know, whatever it trains."""

    steps: int = 2000
    """Number of optimizer steps."""
    seeds: int = 1
    """Number of seeds. They are trained side by side."""
    first_seed: int = 0
    """The first seed, at least 0; the others follow it, all of them below 2^31."""
    eval_every: int = 200
    """Steps between two evaluations on the whole test set."""
    steps_per_call: int | None = None
    """Steps in one call of the compiled function. If not given: 1 for convolutions on a CPU,
    otherwise 100. It does not change results beyond rounding."""
    lanes_per_call: int | None = None
    """Networks (all seeds of all settings that are compared) that are trained at once; the others
    go through the same compiled step after them. If not given: as many as fit in the memory of the
    device, but 1 for convolutions on a CPU, where several at once are several times slower."""
    out: Path = Path("runs/supervised")
    """Folder of this run, for settings, metrics, TensorBoard events, checkpoints and pictures."""
    resume: bool = False
    """Whether to continue from the last checkpoint in `out`. If there is none, the run starts from
    the beginning."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, a multiple of `eval_every` and equal to it if not given; 0
    writes a single checkpoint at the end. Only the last one is kept."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; this needs `pip install wandb`."""
    mirror: str | None = None
    """Place to which the run's folder is copied after each checkpoint: gs://BUCKET/PATH, s3://...
    or what else fsspec knows. With `resume` and an empty `out` the run is brought back from there.
    This needs `pip install gcsfs`, or the package of the other place."""
    devices: int | None = None
    """Number of devices of all hosts to use. If not given, as many as can be used: networks that
    are trained at once lie on different devices, and what is left divides the batch."""
    lane_devices: int | None = None
    """Number of devices over which the networks that are trained at once are divided; the others
    divide the batch. If not given, as many as there are networks."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for runs of several processes that are started by hand. A TPU slice,
    SLURM and Open MPI need nothing."""
    processes: int | None = None
    """Number of processes of the run, with `coordinator`."""
    process: int | None = None
    """Number of this process, from 0, with `coordinator`."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("steps", "seeds", "eval_every", "steps_per_call", "lanes_per_call")
        self.at_least_one("devices", "lane_devices", "processes")
        given = [self.coordinator, self.processes, self.process]
        if None in given and given != [None] * 3:
            raise ValueError(
                "coordinator, processes and process belong together: give all of them or none."
            )
        if self.process is not None and not 0 <= self.process < (self.processes or 1):
            raise ValueError(
                f"process must be at least 0 and below processes = {self.processes}, got "
                f"{self.process}."
            )
        host, _, port = (self.coordinator or "host:1").rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError(f"coordinator must be HOST:PORT, got {self.coordinator!r}.")
        # Seeds are int32 on the device, and NumPy takes no negative ones.
        if not 0 <= self.first_seed <= 2**31 - self.seeds:
            raise ValueError(
                f"first_seed must be at least 0, and first_seed + seeds at most {2**31}, got "
                f"{self.first_seed}."
            )
        every = self.checkpoint_every or 0
        if every < 0 or every % self.eval_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of eval_every = {self.eval_every} (or 0), "
                f"got {every}."
            )

    def seed_range(self) -> range:
        """The seeds of the run."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def events(self) -> list[int]:
        """The steps after 0 at which the lanes are evaluated; the last step is one of them."""
        return [*range(self.eval_every, self.steps, self.eval_every), self.steps]

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is written at this step."""
        every = self.eval_every if self.checkpoint_every is None else self.checkpoint_every
        return step == self.steps or (step > 0 and every > 0 and step % every == 0)

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values, for the settings file."""
        values = dataclasses.asdict(self)
        # Where this process runs is no property of the run.
        for name in ("coordinator", "processes", "process"):
            del values[name]
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class ModelSettings(Checked):
    """Which network is trained."""

    model: str = "mlp"
    """The network: mlp, conv or wrn-DEPTH-WIDTH, for instance wrn-28-2."""
    batch_norm_momentum: float = 0.9
    """Weight of the old statistics in batch norm. The published 0.999 needs thousands of steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of convolutions and matrix products. Weights, batch statistics, features, losses
    and metrics are always float32."""

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
    """Whether each evaluation also covers the training split."""
    eval_batch: int = 500
    """Samples in one forward pass of an evaluation."""
    memory_limit_mib: int = 2048
    """Splits of at most this many MiB are kept on the device; larger ones are streamed from disk.
    Features of at most this size are kept during an evaluation; larger ones take a second pass for
    NC4."""
    exact_side: int | None = None
    """Largest side of a matrix that is decomposed for MIR and HDR of a whole set; larger ones are
    estimated. If not given, 4096, but 2048 on a TPU, where they are compiled for many minutes."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("metric_batch", "eval_batch", "exact_side")


@dataclasses.dataclass(frozen=True)
class ImageSettings(EvaluationSettings, ModelSettings, RunSettings):
    """What every training run on images needs to know."""

    dataset: str = "digits"
    """The data set: `digits`, `folder:PATH`, `npz:PATH` (or `npz:gs://...`) or one in the layout of
    TFDS (cifar10, cifar100, stl10, svhn_cropped, fashion_mnist, mnist)."""
    data_dir: str | None = None
    """Folder of the prepared data sets, or gs://... and the like; if not given, the default folder
    of TFDS."""
    image_size: int | None = None
    """Side in pixels to which the images of `folder:PATH` are scaled and cropped."""
    augment: bool = False
    """Whether to augment images: reflect-pad by 4 pixels, crop at random and flip half of them."""
    batch_size: int = 64
    """Samples in the batch of each step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of the kernels; biases and batch norm do not decay."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("batch_size")


@dataclasses.dataclass(frozen=True)
class LearningRate(Checked):
    """The learning rate, for commands that do not sweep it."""

    learning_rate: float = 0.03
    """Peak learning rate of SGD, which falls to 0 along a cosine."""


@dataclasses.dataclass(frozen=True)
class InformationWeights(Checked):
    """The weights of the information terms, for commands that do not sweep them."""

    mi_weight: float = 0.0
    """Weight of the mutual information (in nats) of the features of a batch and their rows of the
    head; it is maximised."""
    ed_weight: float = 0.0
    """Weight of the difference (in nats) between the entropies of the features and of their rows of
    the head; it is minimised."""


@dataclasses.dataclass(frozen=True)
class InformationForm(Checked):
    """How the information terms measure entropy."""

    order: Literal[1, 2] = 1
    """Order of the Rényi entropies of the information terms; 1 is that of the paper, 2 needs no
    decomposition."""
    debiased: bool = False
    """Whether the terms are estimates for the data, from pairs of different samples, in place of
    values of the batch; needs order 2."""

    def __post_init__(self):
        super().__post_init__()
        if self.debiased and self.order != 2:
            raise ValueError(f"debiased needs order 2 (--order 2 --debiased), got {self.order}.")

    def form(self) -> str:
        """How the terms measure entropy, for titles; nothing if it is as published."""
        if self.order == 1:
            return ""
        return " (terms of order 2, debiased)" if self.debiased else " (terms of order 2)"


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Checked):
    """Label smoothing, for commands that do not sweep it."""

    smoothing: float = 0.0
    """ε of label smoothing: the targets of the cross-entropy are (1 - ε) y + ε / C."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}.")


# The published training on CIFAR-10: SGD with a learning rate of 0.03 that falls along a cosine,
# batches of 64, WideResNet-28-2. The rest is the default of `ImageSettings`.
PAPER: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "wrn-28-2",
    "augment": True,
    "batch_norm_momentum": 0.999,
    "steps": 2**20,
}

# A small network on CIFAR-10 that two cores train in minutes, measured on the test set alone.
SMALL: dict[str, Any] = {"dataset": "cifar10", "model": "conv", "eval_train": False}
