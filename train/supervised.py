"""Train a classifier with and without the information losses: `python -m train.supervised`.

Presets: `small` (the default: an MLP on digits, about a minute on 2 cores), `smoke` (seconds, for
tests), `paper` (WideResNet-28-2 on CIFAR-10 with the published settings; needs an accelerator).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from train.compilation import enable_cache
from train.data import load
from train.evaluate import closed_forms
from train.images import DataError, ImageData
from train.loop import CheckpointError, Result, RunError, train
from train.plots import plot_runs
from train.settings import Settings, from_command_line
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


PRESETS = {
    "small": Supervised(),
    "smoke": Supervised(steps=20, eval_every=10, out=Path("runs/smoke")),
    "paper": Supervised(
        dataset="cifar10",
        model="wrn-28-2",
        augment=True,
        batch_norm_momentum=0.999,
        steps=2**20,
        eval_every=5000,
        out=Path("runs/cifar10-wrn-28-2"),
    ),
}


def load_data(settings: Settings) -> ImageData:
    """The data set that the settings name."""
    return load(
        settings.dataset,
        data_dir=settings.data_dir,
        memory_limit_mib=settings.memory_limit_mib,
        image_size=settings.image_size,
    )


def run(settings: Supervised, *, quiet: bool = False) -> Result:
    """Trains, and writes pictures beside the metrics."""
    data = load_data(settings)
    loss = information_loss(settings.mi_weight, settings.ed_weight, settings.stop_gradient)
    result = train(settings, data, loss, quiet=quiet)
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
    return " + ".join(parts)


def main() -> None:
    """Command line."""
    try:
        settings = from_command_line(PRESETS)
        enable_cache()
        result = run(settings)
    except (RunError, CheckpointError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    n = int(result.records[-1]["test_n"])
    show({describe(settings): result.records}, title=f"{result.data}, n = {n}")
    print(f"Metrics, events, checkpoints and pictures are in {result.folder}/")


if __name__ == "__main__":
    main()
