"""Settings that training runs share, and how a command line becomes one of them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every run of steps needs to know, whatever it trains."""

    steps: int = 2000
    """Optimizer steps."""
    seeds: int = 1
    """How many seeds are trained, side by side."""
    first_seed: int = 0
    """The first of them; the others follow it."""
    eval_every: int = 200
    """Steps between evaluations on the whole test set."""
    steps_per_call: int | None = None
    """Steps in one call of the compiled function; 1 for convolutions on a CPU, else 100, if not
    given. Does not change results beyond rounding."""
    lanes_per_call: int | None = None
    """Networks (seeds, and what an experiment sweeps) under one `vmap`; the others follow through the
    same compiled step. If not given: as many as fit in the device's memory, but 1 for convolutions on a
    CPU, where batched ones are several times slower."""
    out: Path = Path("runs/supervised")
    """Folder of this run: settings, metrics, events, checkpoints, pictures."""
    resume: bool = False
    """Go on from the last checkpoint in `out` (or start, if there is none)."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, a multiple of `eval_every` (which it is, if not given); 0 for one at
    the end only. The last one is kept."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; needs `pip install wandb`."""

    def __post_init__(self):
        self.at_least_one("steps", "seeds", "eval_every", "steps_per_call", "lanes_per_call")
        every = self.checkpoint_every or 0
        if every < 0 or every % self.eval_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of eval_every = {self.eval_every} (or 0), "
                f"got {every}."
            )

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

    def events(self) -> list[int]:
        """The steps at which the lanes are evaluated, after the start."""
        return [*range(self.eval_every, self.steps, self.eval_every), self.steps]

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is written at this event."""
        every = self.eval_every if self.checkpoint_every is None else self.checkpoint_every
        return step == self.steps or (every > 0 and step % every == 0)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the settings file."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """What every training run on images needs to know."""

    dataset: str = "digits"
    """TFDS name (cifar10, cifar100, stl10, svhn_cropped, fashion_mnist, mnist), `digits`, `folder:PATH` or
    `npz:PATH`."""
    data_dir: str | None = None
    """Where prepared TFDS data lie; TFDS's own default folder if not given."""
    image_size: int | None = None
    """Side in pixels to which the images of `folder:PATH` are scaled and cropped."""
    train_size: int | None = None
    """Training samples, a class-balanced part drawn with seed 0; all if not given."""
    model: str = "mlp"
    """mlp, conv or wrn-DEPTH-WIDTH."""
    augment: bool = False
    """Reflect-pad by 4, crop at random and flip half of the images, on the device."""
    batch_norm_momentum: float = 0.9
    """Weight of the old statistics. The published 0.999 needs thousands of steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and products. Weights, batch statistics, features, losses and metrics are float32."""
    batch_size: int = 64
    """Samples a step."""
    learning_rate: float = 0.03
    """Peak learning rate of SGD, decayed to 0 by a cosine."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On kernels; not on biases and batch norm."""
    metric_batch: int = 64
    """Batch size of the metrics that are averaged over batches, as published."""
    eval_train: bool = True
    """Whether each evaluation passes over the training split too."""
    eval_layers: bool = False
    """Whether each evaluation measures every layer too, on the test split."""
    eval_batch: int = 500
    """Samples a forward pass in evaluation."""
    memory_limit_mib: int = 2048
    """Splits up to this size are held on the device; larger ones are streamed. Features up to this
    size are held in an evaluation, for NC4."""
    devices: int | None = None
    """Over how many devices each batch is cut; the most that divide it, if not given."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("batch_size", "metric_batch", "eval_batch", "devices", "train_size")
        if not 0 <= self.batch_norm_momentum < 1:
            raise ValueError(
                f"batch_norm_momentum must be in [0, 1), got {self.batch_norm_momentum}."
            )


# The published training on CIFAR-10: SGD of 0.03 with a cosine, batches of 64, WideResNet-28-2. The rest
# is the default of `Settings`.
PAPER: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "wrn-28-2",
    "augment": True,
    "batch_norm_momentum": 0.999,
    "steps": 2**20,
}

# A small network on CIFAR-10 that two cores train in minutes, measured on the test set.
SMALL: dict[str, Any] = {"dataset": "cifar10", "model": "conv", "eval_train": False}
