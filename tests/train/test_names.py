"""Names of users are shown as they are, whatever characters they have."""

import dataclasses
import html
import re

import jax.numpy as jnp
import markdown_it
import pytest
from matplotlib.figure import Figure

import mirjax
from mirjax import theory
from train import bias
from train.data.types import about, from_arrays, source_of
from train.reporting.plots import Line, Panel, draw
from train.reporting.summary import Summary, Table, escaped
from train.run.errors import RunError
from train.run.files import legible
from train.run.folder import claim

NAMES = (
    "a$b$ [x] 5% ü",
    r"$5%$ \frac{",
    "[bold]c[/bold] [/x] :x: #1",
    "*_d_* <b> `e` f|g &amp; h_i",
)


def drawn_title(draw_picture, path):
    """The title of a picture, and whether Matplotlib takes parts of it for formulas."""
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        save = Figure.savefig

        def note(figure, *arguments, **options):
            titles.append(figure._suptitle)
            save(figure, *arguments, **options)

        patch.setattr(Figure, "savefig", note)
        draw_picture(path)
    (title,) = titles
    assert path.stat().st_size > 1000
    return title.get_text(), title.get_parse_math()


@pytest.mark.parametrize("name", NAMES)
def test_in_pictures(name, tmp_path):
    panel = Panel("accuracy", "step", [Line("test", [0, 1], [0.1, 0.9], [0.0, 0.1])])
    title = f"Smoothing: {name}, mlp\nn = 5"
    shown = drawn_title(lambda path: draw([panel], path, title=title), tmp_path / "a.png")
    assert shown == (title, False)


@pytest.mark.parametrize("name", NAMES[:2])
def test_in_pictures_of_batch_sizes(name, tmp_path):
    facts = {"data": name, "model": "mlp", "step": 4, "split": "test", "n": 32, "classes": 4}
    head = theory.simplex_etf(4, 8)
    labels = jnp.arange(32) % 4
    features = head[labels]
    curve = mirjax.batch_bias(features, head, labels, batch_sizes=(16,))
    title = f"{name}, mlp, step 4, test set: n = 32"
    for what, content in ((bias.draw, curve), (bias.draw_spectra, features)):
        networks = dict.fromkeys(("trained", "untrained"), content)
        drawn = drawn_title(lambda path, w=what, n=networks: w(facts, n, path), tmp_path / "a.png")
        assert drawn == (title, False)


@pytest.mark.parametrize("name", NAMES)
def test_on_the_console(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    table = Table(f"{name}: n = 5", ("", f"{name} 1"), ((f"{name} 2", f"{name} 3"),))
    Summary(tmp_path / name, f"Smoothing: {name}", (table,), {}).show()
    shown = capsys.readouterr().out
    for text in (f"Smoothing: {name}", f"{name}: n = 5", *(f"{name} {i}" for i in (1, 2, 3))):
        assert text in shown
    assert f"are in {tmp_path / name}/" in shown


@pytest.mark.parametrize("name", [*NAMES, "__init__ ~~x~~ a*b* c_"])
def test_in_markdown(name, tmp_path):
    table = Table(f"{name}, n = 5", ("", name), ((f"{name} 1", "p < 0.001 *"),))
    Summary(tmp_path, f"Smoothing: {name}", (table,), {}).write()
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    parts = re.findall(r"<(h1|p|th|td)>(.*?)</\1>", page)
    shown = [html.unescape(content) for _, content in parts]
    cells = ["", name, f"{name} 1", "p < 0.001 *"]
    assert shown == [f"Smoothing: {name}", f"{name}, n = 5", *cells]


def test_what_needs_no_escape_has_none():
    plain = (
        "fashion_mnist (n = 10,000; a fifth): MIR ± 0.1 * and p < 0.001, ω = 0.5 · c - 2 / 3 & 5 %"
    )
    assert escaped(plain) == plain


def test_names_that_the_locale_could_not_read(tiny):
    # Bytes of UTF-8 in an ASCII locale, and bytes that are no UTF-8.
    assert legible("caf\udcc3\udca9, 5 % ü") == "café, 5 % ü"
    assert legible("a\udcff ü") == "a\\udcff ü"
    splits = tiny.train.images, tiny.train.labels, tiny.test.images, tiny.test.labels
    data = from_arrays("caf\udcc3\udca9", *splits)
    assert source_of(data) == about(data)["data"] == "café"


def test_a_folder_that_checkpoints_could_not_open(settings, tmp_path):
    odd = dataclasses.replace(settings, out=tmp_path / "caf\udcc3\udca9")
    with pytest.raises(RunError, match=r"not UTF-8, which checkpoints need. Set PYTHONUTF8=1"):
        claim(odd, {})
    assert not list(tmp_path.iterdir())
