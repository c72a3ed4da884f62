"""Who imports whom, read from the source: downward only, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom. What stands on one line must not import each other.
TRAIN = [
    {"run", "models"},
    {"reporting", "data"},
    {"engine"},
    {"evaluation"},
    {"ssl", "modular"},
    {"supervised"},
]
MIRJAX = [{"_checks", "_memory", "_mesh"}, {"_linalg"}, {"_batch"}, {"_dataset"}]
# What the library is made of. Others only where the second set says so.
LIBRARY = {"jax", "jaxtyping", "numpy", "mirjax"}
EXCEPTIONS = {
    "mirjax.plot": {"matplotlib"},
    "mirjax.metrics": {"flax"},
    "mirjax.report": {"matplotlib"},
    "mirjax._report.sources": {"pyarrow", "torch"},
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(f): f for top in ("mirjax", "train") for f in (ROOT / top).rglob("*.py")}


def imports(module):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


def level(module, levels):
    """The number of a module's line; everything that is on no line is above them all."""
    name = module.split(".")[1] if "." in module else ""
    return next((i for i, names in enumerate(levels) if name in names), len(levels))


@pytest.mark.parametrize(("top", "levels"), [("train", TRAIN), ("mirjax", MIRJAX)])
def test_imports_go_downward(top, levels):
    checked = 0
    for module in FILES:
        if module.split(".")[0] != top or module == top:
            continue
        for other in imports(module):
            if other.split(".")[0] != top or other == top:
                continue
            same = module.split(".")[1] == other.split(".")[1]
            mine, theirs = level(module, levels), level(other, levels)
            both_above = mine == theirs == len(levels)
            assert same or both_above or theirs < mine, f"{module} imports {other}"
            checked += 1
    assert checked > 30


def test_there_is_no_circle():
    graph = {m: {o for o in imports(m) if o in FILES and o != m} for m in FILES}
    # A package that imports its own modules, which are imported with it, makes no circle.
    order = TopologicalSorter(
        {m: {o for o in others if not m.startswith(f"{o}.")} for m, others in graph.items()}
    )
    assert len(list(order.static_order())) == len(FILES)


def test_the_library_needs_little():
    standard = {
        "argparse",
        "base64",
        "collections",
        "dataclasses",
        "functools",
        "glob",
        "html",
        "importlib",
        "io",
        "itertools",
        "json",
        "math",
        "mmap",
        "operator",
        "os",
        "pathlib",
        "re",
        "struct",
        "sys",
        "time",
        "typing",
        "warnings",
        "zipfile",
    }
    for module in FILES:
        if module.split(".")[0] == "mirjax":
            tops = {other.split(".")[0] for other in imports(module)}
            assert tops <= LIBRARY | standard | EXCEPTIONS.get(module, set()), module


def test_each_file_of_train_itself_is_a_command():
    files = [f for f in (ROOT / "train").glob("*.py") if f.name != "__init__.py"]
    assert len(files) >= 15
    assert all('if __name__ == "__main__":' in f.read_text(encoding="utf-8") for f in files)
