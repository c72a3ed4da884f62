"""The stored notebooks are in step with their text form, executed, clean, and install what they import.

Nothing is executed here: that is `make test-notebooks`.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted({path.stem for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")})
LISTED = (FOLDER / "README.md").read_text(encoding="utf-8")
LIMIT = 600 * 2**10  # bytes of a stored notebook
BROUGHT = {"jax", "numpy", "jaxtyping"}  # dependencies of mirjax
PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|work|content|Users)/|\b[A-Z]:\\")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")

notebooks = pytest.mark.parametrize("name", NAMES)


def text_form(name):
    return jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")


def stored(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_notebooks_are_found():
    assert len(NAMES) >= 3


@notebooks
def test_text_form_and_notebook_are_in_step(name):
    text, notebook = text_form(name), stored(name)
    sources = [[(cell.cell_type, cell.source) for cell in it.cells] for it in (text, notebook)]
    assert sources[0] == sources[1], f"run: make notebooks ONLY={name}"


@notebooks
def test_every_cell_was_executed_in_order(name):
    cells = code_cells(stored(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@notebooks
def test_outputs_have_no_errors_warnings_or_places(name):
    for output in outputs(stored(name)):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not PLACE.search(text), text
        assert not ADDRESS.search(text), text
        # The pages of the site show text and PNG only.
        assert set(output.get("data", {})) <= {"text/plain", "image/png"}


@notebooks
def test_a_notebook_that_draws_has_pictures(name):
    notebook = stored(name)
    draws = any("plt.show()" in cell.source for cell in code_cells(notebook))
    pictures = sum("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert pictures >= 1 if draws else pictures == 0


@notebooks
def test_the_file_is_small_and_the_same_from_run_to_run(name):
    notebook = stored(name)
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LIMIT
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]
    assert not any(cell.metadata for cell in notebook.cells)


@notebooks
def test_the_notebook_has_a_title_and_is_listed(name):
    first = text_form(name).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(rf"^\| [\[`]+{name}\b", LISTED, re.MULTILINE)


def installed(name, monkeypatch, absent):
    """The calls of pip in the first cell where `absent(module)` cannot be imported, and its names."""
    calls = []
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if absent(module) else object()
    )
    for function in ("run", "check_call"):
        monkeypatch.setattr(subprocess, function, lambda arguments, **_: calls.append(arguments))
    names = {}
    exec(code_cells(text_form(name))[0].source, names)
    return calls, names


@notebooks
def test_the_first_cell_does_nothing_where_all_is_there(name, monkeypatch):
    calls, _ = installed(name, monkeypatch, lambda _: False)
    assert calls == []


@notebooks
def test_the_first_cell_installs_what_is_missing(name, monkeypatch):
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    calls, names = installed(name, monkeypatch, lambda _: True)
    assert calls == [[*pip, *names["NEEDED"].values()]]
    assert names["NEEDED"]["mirjax"] == names["MIRJAX"] == "mirjax[plot]"
    # The JAX of the accelerator stays.
    assert not {"jax", "jaxlib"} & set(names["NEEDED"])
    assert not any(re.match(r"jax(lib)?\b", what) for what in names["NEEDED"].values())
    one = list(names["NEEDED"])[-1]
    calls, _ = installed(name, monkeypatch, lambda module: module == one)
    assert calls == [[*pip, names["NEEDED"][one]]]


@notebooks
def test_the_first_cell_is_the_same_everywhere(name):
    first, other = (code_cells(text_form(n))[0].source for n in (name, NAMES[0]))
    needed = re.compile(r"^NEEDED = \{.*?\}$", re.MULTILINE | re.DOTALL)
    assert needed.sub("", first) == needed.sub("", other)


@notebooks
def test_the_first_cell_names_what_is_imported(name, monkeypatch):
    _, names = installed(name, monkeypatch, lambda _: False)
    imported = set()
    for node in ast.walk(ast.parse("\n".join(c.source for c in code_cells(text_form(name))))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= BROUGHT | set(names["NEEDED"])
