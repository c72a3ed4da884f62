"""Makes one HTML page of run folders: `python -m train.report RUN... --out report.html`.

Takes the folders of experiments (those of train.dynamics or train.pruning, for example) and of
single training runs. The pictures are inside the page, which loads nothing from elsewhere.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mirjax.report import Section, Table
from mirjax.report import page as html_page
from train.evaluation.closed_forms import closed_forms
from train.reporting.records import final_records, without_direction
from train.reporting.summary import COLUMNS, FILE, Summary, read_summary, table_of
from train.run.command import exit_on_user_error
from train.run.errors import RunError
from train.run.files import read_jsonl, write_text
from train.run.folder import new_place, saved_run

# The closed forms that the page lists, and the metrics that have them.
FORMS = {
    "mir": "MIR of features (or of centred class means) against the head",
    "mir_debiased": "debiased MIR of features against the head (order 2)",
    "hdr": "HDR",
    "entropy1": "entropy of features and of head rows (nats)",
    "joint_entropy": "joint entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "nc1": "NC1, NC2, NC3",
    "nc4": "NC4",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Makes a page of run folders: pictures, tables, claims, settings and closed forms."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished experiments and training runs."""
    out: Path = Path("report.html")
    """File to write the page to, which must not exist."""
    title: str = "mirjax: results of runs"
    """Heading of the page."""


def summary_of(folder: Path) -> Summary:
    """The summary that an experiment wrote, or one of the last step of a single run.

    Raises:
        RunError: the folder holds no finished run.
    """
    # An experiment writes its summary last: where there is one, the experiment has finished.
    if (folder / FILE).exists():
        return read_summary(folder)
    saved = saved_run(folder)
    # A single run writes no summary. It is made here, once it is clear that the run has finished.
    missing = {"dataset", "model", "steps"} - saved["settings"].keys()
    if missing:
        raise RunError(f"{folder}/settings.json is of no training run: it lacks {sorted(missing)}.")
    records = read_jsonl(folder / "metrics.jsonl", needs="step")
    if not records:
        raise RunError(f"{folder} has no metrics yet. Let the run finish first (--resume).")
    last, settings = final_records(records), saved["settings"]
    if last[0]["step"] < settings["steps"]:
        raise RunError(
            f"{folder} is at step {last[0]['step']:,} of {settings['steps']:,}. "
            "Let it finish first (--resume)."
        )
    # Lanes with tags are those of an experiment, over which a single mean would say nothing.
    if any(lane["tags"] for lane in saved.get("lanes", [])):
        raise RunError(
            f"{folder} is a part of an experiment, or has not finished. "
            f"Name the folder with its {FILE}."
        )
    title = (
        f"{settings['dataset']}, {settings['model']}, {settings['steps']:,} steps, "
        f"seeds: {len(last)}"
    )
    note = (
        f"Test set, n = {int(last[0]['test_n']):,}{without_direction(last)}; "
        "mean ± standard deviation over seeds"
    )
    table = table_of({"last step": last}, COLUMNS, title=note, first="")
    pictures = {"curves.png": "training curves"} if (folder / "curves.png").exists() else {}
    return Summary(folder, title, (table,), pictures)


def section(folder: Path) -> Section:
    """What the page shows of one folder.

    Raises:
        RunError: the folder holds no finished run, or one that cannot be read.
    """
    try:
        return _section(folder)
    # Files of another version, or changed ones, fail in any of these ways.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder} cannot be read ({type(error).__name__}: {error}): its files are of another "
            "version, or were changed. Leave it out, or use the version that made it."
        ) from None


def _section(folder: Path) -> Section:
    summary, saved = summary_of(folder), saved_run(folder)
    # Not every run says how many classes there are; without them there are no closed forms.
    classes = saved.get("classes")
    forms = closed_forms(classes) if classes else {}
    tables: list[Table] = list(summary.tables)
    if forms:
        rows = tuple((text, f"{forms[name]:.4f}") for name, text in FORMS.items() if name in forms)
        tables.append(Table(f"At neural collapse, {classes} balanced classes", ("", ""), rows))
    source = saved.get("source", "")
    versions = "".join(f", {name} {v}" for name, v in saved.get("versions", {}).items())
    settings = tuple((name, str(value)) for name, value in sorted(saved["settings"].items()))
    return Section(
        summary.title,
        notes=(f"Data: {source}",) if source else (),
        prose=tuple(summary.all_tables()[len(summary.tables) :]),
        pictures=tuple(
            (what, (folder / name).read_bytes())
            for name, what in summary.pictures.items()
            if (folder / name).exists()
        ),
        tables=tuple(tables),
        folded=((f"Settings{versions}", Table("", ("", ""), settings)),),
    )


def page(folders: Sequence[Path], *, title: str) -> str:
    """The HTML text of the page."""
    return html_page(title, [section(folder) for folder in folders])


def main() -> None:
    """Runs the command."""
    report = tyro.cli(Report, description=__doc__, prog="python -m train.report")
    with exit_on_user_error():
        if not report.runs:
            raise RunError("Name at least one run folder.")
        # Asked first: no page is made that cannot be written.
        new_place(report.out)
        text = page(report.runs, title=report.title)
        report.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(report.out, text)
        print(f"{report.out}: {len(report.runs)} runs, {len(text) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
