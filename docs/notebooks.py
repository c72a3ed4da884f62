"""Executes the notebooks: `make notebooks` stores the results, `make test-notebooks` only looks for errors.

People edit `notebooks/NAME.py`, cells in jupytext's percent format. `notebooks/NAME.ipynb` is made of it
here. Each notebook runs from its first cell in a kernel of its own, in an empty working directory.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIMIT = 300  # seconds a notebook


def main() -> int:
    """The exit status: how many notebooks failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of notebooks, all if none is given")
    parser.add_argument("--check", action="store_true", help="store nothing")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in FOLDER.glob("*.py"))
    if not names:
        raise SystemExit(f"there is no notebook in {FOLDER.name}/")
    # What is stored has times in it, which are those of a notebook alone.
    at_once = 2 if arguments.check else 1
    executed = asyncio.run(execute_all(names, at_once, store=not arguments.check))
    print(f"{executed} of {len(names)} notebooks executed")
    return len(names) - executed


async def execute_all(names: list[str], at_once: int, *, store: bool) -> int:
    """Executes the notebooks, so many at once; how many ran to their end."""
    places = asyncio.Semaphore(at_once)

    async def one(name):
        async with places:
            notebook = read(FOLDER / f"{name}.py")
            start = time.monotonic()
            if error := await execute(notebook):
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                return False
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
            if store:
                nbformat.write(notebook, FOLDER / f"{name}.ipynb")
            return True

    return sum(await asyncio.gather(*map(one, names)))


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook of a text form, with metadata that stay the same from run to run."""
    notebook = jupytext.read(path, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # random otherwise
        cell.metadata = nbformat.from_dict({})  # how many empty lines follow, for jupytext
    notebook.metadata = metadata()
    return notebook


async def execute(notebook: nbformat.NotebookNode) -> str:
    """Runs all cells in place; what went wrong, or nothing."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        empty = Path(place, "empty")
        empty.mkdir()
        # Times of execution would be in every cell, and change with every run.
        client = NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(empty)}},
            # Sockets in files: what runs in a kernel is seen by its user alone.
            config=Config(KernelManager={"transport": "ipc", "ip": f"{place}/kernel"}),
        )
        try:
            # The limit of the client is that of one cell.
            await asyncio.wait_for(client.async_execute(), LIMIT)
        except CellExecutionError as error:
            return str(error)
        except (
            TimeoutError,
            DeadKernelError,
        ) as error:  # a kernel that is stopped for time is dead
            taken = time.monotonic() - start
            return f"stopped after {taken:.0f} s of {LIMIT} s. {error}"
    notebook.metadata = metadata()  # without the version of Python that the client adds
    return ""


def metadata() -> nbformat.NotebookNode:
    """Of every notebook."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})


if __name__ == "__main__":
    sys.exit(main())
