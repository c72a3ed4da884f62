"""Demonstration on digits, with and without the information losses, over seeds: `make demo`.

Trains the same network with four losses on the 1,797 digits of scikit-learn (1,437 to train and 360
to test), prints mean and spread of accuracy, MIR, HDR and neural collapse, and draws the curves.
"""

import dataclasses
import json
import time
from pathlib import Path

import tyro

from train.evaluation.closed_forms import closed_forms
from train.reporting.plots import plot_runs
from train.reporting.records import final_records, without_direction
from train.reporting.summary import COLUMNS, comparison, table_of
from train.run.command import enable_cache, exit_on_user_error
from train.run.files import write_text
from train.supervised import Supervised, run

# The columns of `table.md`. The table that is printed has a row for every metric.
SHOWN = ("accuracy", "MIR", "MIR - collapse", "HDR", "class-mean MIR", "NC1")


@dataclasses.dataclass(frozen=True)
class Demo:
    """Trains on digits with cross-entropy alone, with the MI term, the ED term, and both."""

    steps: int = 1000
    """Number of optimizer steps of each run."""
    seeds: int = 5
    """Number of seeds. They are trained side by side."""
    mi_weight: float = 0.3
    """Weight of the mutual information in the runs with the MI term."""
    ed_weight: float = 0.3
    """Weight of the entropy difference in the runs with the ED term."""
    out: Path | None = None
    """Folder for the four runs, the pictures and the table; if not given, a new one in runs/."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well; this needs `pip install wandb`."""


def main() -> None:
    """Runs the command."""
    demo = tyro.cli(Demo, description=__doc__, prog="python -m train.demo")
    enable_cache()
    started = time.time()
    out = demo.out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    # Four runs of the supervised command, each in a folder below `out`.
    weights = {
        "cross-entropy": (0.0, 0.0),
        "+ MI": (demo.mi_weight, 0.0),
        "+ ED": (0.0, demo.ed_weight),
        "+ MI + ED": (demo.mi_weight, demo.ed_weight),
    }
    runs = {}
    with exit_on_user_error():
        for number, (name, (mi, ed)) in enumerate(weights.items()):
            print(f"{name}: {demo.seeds} seeds, {demo.steps} steps", flush=True)
            settings = Supervised(
                steps=demo.steps,
                seeds=demo.seeds,
                eval_every=max(demo.steps // 10, 1),
                mi_weight=mi,
                ed_weight=ed,
                out=out / f"{number}-{name.replace('+', '').replace(' ', '') or 'ce'}",
                wandb=demo.wandb,
            )
            runs[name] = run(settings).records
        n = int(next(iter(runs.values()))[-1]["test_n"])
        undirected = without_direction(record for records in runs.values() for record in records)
        title = (
            f"digits, {demo.seeds} seeds, {demo.steps} steps, metrics on the {n} test samples"
            f"{undirected}"
        )
        plot_runs(runs, closed_forms(10), out / "curves.png", title=title)
        last = {name: final_records(records) for name, records in runs.items()}
        columns = {name: COLUMNS[name] for name in SHOWN}
        table = table_of(last, columns, title=title, first="")
        write_text(out / "table.md", table.markdown())
        write_text(out / "demo.json", json.dumps(dataclasses.asdict(demo), default=str) + "\n")
        comparison(runs, title=title).show()
        print(f"MIR at neural collapse, 10 classes: {closed_forms(10)['mir']:.4f}")
        print(f"Pictures: {out}/curves.png and {out}/*/curves.png; {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
