"""How MIR and HDR of a run depend on the batch size: `python -m train.bias --run FOLDER`.

Features of the trained and of the untrained network are measured in batches of 16 to 2,048 beside
the whole split; a table, pictures (also of the spectra of the features) and the numbers (JSON) are
written into the run's folder.
"""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tyro
from jax import Array

import mirjax
from mirjax import plot
from train.data.types import source_of
from train.evaluation.closed_forms import closed_forms
from train.evaluation.evaluator import Extractor
from train.evaluation.finished import read_run
from train.run.command import enable_cache
from train.run.errors import RunError, exit_on_user_error
from train.run.folder import new_place
from train.supervised import Supervised, load_data

_METRICS = ("mir", "hdr")


@dataclasses.dataclass(frozen=True)
class Bias:
    """MIR and HDR over batch size, trained and untrained, beside the whole split."""

    run: Path
    """Folder of a finished run of train.supervised."""
    split: Literal["train", "test"] = "test"
    """Which samples."""
    seed: int = 0
    """Which of the run's seeds, counted from 0."""
    max_batches: int = 64
    """Batches of each size."""
    out: Path | None = None
    """Where to write; `bias-SPLIT` in the run's folder if not given. It must not exist."""


class Measured(NamedTuple):
    """What was measured, in words; and of each network the curves and the features."""

    about: dict[str, Any]
    curves: dict[str, mirjax.BatchBias]
    features: dict[str, Array]


def measure(bias: Bias) -> Measured:
    """The trained and the untrained network."""
    run = read_run(bias.run, Supervised, load_data)
    if not 0 <= bias.seed < run.settings.seeds:
        raise RunError(f"seed must be below {run.settings.seeds}, the seeds of {bias.run}.")
    split = getattr(run.data, bias.split)
    extract = Extractor(run.network, split, batch_size=run.settings.eval_batch)
    curves, found = {}, {}
    for name, states in (("trained", run.states), ("untrained", run.untrained)):
        state = jax.tree.map(lambda x: x[bias.seed], states)
        features, labels = extract(state)
        head, _ = run.network.head(state.params, state.rest)
        curves[name] = mirjax.batch_bias(features, head, labels, max_batches=bias.max_batches)
        found[name] = features
    about = {"data": source_of(run.data), "model": run.settings.model, "step": run.step}
    about |= {"n": len(split), "split": bias.split, "classes": run.data.num_classes}
    return Measured(about, curves, found)


def as_json(curve: mirjax.BatchBias) -> dict[str, Any]:
    """MIR and HDR as plain numbers."""
    values: dict[str, Any] = {
        "batch_sizes": curve.batch_sizes.tolist(),
        "batches": curve.batches.tolist(),
    }
    for metric in _METRICS:
        for part in ("mean", "spread"):
            values[f"{metric}_{part}"] = getattr(getattr(curve, part), metric).tolist()
        values[f"{metric}_whole"] = float(getattr(curve.whole, metric))
    return values


def draw(about: dict[str, Any], curves: dict[str, mirjax.BatchBias], path: Path) -> None:
    """MIR and HDR over batch size, with the whole split as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, 2), _METRICS, strict=True):
        for colour, (name, curve) in zip(("C0", "C1"), curves.items(), strict=True):
            plot.batch_bias(curve, metric=metric, label=name, colour=colour, ax=axis)
        plot.levels({"at collapse": closed_forms(about["classes"])[metric]}, ax=axis)
        axis.set_title(metric.upper())
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(_title(about), fontsize="medium")
    figure.savefig(path, dpi=100)


def draw_spectra(about: dict[str, Any], features: dict[str, Array], path: Path) -> None:
    """The spectra whose entropies are H(K1)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, rows) in zip(("C0", "C1"), features.items(), strict=True):
        plot.spectrum(rows, label=name, colour=colour, ax=axis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.suptitle(textwrap.fill(_title(about), 80), fontsize="small")
    figure.savefig(path, dpi=100)


def _title(about: dict[str, Any]) -> str:
    return f"{about['data']}, {about['model']}, step {about['step']}, {about['split']} set: n = {about['n']}"


def main() -> None:
    """Command line."""
    bias = tyro.cli(Bias, description=__doc__, prog="python -m train.bias")
    out = bias.out or bias.run / f"bias-{bias.split}"
    with exit_on_user_error():
        new_place(out)
        enable_cache()
        write(measure(bias), out)


def write(measured: Measured, out: Path) -> None:
    """Writes numbers and pictures to a new folder, and prints the numbers."""
    about, curves, features = measured
    out.mkdir(parents=True)
    values = {name: as_json(curve) for name, curve in curves.items()}
    (out / "bias.json").write_text(json.dumps(about | {"curves": values}, indent=1) + "\n")
    draw(about, curves, out / "bias.png")
    draw_spectra(about, features, out / "spectra.png")
    for name, curve in values.items():
        print(f"{name}: MIR (HDR) by batch size, of all {about['n']} samples at the end")
        for size, mir, hdr in zip(
            curve["batch_sizes"], curve["mir_mean"], curve["hdr_mean"], strict=True
        ):
            print(f"  {size:6d}  {mir:.3f} ({hdr:.3f})")
        print(f"  {about['n']:6d}  {curve['mir_whole']:.3f} ({curve['hdr_whole']:.3f})")
    print(f"Numbers and pictures are in {out}/")


if __name__ == "__main__":
    main()
