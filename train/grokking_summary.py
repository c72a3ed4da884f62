"""Sums up runs of `train.grokking` as one: `python -m train.grokking_summary RUN... --out FOLDER`.

Seeds, each with its controls or without, may be trained at different times and places; the rules,
tables and pictures need them together. A single run is summed up again, by the rules of the present
version. Nothing is trained or measured, so that the folder may lack checkpoints and snapshots.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from train.evaluation.finished import read_lanes, read_settings
from train.modular.measure import MAIN
from train.modular.settings import CONTROLS, INTERVENTIONS, Grokking
from train.modular.summary import summarize
from train.reporting.records import Record, final_records
from train.reporting.summary import Summary
from train.run.command import exit_on_user_error
from train.run.errors import RunError
from train.run.files import read_jsonl, write_jsonl, write_text
from train.run.folder import new_place, saved_run
from train.run.lanes import Lane

# Settings that say which networks a run trains, and how it goes about it; all others say what a
# network is and when it is measured, and must be the same.
_FREE = {
    *("seeds", "first_seed", "controls", "interventions", "kinds", "kind_seeds"),
    *("steps_per_call", "lanes_per_call", "devices", "lane_devices"),
    *("coordinator", "processes", "process"),
    *("out", "resume", "checkpoint_every", "wandb", "mirror"),
}


@dataclasses.dataclass(frozen=True)
class GrokkingSummary:
    """Sums up finished runs of `train.grokking` as one."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the runs, which differ in their seeds, controls and interventions alone. They have
    no network in common: controls are trained with the main runs of their seeds."""
    out: Path = Path("runs/grokking-summary")
    """Folder for the tables, pictures and joined metrics, which must not exist."""


def sum_up(runs: Sequence[Path], out: Path) -> Summary:
    """The summary of the networks of all runs, written to a new folder.

    Raises:
        RunError: a folder holds no finished run, the runs do not fit together, or `out` exists.
    """
    if not runs:
        raise RunError("Name at least one folder of train.grokking.")
    # Asked first: nothing is read for a folder that cannot be written.
    new_place(out)
    all_settings = [read_settings(run, Grokking) for run in runs]
    for run, settings in zip(runs[1:], all_settings[1:], strict=True):
        _same_networks(runs[0], all_settings[0], run, settings)
    lanes = [read_lanes(run, s) for run, s in zip(runs, all_settings, strict=True)]
    _no_lane_twice(runs, lanes)
    records, progress = [], []
    for run, settings, of_run in zip(runs, all_settings, lanes, strict=True):
        records += _finished(run, settings, len(of_run))
        progress += read_jsonl(run / "progress.jsonl", needs="step")

    every = [lane for of_run in lanes for lane in of_run]
    main = {lane.seed for lane in every if lane.tags.get("kind") == MAIN}
    kinds = {str(lane.tags["kind"]) for lane in every if "kind" in lane.tags} - {MAIN}
    # Where seeds are left out between them, the lanes below say which there are.
    settings = dataclasses.replace(
        all_settings[0],
        out=out,
        seeds=len(main),
        first_seed=min(main),
        controls=not kinds.isdisjoint(CONTROLS),
        interventions=not kinds.isdisjoint(INTERVENTIONS),
        kinds=tuple(kind for kind in (*CONTROLS, *INTERVENTIONS) if kind in kinds),
        kind_seeds=None,
    )
    saved = [saved_run(run) for run in runs]
    about: dict[str, Any] = {
        "settings": settings.as_json(),
        # Not that of a run, which could be resumed.
        "kind": GrokkingSummary.__name__,
        **{key: saved[0][key] for key in ("data", "classes") if key in saved[0]},
        "lanes": [lane for of_run in saved for lane in of_run.get("lanes", [])],
        "runs": [made for of_run in saved for made in _made_from(of_run)],
    }
    out.mkdir(parents=True)
    try:
        write_text(out / "settings.json", json.dumps(about, indent=2) + "\n")
        write_jsonl(out / "metrics.jsonl", records)
        write_jsonl(out / "progress.jsonl", progress)
        return summarize(settings, records, progress).write()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Half a sum would stand in the way of the next try.
        shutil.rmtree(out)
        raise RunError(
            f"the records of {', '.join(map(str, runs))} lack what is summed up here "
            f"({type(error).__name__}: {error}). Use the version that made the runs, "
            "or make them again."
        ) from error


def _made_from(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings and versions of a run or, of a sum, of the runs that it is made from."""
    own = {"settings": saved["settings"], "versions": saved.get("versions", {})}
    return saved.get("runs") or [own]


def _same_networks(first: Path, expected: Grokking, run: Path, settings: Grokking) -> None:
    was, now = expected.as_json(), settings.as_json()
    for name in sorted(was.keys() - _FREE):
        if was[name] != now[name]:
            raise RunError(
                f"{first} and {run} do not fit together: {name} is {was[name]!r} and "
                f"{now[name]!r}. Sum them up apart."
            )


def _no_lane_twice(runs: Sequence[Path], lanes: Sequence[Sequence[Lane]]) -> None:
    known: dict[str, Path] = {}
    for run, of_run in zip(runs, lanes, strict=True):
        for lane in of_run:
            if lane.name in known:
                raise RunError(
                    f"{known[lane.name]} and {run} hold the same network, {lane.name}. Name one of "
                    "them."
                )
            known[lane.name] = run


def _finished(run: Path, settings: Grokking, lanes: int) -> list[Record]:
    records = read_jsonl(run / "metrics.jsonl", needs="step")
    last = final_records(records)[0]["step"] if records else 0
    if last < settings.steps:
        raise RunError(
            f"{run} is at step {last:,} of {settings.steps:,}. Let it finish first (--resume)."
        )
    if (found := len(final_records(records))) != lanes:
        raise RunError(
            f"{run} lists {lanes} networks in settings.json, and metrics.jsonl has {found} of them "
            f"at step {last:,}. Copy the folder once more, as a whole."
        )
    return list(records)


def main() -> None:
    """Runs the command."""
    with exit_on_user_error():
        asked = tyro.cli(
            GrokkingSummary, description=__doc__, prog="python -m train.grokking_summary"
        )
        sum_up(asked.runs, asked.out).show()


if __name__ == "__main__":
    main()
