"""The summary of an experiment: tables, pictures, and claims of the paper beside measurements."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirjax import report
from mirjax.report import escaped
from train.reporting.records import Record, cell, final_records
from train.run.console import plain_console
from train.run.errors import RunError
from train.run.files import write_text

FILE = "summary.json"

# A space at the left of a printed table.
EDGE = 1


@dataclasses.dataclass(frozen=True)
class Table(report.Table):
    """A table of text that can also be printed in colour-free boxes, and turned."""

    def transposed(self) -> "Table":
        """The table with its columns as rows."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, columns, tuple(rows))

    def widths(self) -> list[int]:
        """Width of each column, two spaces included, with headers wrapped and cells not."""
        headers = (max(map(len, name.split()), default=0) for name in self.columns)
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        cells = (max(map(len, column), default=0) for column in columns)
        return [2 + max(pair) for pair in zip(headers, cells, strict=True)]

    def width(self) -> int:
        """Characters in its longest line when it is printed like that."""
        return EDGE + sum(self.widths())

    def parts(self, width: int) -> list["Table"]:
        """Tables of some columns each that fit into so many characters, all with the first one."""
        first, *others = self.widths()
        # A column too wide for any part is wrapped, and so is a first one of over half the width.
        beside = width - EDGE - min(first, width // 2)
        parts: list[list[int]] = []
        room = 0
        for number, needed in enumerate(others, 1):
            if not parts or needed > room:
                parts.append([0])
                room = beside
            parts[-1].append(number)
            room -= needed

        def of(row: Sequence[str], part: Sequence[int]) -> tuple[str, ...]:
            return tuple(row[number] for number in part)

        return [
            Table(self.title, of(self.columns, part), tuple(of(row, part) for row in self.rows))
            for part in parts or [[0]]
        ]

    def show(self, *, prose: bool = False) -> None:
        """Prints the table with its title.

        `prose` is left-aligned, and its cells are wrapped. Numbers are right-aligned; columns that
        do not fit beside the others follow below.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as Printed

        console = plain_console()
        # Not as the title of the printed table, which would be wrapped to the width of the table.
        console.print(f"\n{self.title}", highlight=False)
        for part in [self] if prose else self.parts(console.width):
            printed = Printed(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            for number, (column, width) in enumerate(zip(part.columns, part.widths(), strict=True)):
                justify = "left" if prose or number == 0 else "right"
                fixed = None if prose else min(width, console.width // 2) - 2
                printed.add_column(column, justify=justify, overflow="fold", width=fixed)
            for row in part.rows:
                printed.add_row(*row)
            console.print(printed)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what was measured."""

    claim: str
    published: str
    measured: str
    reading: str
    """What follows by a rule, which this text names; `not decided` where nothing follows."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of an experiment, and the folder that it is in."""

    folder: Path
    title: str
    """Names the experiment, data, model, seeds and n."""
    tables: tuple[Table, ...]
    pictures: Mapping[str, str]
    """What each picture shows, by its file name in the folder."""
    claims: tuple[Claim, ...] = ()

    def write(self) -> "Summary":
        """Writes `summary.json` and `summary.md`."""
        content = dataclasses.asdict(self) | {"pictures": dict(self.pictures)}
        # Where the folder lies now is no part of the result: it may be moved.
        del content["folder"]
        write_text(self.folder / FILE, json.dumps(content, indent=1) + "\n")
        parts = [f"# {escaped(self.title)}\n", *(table.markdown() for table in self.all_tables())]
        parts += [f"![{what}]({name})\n" for name, what in self.pictures.items()]
        write_text(self.folder / "summary.md", "\n".join(parts))
        return self

    def all_tables(self) -> Sequence[Table]:
        """The tables, and one more of the claims."""
        if not self.claims:
            return self.tables
        rows = tuple(dataclasses.astuple(claim) for claim in self.claims)
        title = "What the paper reports, and what this run measured"
        return (*self.tables, Table(title, ("claim", "paper", "here", "reading"), rows))

    def show(self) -> None:
        """Prints the tables, those of numbers in the orientation that fits the terminal."""
        console = plain_console()
        console.print(f"\n{self.title}", highlight=False)
        for table in self.tables:
            if table.width() > console.width:
                # Turned if that is narrower, or if the first column, which is all that parts
                # repeat, does not tell the rows apart.
                turned, names = table.transposed(), {row[0] for row in table.rows}
                if turned.width() < table.width() or len(names) < len(table.rows):
                    table = turned
            table.show()
        if self.claims:
            self.all_tables()[-1].show(prose=True)
        console.print(f"Settings, metrics, tables and pictures are in {self.folder}/")


def read_summary(folder: Path) -> Summary:
    """Reads the summary that an experiment wrote.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    # A user may have edited the file: whatever is missing in it is an error that says so.
    place = folder / FILE
    try:
        content: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        tables = tuple(
            Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"])))
            for t in content["tables"]
        )
        claims = tuple(Claim(**claim) for claim in content["claims"])
        return Summary(folder, content["title"], tables, content["pictures"], claims)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{place} cannot be read ({error}). Let the experiment finish first."
        ) from None


# The columns of a comparison of runs, and the metrics that they show.
COLUMNS = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "MIR": "test_mir",
    "MIR - collapse": "test_mir_distance",
    "debiased MIR": "test_mir_debiased",
    "HDR": "test_hdr",
    "debiased HDR": "test_hdr_debiased",
    "class-mean MIR": "test_class_mir",
    "NC1": "test_nc1",
    "NC2 angles": "test_nc2_equiangle",
    "NC3": "test_nc3",
    "NC4": "test_nc4",
}


def table_of(
    records: Mapping[str, Sequence[Record]],
    columns: Mapping[str, str],
    *,
    title: str,
    first: str,
) -> Table:
    """A table with a row for each name (mean ± spread over its records) and a column a metric."""
    rows = tuple(
        (name, *(cell(of_name, metric) for metric in columns.values()))
        for name, of_name in records.items()
    )
    return Table(title, (first, *columns), rows)


def comparison(runs: Mapping[str, Sequence[Record]], *, title: str) -> Table:
    """The last step of each run: a column per run, and a row for each metric that was measured."""
    last = {name: final_records(records) for name, records in runs.items()}
    table = table_of(last, COLUMNS, title=title, first="test set").transposed()
    # Runs without an evaluation of a metric show "-" in all of its row.
    measured = tuple(row for row in table.rows if set(row[1:]) != {"-"})
    return Table(title, table.columns, measured)
