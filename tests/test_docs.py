"""The documentation's code runs and prints what it says, and the reference names everything once."""

import contextlib
import importlib
import io
import re
import types
from pathlib import Path

import pytest

import mirjax
from mirjax import metrics, plot, report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BELOW = ("Spectra", "Table", "Section", "InputError", "page", "escaped")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def promised(code):
    """The comment lines at the end of a block: what it prints."""
    lines = code.rstrip("\n").split("\n")
    start = len(lines)
    while start and lines[start - 1].startswith("#"):
        start -= 1
    return [line.removeprefix("#").removeprefix(" ") for line in lines[start:]]


def assert_printed(found, expected, where):
    """The same words, and numbers that differ by one in the last digit at most."""
    assert [NUMBER.sub("#", line) for line in found] == [
        NUMBER.sub("#", line) for line in expected
    ], where
    for ours, theirs in zip(NUMBER.findall("\n".join(found)), numbers(expected), strict=True):
        digits = re.sub(r"e.*", "", theirs).partition(".")[2]
        scale = 10.0 ** int(theirs.partition("e")[2] or 0)
        allowed = 1.01 * scale * 10.0 ** -len(digits) if digits or "e" in theirs else 0
        assert abs(float(ours) - float(theirs)) <= allowed, f"{where}: {ours}, page: {theirs}"


def numbers(lines):
    return NUMBER.findall("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs_and_prints_what_the_page_says(page):
    text, names = page.read_text(encoding="utf-8"), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        where = f"{page.relative_to(ROOT)}, line {text[: block.start()].count(chr(10)) + 1}"
        # Empty lines in front: errors then name the line of the page.
        code = "\n" * (text[: block.start()].count("\n") + 1) + block[1]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        found = [line.rstrip() for line in printed.getvalue().splitlines()]
        assert_printed(found, promised(block[1]), where)


def test_pages_with_code_are_found():
    assert len(WITH_CODE) >= 8
    assert sum(len(BLOCK.findall(page.read_text(encoding="utf-8"))) for page in WITH_CODE) >= 20


def test_a_wrong_number_is_found():
    assert_printed(["MIR 0.662, n = 512"], ["MIR 0.661, n = 512"], "")
    for wrong in (
        "MIR 0.660, n = 512",
        "MIR 0.662, n = 513",
        "HDR 0.662, n = 512",
        "MIR nan, n = 1",
    ):
        with pytest.raises(AssertionError):
            assert_printed(["MIR 0.662, n = 512"], [wrong], "")


def public():
    """Every name of `mirjax.__all__` and what it means, and what is in the modules that are public."""
    others = {"plot": plot, "metrics": metrics, "report": report}
    for name in (*mirjax.__all__, *others):
        member = others.get(name) or getattr(mirjax, name)
        yield f"mirjax.{name}", member
        if isinstance(member, types.ModuleType):
            for inner, value in vars(member).items():
                # What several modules use is defined below them.
                is_own = getattr(value, "__module__", "") == member.__name__ or inner in BELOW
                if is_own and inner[0] != "_":
                    yield f"mirjax.{name}.{inner}", value


def named(path):
    """What a path means: an attribute of a package, or of a module that has the name of one."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_reference_has_every_public_name_once():
    text = "\n".join(
        page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md"))
    )
    paths = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    found = [id(named(path)) for path in paths]
    names = dict(public())
    assert len(names) > 35
    for name, member in names.items():
        assert found.count(id(member)) == 1, name
    assert len(found) == len(names)


def test_every_page_is_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = site.partition("\nnav:")[2].partition("\nhooks:")[0]
    for page in DOCS.rglob("*.md"):
        assert len(re.findall(rf"[ :]{page.relative_to(DOCS)}$", navigation, re.MULTILINE)) == 1, (
            page
        )
