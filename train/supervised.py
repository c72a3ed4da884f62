"""Train a classifier with and without the information losses: `python -m train.supervised`.

Presets: `small` (the default: an MLP on digits, about a minute on 2 cores), `smoke` (seconds, for
tests), `paper` (WideResNet-28-2 on CIFAR-10 with the published settings; needs an accelerator).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from train.classifier import train
from train.compilation import enable_cache
from train.errors import told
from train.evaluate import closed_forms
from train.experiment import load_data
from train.images import ImageData
from train.lanes import Lane, lanes_of
from train.loop import Result
from train.plots import plot_runs
from train.presets import PAPER
from train.settings import Settings, from_command_line
from train.state import TrainState
from train.step import information_loss
from train.tables import show


@dataclasses.dataclass(frozen=True)
class Supervised(Settings):
    """Cross-entropy - mi_weight · MI + ed_weight · |H1 - H2| on a labelled data set."""

    mi_weight: float = 0.0
    """Weight of the mutual information of features and head rows of a batch, in nats (maximised)."""
    ed_weight: float = 0.0
    """Weight of the difference of their entropies, in nats (minimised)."""
    stop_gradient: Literal["features", "head"] | None = None
    """The side that the two terms do not train."""
    smoothing: float = 0.0
    """ε of label smoothing: the cross-entropy is against (1 - ε) y + ε / C."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}.")


PRESETS = {
    "small": Supervised(),
    "smoke": Supervised(steps=20, eval_every=10, out=Path("runs/smoke")),
    "paper": Supervised(
        **PAPER,
        eval_every=5000,
        out=Path("runs/cifar10-wrn-28-2"),
    ),
}


def fit(
    settings: Supervised,
    data: ImageData,
    lanes: Sequence[Lane] | None = None,
    *,
    start_from: Callable[[TrainState], TrainState] | None = None,
    quiet: bool = False,
) -> Result:
    """`train.classifier.train` with the loss of the settings; a lane for each seed, if none are given."""
    lanes = lanes_of(settings) if lanes is None else lanes
    loss = information_loss(lanes, settings.stop_gradient)
    return train(settings, data, loss, lanes, start_from=start_from, quiet=quiet)


def run(settings: Supervised, *, quiet: bool = False) -> Result:
    """Trains, and writes pictures beside the metrics."""
    data = load_data(settings)
    result = fit(settings, data, quiet=quiet)
    title = (
        f"{result.data}, {settings.model}, {describe(settings)}, seeds: {settings.seeds}\n"
        f"whole test set: n = {int(result.records[-1]['test_n'])}, batches of {settings.metric_batch}"
    )
    picture = result.folder / "curves.png"
    plot_runs({"": result.records}, closed_forms(data.num_classes), picture, title=title)
    return result


def describe(settings: Supervised) -> str:
    """The loss in words."""
    parts = ["cross-entropy"]
    if settings.mi_weight:
        parts.append(f"{settings.mi_weight:g} · MI")
    if settings.ed_weight:
        parts.append(f"{settings.ed_weight:g} · ED")
    if settings.smoothing:
        parts[0] += f" (smoothed, {settings.smoothing:g})"
    return " + ".join(parts)


def main() -> None:
    """Command line."""
    with told(resumable=True):
        settings = from_command_line(PRESETS)
        enable_cache()
        result = run(settings)
        n = int(result.records[-1]["test_n"])
        show({describe(settings): result.records}, title=f"{result.data}, n = {n}")
        print(f"Metrics, events, checkpoints and pictures are in {result.folder}/")


if __name__ == "__main__":
    main()
