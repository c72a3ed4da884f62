"""How MIR and HDR of a run depend on the batch size: `python -m train.bias --run FOLDER`.

Features of the trained and of the untrained network are measured in batches of 16 to 2,048 beside
the whole split; a table, a picture and the numbers (JSON) are written into the run's folder.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import mirjax
from train.compilation import enable_cache
from train.errors import told
from train.evaluate import closed_forms
from train.experiment import load_data
from train.folders import RunError
from train.runs import Extractor, open_run
from train.supervised import Supervised


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


def measure(bias: Bias) -> dict[str, Any]:
    """Curves of the trained and the untrained network as plain numbers."""
    run = open_run(bias.run, Supervised, load_data)
    if not 0 <= bias.seed < run.settings.seeds:
        raise RunError(f"seed must be below {run.settings.seeds}, the seeds of {bias.run}.")
    split = getattr(run.data, bias.split)
    extract = Extractor(run.network, split, batch_size=run.settings.eval_batch)
    curves = {}
    for name, states in (("trained", run.states), ("untrained", run.untrained)):
        state = jax.tree.map(lambda x: x[bias.seed], states)
        features, labels = extract(state)
        head, _ = run.network.head(state.params, state.rest)
        found = mirjax.batch_bias(features, head, labels, max_batches=bias.max_batches)
        curves[name] = {
            "batch_sizes": found.batch_sizes.tolist(),
            "batches": found.batches.tolist(),
            **{
                f"{metric}_{part}": getattr(getattr(found, part), metric).tolist()
                for metric in ("mir", "hdr")
                for part in ("mean", "spread")
            },
            **{f"{metric}_whole": float(getattr(found.whole, metric)) for metric in ("mir", "hdr")},
        }
    source = f"{run.data.name} ({run.data.source_note})" if run.data.source_note else run.data.name
    about = {"data": source, "model": run.settings.model, "step": run.step, "n": len(split)}
    return about | {"split": bias.split, "classes": run.data.num_classes, "curves": curves}


def draw(found: dict[str, Any], path: Path) -> None:
    """MIR and HDR over batch size, with the whole split as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, 2), ("mir", "hdr"), strict=True):
        for colour, (name, curve) in zip(("C0", "C1"), found["curves"].items(), strict=True):
            axis.errorbar(
                curve["batch_sizes"],
                curve[f"{metric}_mean"],
                curve[f"{metric}_spread"],
                color=colour,
                marker="o",
                markersize=3,
                capsize=2,
                label=f"{name}, batches",
            )
            whole = curve[f"{metric}_whole"]
            label = f"{name}, whole set: {whole:.3f}"
            axis.axhline(whole, color=colour, linestyle="--", linewidth=1, label=label)
        collapsed = closed_forms(found["classes"])[metric]
        axis.axhline(
            collapsed,
            color="black",
            linestyle=":",
            linewidth=1,
            label=f"at collapse: {collapsed:.3f}",
        )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("batch size")
        axis.set_title(metric.upper())
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(
        f"{found['data']}, {found['model']}, step {found['step']}, {found['split']} set: n = {found['n']}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=100)


def main() -> None:
    """Command line."""
    bias = tyro.cli(Bias, description=__doc__, prog="python -m train.bias")
    out = bias.out or bias.run / f"bias-{bias.split}"
    with told():
        if out.exists():
            raise RunError(f"{out} exists; name another folder with --out.")
        enable_cache()
        found = measure(bias)
    out.mkdir(parents=True)
    (out / "bias.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, out / "bias.png")
    for name, curve in found["curves"].items():
        print(f"{name}: MIR (HDR) by batch size, of all {found['n']} samples at the end")
        for size, mir, hdr in zip(
            curve["batch_sizes"], curve["mir_mean"], curve["hdr_mean"], strict=True
        ):
            print(f"  {size:6d}  {mir:.3f} ({hdr:.3f})")
        print(f"  {found['n']:6d}  {curve['mir_whole']:.3f} ({curve['hdr_whole']:.3f})")
    print(f"Numbers and picture are in {out}/")


if __name__ == "__main__":
    main()
