"""How MIR and HDR of a run depend on the batch size: `python -m train.bias --run FOLDER`.

Measures the features of the trained and of the untrained network in batches of 16 to 2,048 samples
and of the whole split. Prints a table, and writes pictures (one of them of the spectra of the
features) and the numbers (JSON) to a folder.
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
from train.reporting.records import WITHOUT_DIRECTION, beside
from train.run.command import enable_cache, exit_on_user_error
from train.run.errors import RunError
from train.run.files import write_text
from train.run.folder import new_place
from train.supervised import Supervised, load_data, optimizer_of

_METRICS = ("mir", "hdr")


@dataclasses.dataclass(frozen=True)
class Bias:
    """Measures MIR and HDR over batch size, trained and untrained, and of the whole split."""

    run: Path
    """Folder of a finished run of `python -m train.supervised`."""
    split: Literal["train", "test"] = "test"
    """The split of the run's data set that is measured."""
    seed: int = 0
    """Which of the run's seeds is measured, counted from 0."""
    max_batches: int = 64
    """Largest number of batches of each size."""
    out: Path | None = None
    """Folder to write to, which must not exist; if not given, `bias-SPLIT` in the run's folder."""


class Measured(NamedTuple):
    """The measurements of the trained and the untrained network."""

    about: dict[str, Any]
    """Data, model, step and split, for titles."""
    curves: dict[str, mirjax.BatchBias]
    """MIR and HDR over batch size, by the name of the network."""
    features: dict[str, Array]
    """The features `[n, d]`, by the name of the network."""


def measure(bias: Bias) -> Measured:
    """Measures the trained and the untrained network of one seed."""
    run = read_run(bias.run, Supervised, load_data, optimizer_of)
    if not 0 <= bias.seed < run.settings.seeds:
        raise RunError(
            f"seed must be at least 0 and below {run.settings.seeds}, the number of seeds of "
            f"{bias.run}, got {bias.seed}."
        )
    split = getattr(run.data, bias.split)
    extract = Extractor(run.network, split, batch_size=run.settings.eval_batch)
    curves, features_of = {}, {}
    for name, states in (("trained", run.states), ("untrained", run.untrained)):
        state = jax.tree.map(lambda x: x[bias.seed], states)
        features, labels = extract(state)
        head, _ = run.network.head(state.params, state.rest)
        curves[name] = mirjax.batch_bias(features, head, labels, max_batches=bias.max_batches)
        features_of[name] = features
    about: dict[str, Any] = {"data": source_of(run.data), "model": run.settings.model}
    about |= {"step": run.step, "n": len(split), "split": bias.split}
    about |= {"classes": run.data.num_classes}
    undirected = {name: len(split) - float(curve.whole.weight) for name, curve in curves.items()}
    if any(count > 0 for count in undirected.values()):
        about[WITHOUT_DIRECTION] = {name: int(count) for name, count in undirected.items()}
    return Measured(about, curves, features_of)


def as_json(curve: mirjax.BatchBias) -> dict[str, Any]:
    """MIR and HDR over batch size as plain numbers."""
    values: dict[str, Any] = {
        "batch_sizes": curve.batch_sizes.tolist(),
        "batches": curve.batches.tolist(),
    }
    for metric in _METRICS:
        for part in ("mean", "spread"):
            values[f"{metric}_{part}"] = getattr(getattr(curve, part), metric).tolist()
        values[f"{metric}_whole"] = float(getattr(curve.whole, metric))
        name = f"{metric}_debiased"
        values[f"{name}_mean"] = getattr(curve.debiased, metric).tolist()
        values[f"{name}_spread"] = getattr(curve.debiased_spread, metric).tolist()
        values[f"{name}_whole"] = float(getattr(curve.whole_debiased, metric))
        error = getattr(curve.whole_debiased.standard_error, metric)
        values[f"{name}_standard_error"] = float(error)
    values["mir_adjusted_mean"] = curve.adjusted_mir.tolist()
    values["mir_adjusted_spread"] = curve.adjusted_spread.tolist()
    return values


# The panels of the picture: their title, the metric and its kind.
_PANELS: tuple[tuple[str, str, Literal["plain", "adjusted", "debiased"]], ...] = (
    ("MIR", "mir", "plain"),
    ("MIR, adjusted for chance", "mir", "adjusted"),
    ("MIR, debiased (order 2)", "mir", "debiased"),
    ("HDR", "hdr", "plain"),
    ("HDR, debiased (order 2)", "hdr", "debiased"),
)


def draw(about: dict[str, Any], curves: dict[str, mirjax.BatchBias], path: Path) -> None:
    """Draws MIR and HDR over batch size, as they are and debiased, with the split as a line."""
    # Here, so that the command does not wait for Matplotlib before it reports an error.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row").ravel()
    forms = closed_forms(about["classes"])
    for axis, (title, metric, kind) in zip(axes, _PANELS, strict=False):
        for colour, (name, curve) in zip(("C0", "C1"), curves.items(), strict=True):
            plot.batch_bias(curve, metric=metric, kind=kind, label=name, colour=colour, ax=axis)
        at_collapse = forms[f"{metric}_debiased" if kind == "debiased" else metric]
        plot.levels({"at collapse": at_collapse}, ax=axis)
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    axes[-1].set_visible(False)
    figure.suptitle(_title(about), fontsize="medium", parse_math=False)
    figure.savefig(path, dpi=100)


def draw_spectra(about: dict[str, Any], features: dict[str, Array], path: Path) -> None:
    """Draws the spectra of the features, whose entropies are H(K1)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, rows) in zip(("C0", "C1"), features.items(), strict=True):
        plot.spectrum(rows, label=name, colour=colour, ax=axis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.suptitle(textwrap.fill(_title(about), 80), fontsize="small", parse_math=False)
    figure.savefig(path, dpi=100)


def _title(about: dict[str, Any]) -> str:
    of_network = f"{about['data']}, {about['model']}, step {about['step']}"
    undirected = beside(about.get(WITHOUT_DIRECTION, {}).values())
    return f"{of_network}, {about['split']} set: n = {about['n']:,}{undirected}"


def _four(mir: float, hdr: float, debiased_mir: float, debiased_hdr: float) -> str:
    return f"{mir:.3f} ({hdr:.3f})  {debiased_mir:.3f} ({debiased_hdr:.3f})"


def main() -> None:
    """Runs the command."""
    bias = tyro.cli(Bias, description=__doc__, prog="python -m train.bias")
    out = bias.out or bias.run / f"bias-{bias.split}"
    with exit_on_user_error():
        # Asked first: nothing is measured for a folder that cannot be written.
        new_place(out)
        enable_cache()
        write(measure(bias), out)


def write(measured: Measured, out: Path) -> None:
    """Writes the numbers and pictures to a new folder, and prints the numbers."""
    about, curves, features = measured
    out.mkdir(parents=True)
    values = {name: as_json(curve) for name, curve in curves.items()}
    write_text(out / "bias.json", json.dumps(about | {"curves": values}, indent=1) + "\n")
    draw(about, curves, out / "bias.png")
    draw_spectra(about, features, out / "spectra.png")
    for name, curve in values.items():
        undirected = beside([about.get(WITHOUT_DIRECTION, {}).get(name, 0)])
        print(
            f"{name}: MIR (HDR), debiased MIR (HDR) and MIR adjusted for chance by batch size, of "
            f"all {about['n']} samples{undirected} at the end"
        )
        columns = ("mir", "hdr", "mir_debiased", "hdr_debiased", "mir_adjusted")
        rows = zip(*(curve[f"{column}_mean"] for column in columns), strict=True)
        for size, (*both, adjusted) in zip(curve["batch_sizes"], rows, strict=True):
            print(f"  {size:6d}  {_four(*both)}  {adjusted:.3f}")
        print(f"  {about['n']:6d}  {_four(*(curve[f'{c}_whole'] for c in columns[:-1]))}")
    print(f"Numbers and pictures are in {out}/")


if __name__ == "__main__":
    main()
