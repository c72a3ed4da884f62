"""Tables, and the page that shows them: Markdown, aligned text and one self-contained HTML file."""

import base64
import dataclasses
import html
import re
from collections.abc import Iterable, Sequence

# What Markdown could read as markup: not a star between spaces, nor an underscore within a word.
_MARKUP = re.compile(
    r"[\\`$\[\]|]|<(?=[\w/!?])|&(?=[\w#])|[*~](?=\S)|(?<=\S)[*~]|(?<![^\W_])_|_(?![^\W_])"
)

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --text: #1f2328; --back: #fff;
  --mark: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #151b23; --text: #e6edf3; --back: #0d1117; --mark: #4493f8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; color: var(--text);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
a { color: var(--mark); }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
nav ul { padding-left: 1.2rem; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .note { font-size: .875rem; opacity: .8; overflow-wrap: anywhere; }
.warning { border-left: 3px solid var(--mark); padding-left: .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0 1.5rem;
  font-variant-numeric: tabular-nums; }
.caption { margin: 1.5rem 0 .5rem; font-size: .875rem; font-weight: 600; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th:first-child, td:first-child, .prose th, .prose td { text-align: left; }
td { white-space: nowrap; }
td:first-child { white-space: normal; min-width: 7rem; }
th.words, td.words { text-align: left; white-space: normal; min-width: 14rem; }
.prose td { white-space: normal; min-width: 9rem; }
thead th { background: var(--soft); }
details { margin: .75rem 0; }
summary { cursor: pointer; }
"""


def escaped(text: str) -> str:
    """Text that Markdown shows as it is; the name of a file may have any character."""
    return _MARKUP.sub(r"\\\g<0>", text)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text, with a title that names n and units.

    Attributes:
        title: what the table shows.
        columns: the heads of the columns.
        rows: as many texts in each as there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown, below its title."""

        def line(cells: Sequence[str]) -> str:
            return "|" + "|".join(f" {escaped(text)} " if text else " " for text in cells) + "|"

        lines = [line(self.columns), "|" + "---|" * len(self.columns), *map(line, self.rows)]
        return f"{escaped(self.title)}\n\n" + "\n".join(lines) + "\n"

    def without(self, column: str) -> "Table":
        """The table less one column, if it has it."""
        kept = [i for i, name in enumerate(self.columns) if name != column]
        columns, *rows = (tuple(row[i] for i in kept) for row in (self.columns, *self.rows))
        return Table(self.title, columns, tuple(rows))

    def text(self) -> str:
        """The table as aligned lines, below its title; the first column on the left."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first = cells[0].ljust(widths[0])
            rest = [text.rjust(w) for text, w in zip(cells[1:], widths[1:], strict=True)]
            return "  ".join([first, *rest]).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, line(self.columns), rule, *map(line, self.rows)]) + "\n"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, which shows what it has in this order.

    Attributes:
        title: its heading.
        notes: sentences below the heading.
        warnings: what the reader should know before using a number.
        prose: tables of sentences, whose cells wrap.
        pictures: what each shows, and its PNG.
        tables: tables of numbers.
        folded: tables behind the names that open them.
    """

    title: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    prose: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML file that loads nothing from elsewhere, light and dark, for any width.

    Args:
        title: the heading of the page.
        sections: its parts; with more than one there is a list of them on top.

    Returns:
        The text of the file. Whatever the texts hold is shown, and never run.
    """
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    if len(sections) > 1:
        links = (
            f'<li><a href="#part{i}">{html.escape(section.title)}</a></li>'
            for i, section in enumerate(sections, 1)
        )
        parts += ["<nav>\n<ul>", *links, "</ul>\n</nav>"]
    for number, section in enumerate(sections, 1):
        parts += _section(section, number)
    return "\n".join([*parts, "</body>\n</html>\n"])


def _section(section: Section, number: int) -> Iterable[str]:
    yield f'<section id="part{number}">\n<h2>{html.escape(section.title)}</h2>'
    for note in section.notes:
        yield f'<p class="note">{html.escape(note)}</p>'
    for warning in section.warnings:
        yield f'<p class="warning">{html.escape(warning)}</p>'
    for table in section.prose:
        yield _table(table, "prose")
    for what, picture in section.pictures:
        data = base64.b64encode(picture).decode()
        text = html.escape(what)
        yield (
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    for table in section.tables:
        yield _table(table)
    for name, table in section.folded:
        yield f"<details>\n<summary>{html.escape(name)}</summary>\n{_table(table)}\n</details>"
    yield "</section>"


def _table(table: Table, kind: str = "") -> str:
    # Definitions are words among numbers.
    marks = [' class="words"' if name == "definition" else "" for name in table.columns]

    def cells(tag: str, row: Sequence[str]) -> str:
        name = tag.split()[0]
        return "".join(
            f"<{tag}{mark}>{html.escape(text)}</{name}>"
            for text, mark in zip(row, marks, strict=True)
        )

    heads = cells('th scope="col"', table.columns)
    rows = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    caption = f'<p class="caption">{html.escape(table.title)}</p>\n' if table.title else ""
    head = f"<thead><tr>{heads}</tr></thead>\n" if any(table.columns) else ""
    name = f' class="{kind}"' if kind else ""
    return (
        f'{caption}<div class="scroll"><table{name}>\n{head}<tbody>\n{rows}\n</tbody>\n'
        "</table></div>"
    )
