import pytest

from train.reporting.summary import Summary, Table

WIDE = Table(
    "many",
    ("network", *(f"metric number {i}" for i in range(9))),
    tuple((f"network {j}", *(f"{j:02}.{i:03} ± 0.001" for i in range(9))) for j in range(12)),
)

# Headers of many words above cells of few digits, which a narrow terminal shows below each other.
LONG = Table(
    "long",
    ("network", *(f"a header of many words {i}" for i in range(7))),
    tuple((f"network {j}", *(f"{j + 20}.{i:03}" for i in range(7))) for j in range(12)),
)


@pytest.mark.parametrize("width", [40, 80, 81, 82, 95, 400])
def test_no_number_is_cut_or_wrapped(width, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    Summary(tmp_path, "title", (WIDE, LONG), {}).show()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines[3:-1])) <= width
    for row in (*WIDE.rows, *LONG.rows):
        for value in row[1:]:
            # Beside the name of its row, or, in a table that is turned, below it.
            assert sum(value in line for line in lines) == 1


def test_every_part_names_its_rows(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    rows = tuple(("0.03", str(n), *(f"0.{n:02}{i} ± 0.001" for i in range(8))) for n in range(12))
    table = Table("two columns name a row", ("rate", "step", *(f"m{i}" for i in range(8))), rows)
    # Its width alone would not turn it.
    assert 80 < table.width() < table.transposed().width()
    Summary(tmp_path, "title", (table,), {}).show()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    steps = [step for line in lines if line[:1] == ["step"] for step in line[1:]]
    assert steps == [str(n) for n in range(12)]


def test_a_cell_wider_than_the_terminal_is_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Table("title", ("a", "b"), (("x" * 50, "y" * 60),)).show()
    printed = capsys.readouterr().out
    assert printed.count("x") == 50
    assert printed.count("y") == 60


def test_a_table_without_rows_or_with_one_column():
    assert Table("title", ("a", "b"), ()).parts(80) == [Table("title", ("a", "b"), ())]
    assert Table("title", ("a",), (("1",),)).parts(80) == [Table("title", ("a",), (("1",),))]
