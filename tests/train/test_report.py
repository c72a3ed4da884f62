import dataclasses
import re
import shutil
import sys

import pytest

from mirjax.theory import collapsed_mir
from train import report
from train.reporting.summary import Claim, Summary, Table
from train.run.errors import RunError
from train.smoothing import PRESETS as SMOOTHING
from train.smoothing import run as run_smoothing
from train.supervised import PRESETS, run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    plain = dataclasses.replace(PRESETS["smoke"], steps=2, eval_every=2, out=out / "plain")
    swept = dataclasses.replace(SMOOTHING["smoke"], steps=2, eval_every=2, out=out / "swept")
    run(plain, quiet=True)
    run_smoothing(swept, quiet=True)
    return plain.out, swept.out


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


@pytest.mark.slow
def test_one_page_holds_everything(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "page.html"
    command(monkeypatch, *folders, "--out", out)
    assert "2 runs" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,iVBOR") == 2
    # Nothing is loaded from elsewhere.
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "url(" not in text
    for expected in (
        "Label smoothing: digits",
        "n = 360",
        "What the paper reports",
        f"{collapsed_mir(10):.4f}",
    ):
        assert expected in text, expected
    for setting in ("epsilons", "learning_rate", "0.03"):
        assert f"<td>{setting}</td>" in text


def test_the_page_escapes_what_it_shows(tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "settings.json").write_text(
        '{"settings": {"dataset": "<script>1</script>"}}', encoding="utf-8"
    )
    table = Table("<b>", ("a", "b"), (("<i>", "&"),))
    claim = Claim("<u>", "", "", "")
    Summary(run_folder, "<script>2</script>", (table,), {}, (claim,)).write()
    text = report.page([run_folder], title="<script>3</script>")
    assert "<script>" not in text
    assert "&lt;script&gt;2" in text


def test_an_existing_file_is_kept(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.html"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        command(monkeypatch, folders[0], "--out", out)
    assert "exists; name another place" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("content", [None, "{}", '{"settings": 3}'])
def test_a_folder_without_a_run(content, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "settings.json").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, "--out", tmp_path / "page.html")
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_has_not_finished(folders, tmp_path, monkeypatch, capsys):
    shutil.copy(folders[0] / "settings.json", tmp_path)
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, "--out", tmp_path / "page.html")
    assert "metrics.jsonl cannot be read" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, "--out", tmp_path / "page.html")
    assert "Let the run finish first" in capsys.readouterr().err


def test_a_run_in_the_middle_or_a_part_of_an_experiment(folders, tmp_path):
    plain, swept = folders
    for source, message in ((plain, "at step 0 of 2"), (swept, "part of an experiment")):
        copy = tmp_path / source.name
        copy.mkdir()
        shutil.copy(source / "settings.json", copy)
        lines = (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(lines[:1] if source == plain else lines)
        (copy / "metrics.jsonl").write_text(kept, encoding="utf-8")
        with pytest.raises(RunError, match=message):
            report.page([copy], title="")
