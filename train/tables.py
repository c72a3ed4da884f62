"""Tables in the terminal, with mean and spread over seeds."""

from collections.abc import Mapping, Sequence

from train.records import Record, cell, final_records
from train.summary import Table

COLUMNS = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "MIR": "test_mir",
    "MIR - collapse": "test_mir_distance",
    "HDR": "test_hdr",
    "class-mean MIR": "test_class_mir",
    "NC1": "test_nc1",
    "NC2 angles": "test_nc2_equiangle",
    "NC3": "test_nc3",
    "NC4": "test_nc4",
}


def markdown(runs: Mapping[str, Sequence[Record]], columns: Sequence[str]) -> str:
    """A Markdown table of the last step of each run."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, records in runs.items():
        last = final_records(records)
        lines.append(f"| {name} | " + " | ".join(cell(last, COLUMNS[c]) for c in columns) + " |")
    return "\n".join(lines)


def table_of(
    groups: Mapping[str, Sequence[Record]],
    columns: Mapping[str, str],
    *,
    title: str,
    first: str,
) -> Table:
    """A table with a row a group of records (mean ± spread over each) and a column a metric."""
    rows = tuple(
        (name, *(cell(records, metric) for metric in columns.values()))
        for name, records in groups.items()
    )
    return Table(title, (first, *columns), rows)


def show(runs: Mapping[str, Sequence[Record]], *, title: str) -> None:
    """Prints a table with one column a run and one row a metric."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("test set", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right", no_wrap=True)
    for label, metric in COLUMNS.items():
        cells = [cell(final_records(records), metric) for records in runs.values()]
        if set(cells) != {"-"}:
            table.add_row(label, *cells)
    # Not the table's own title, which is wrapped to the width of the table.
    console = Console()
    console.print(f"\n{title}", highlight=False)
    console.print(table)
