"""What `mkdocs build` does beside rendering pages: pages from elsewhere, notebooks, links, formulas.

Pages that have their home elsewhere in the repository are rendered from there, so that there is no
second copy. A relative link means the same file as in the repository: if that file is part of the site
the link leads there, and if not, only its text is left, since the repository has no public address.
"""

import base64
import html
import json
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file in the repository.
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "experiments/index.md": "results/README.md",
    "notebooks/index.md": "notebooks/README.md",
}
# A link to the README means the first page.
ALIASES = {"README.md": "index.md"}
# Of these folders all pages and pictures are taken, beside the README that is named above.
FOLDERS = {"results": "experiments"}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
# What latex2mathml leaves to the browser, and browsers do otherwise than TeX: (pattern, replacement).
_NAME = r"<mi>[A-Za-z]{2,}</mi>"
_ORDINARY = r"(?:mi|mn|mover|msub|msup|msubsup|mfrac|mstyle)\b[^>]*"
_CLOSING = r'<mo stretchy="false">&#x00029;</mo>'
_THIN = r'\1<mspace width="0.17em"/>'
_TIDY = (
    # Names of functions: no wide spaces as of operators, thin ones.
    (r"<mo>([A-Za-z]{2,})</mo>", r"<mi>\1</mi>"),
    (rf"({_NAME})(?=<{_ORDINARY})", _THIN),
    (rf"(</{_ORDINARY}>|{_CLOSING})(?={_NAME})", _THIN),
    # Bars of norms and absolute values do not grow, slashes stand close, a sign is no difference.
    (r"<mo>(&#x(?:02016|0007C);)</mo>", r'<mo stretchy="false">\1</mo>'),
    (r"<mo>(&#x0002F;|/)</mo>", r'<mo lspace="0" rspace="0">/</mo>'),
    (
        r"(<mo>&#x(?:0003D|02264|02265);</mo>)<mo>&#x02212;</mo>",
        r'\1<mo form="prefix" lspace="0" rspace="0">&#x02212;</mo>',
    ),
)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>([.,;:)]*)', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the notebooks into the navigation, below the page that lists them."""
    section = next(entry["Notebooks"] for entry in config.nav if "Notebooks" in entry)
    section.extend(page for page, source in elsewhere().items() if source.endswith(".ipynb"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that lie outside the folder of the documentation."""
    for page, source in elsewhere().items():
        if source.endswith(".ipynb"):
            text, pictures = notebook_page(ROOT / source)
            files.append(File.generated(config, page, content=text))
            files.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
            for place, content in pictures.items():
                files.append(File.generated(config, place, content=content))
            continue
        named = page in ELSEWHERE
        kept = InclusionLevel.INCLUDED if named else InclusionLevel.NOT_IN_NAV
        path = str(ROOT / source)
        files.append(File.generated(config, page, abs_src_path=path, inclusion=kept))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    del config, files
    source = elsewhere().get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri == "experiments/index.md":
        markdown = under_one_title(with_pictures(markdown))
    if page.file.src_uri.startswith("experiments/"):
        markdown = markdown.replace(" ± ", "\u00a0±\u00a0")
    markdown = linked(markdown, source, page.file.src_uri)
    if source.endswith(".ipynb"):
        title, _, rest = markdown.partition("\n")
        file = os.path.basename(source)
        markdown = f"{title}\n\n[Download this notebook]({file}){{ .notebook }}\n{rest}"
    return markdown


def on_page_content(page_html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML."""
    del page, config, files
    return _FORMULA.sub(lambda found: mathml(html.unescape(found[2]), found[3]), page_html)


def elsewhere() -> dict[str, str]:
    """Page or picture of the site -> file in the repository, for all that lies outside `docs/`."""
    found = dict(ELSEWHERE)
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            source = path.relative_to(ROOT).as_posix()
            if path.suffix in (".md", ".png") and source not in ELSEWHERE.values():
                found[f"{place}/{path.relative_to(ROOT / folder).as_posix()}"] = source
    # In the order in which their list names them.
    notebooks = ROOT / "notebooks"
    listed = (notebooks / "README.md").read_text(encoding="utf-8")
    for path in sorted(notebooks.glob("*.ipynb"), key=lambda path: listed.find(path.stem)):
        found[f"notebooks/{path.stem}.md"] = f"notebooks/{path.name}"
    return found


def linked(markdown: str, source: str, page: str) -> str:
    """The text of a page with its relative links as links of the site.

    Args:
        markdown: of the page.
        source: its file, relative to the repository.
        page: its place in the site.

    Raises:
        FileNotFoundError: a link leads to a file that is not there.
    """
    pages = {file: place for place, file in elsewhere().items()} | ALIASES

    def replaced(found: re.Match) -> str:
        image, text, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        file = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if not (ROOT / file).exists():
            raise FileNotFoundError(f"{source} links to {target}, and there is no {file}")
        inside = file.removeprefix("docs/") if file.startswith("docs/") else None
        place = pages.get(file, inside)
        if place is None:
            return text
        return f"{image}[{text}]({os.path.relpath(place, os.path.dirname(page))}{mark}{anchor})"

    # Code is left as it is: every other part lies between two fences.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [_LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A stored notebook as the text of a page, and its pictures by their place in the site.

    Text and PNG are what the notebooks print (`tests/test_notebooks.py`), and what is shown.
    """
    parts, pictures, heading = [], {}, ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            heading = (re.findall(r"^#+ (.*)$", source, re.MULTILINE) or [heading])[-1]
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}/{len(pictures)}.png"
                pictures[f"notebooks/{name}"] = base64.b64decode("".join(data["image/png"]))
                what = html.escape(re.sub(r"[`$*]", "", heading), quote=True)
                parts.append(f'<img src="{name}" alt="Picture of the section: {what}">')
            else:
                text = "".join(data["text/plain"]).rstrip()
                parts.append(f"``` {{ .text .output }}\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def with_pictures(markdown: str) -> str:
    """The results with the pictures and tables of each folder below the section that is about it."""
    sections = re.split(r"^(?=##? )", markdown, flags=re.MULTILINE)
    for i, section in enumerate(sections):
        if not (title := re.match(r"## `([\w-]+)/`:? ?(.*)", section)):
            continue
        folder = ROOT / "results" / title[1]
        found = {suffix: sorted(folder.rglob(f"*{suffix}")) for suffix in (".png", ".md")}
        names = {
            suffix: [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
            for suffix, paths in found.items()
        }
        places = [(f"{title[2]}: {name}", f"{title[1]}/{name}.png") for name in names[".png"]]
        lines = [f"[![{what}]({place})]({place})\n" for what, place in places]
        if tables := [f"[{name}]({title[1]}/{name}.md)" for name in names[".md"]]:
            lines.append(f"All tables of this run: {', '.join(tables)}.\n")
        sections[i] = section.rstrip() + "\n\n" + "\n".join(lines) + "\n"
    return "".join(sections)


def under_one_title(markdown: str) -> str:
    """The page with what follows a second title one level lower, so that the contents list it."""
    first, *others = re.split(r"^(?=# )", markdown.lstrip(), flags=re.MULTILINE)[1:]
    return first + "".join(re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in others)


def mathml(formula: str, after: str = "") -> str:
    r"""MathML of `\(...\)` or `\[...\]`, with the punctuation that must not leave it.

    Raises:
        ValueError: a command was not understood.
    """
    display = "block" if formula.strip().startswith("\\[") else "inline"
    result = convert(formula.strip()[2:-2].strip(), display=display)
    if unknown := re.search(r"<m\w+[^>]*>(\\\w+|&)<", result):
        raise ValueError(f"{unknown[1]} is not understood in the formula {formula}")
    for pattern, replacement in _TIDY:
        result = re.sub(pattern, replacement, result)
    if display == "block":
        return f'<div class="formula">{result}</div>{after}'
    return f'<span class="formula">{result}{after}</span>' if after else result
