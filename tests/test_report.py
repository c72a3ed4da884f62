"""Reports of files: the numbers are those of the functions, whatever the chunks; and the command."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import mirjax
from mirjax.__main__ import main
from mirjax.report import SCHEMA, InputError, compare, read, report

N, D, C = 240, 6, 4


def drawn(seed=0, n=N):
    rng = np.random.default_rng(seed)
    head, labels = rng.normal(size=(C, D)).astype(np.float32), rng.integers(0, C, n)
    return (head[labels] + rng.normal(size=(n, D))).astype(np.float32), labels, head


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, array in zip(("features", "labels", "head"), drawn(), strict=True):
        np.save(f"{name}.npy", array)
    np.save("second.npy", drawn()[0] @ np.random.default_rng(3).normal(size=(D, 3)))
    np.save("bias.npy", np.linspace(0, 1, C).astype(np.float32))
    return tmp_path


def assert_values(found, expected):
    for name, right in expected.items():
        assert found[name].value == pytest.approx(float(right), rel=1e-4, abs=2e-5, nan_ok=True), (
            name
        )


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.parametrize("held", [True, False])
def test_values_are_those_of_the_functions(held, batch_size, monkeypatch):
    features, labels, head = drawn()
    if not held:
        monkeypatch.setattr(mirjax._report.measure, "_HELD", 0)
    bias = np.linspace(0, 1, C).astype(np.float32)
    found = report(features, labels=labels, head=head, bias=bias, batch_size=batch_size)
    whole = mirjax.dataset_interplay(features, head, labels)
    pairs = mirjax.dataset_debiased_interplay(features, head, labels)
    collapse = mirjax.neural_collapse(features, labels, head, num_classes=C, bias=bias)
    spectra = mirjax.spectra.measure(features, labels, num_classes=C)
    expected = {k: getattr(whole, k) for k in ("mir", "hdr", "entropy1", "joint_entropy")}
    expected |= {f"{k}_debiased": getattr(pairs, k) for k in ("mir", "hdr")}
    expected |= collapse._asdict()
    expected |= {k: v for k, v in spectra._asdict().items() if k != "eigenvalues"}
    if not held:
        del expected["participation_ratio_debiased"], expected["effective_rank_centred"]
    expected["accuracy"] = np.mean(np.argmax(features @ head.T + bias, axis=1) == labels)
    assert_values(found, expected)
    error = float(pairs.standard_error.mir)
    assert found["mir_debiased"].error == pytest.approx(error, rel=1e-3 if not held else 0.5)
    assert found["mir"].at_collapse == pytest.approx(mirjax.theory.collapsed_mir(C))
    assert found["mir"].error is None
    assert found.n == N
    assert found.counts == tuple(np.bincount(labels))


def test_what_is_given_decides_what_is_measured():
    features, labels, head = drawn()
    names = [{v.name for v in report(features, **more).values} for more in
             ({}, {"labels": labels}, {"labels": labels, "head": head})]  # fmt: skip
    assert {"rankme", "entropy", "alpha_req"} <= names[0]
    assert not {"lidar", "nc1", "mir"} & names[0]
    assert {"lidar", "nc1", "cdnv"} <= names[1]
    assert not {"nc3", "mir"} & names[1]
    assert {"nc3", "nc4", "mir", "mir_debiased", "class_mir"} <= names[2]


def test_two_representations(monkeypatch):
    features, *_ = drawn()
    second = features[:, :3] ** 2
    found = report(features, features2=second)
    assert_values(
        found,
        {
            "feature_mir": mirjax.feature_interplay(features, second).mir,
            "feature_hdr_debiased": mirjax.debiased_feature_interplay(features, second).hdr,
        },
    )
    monkeypatch.setattr(mirjax._report.measure, "SAMPLE", 100)
    part = report(features, features2=second, seed=5)
    assert part["feature_mir"].n == 100
    assert "100 of the 240 samples, drawn with seed 5" in part.notes[-1]


def test_layers_and_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(3, 40, 7, D)).astype(np.float32)
    mask = np.arange(7) < rng.integers(3, 8, 40)[:, None]
    hidden[:, ~mask] = np.nan
    found = report(hidden, mask=mask, layers=True, batch_size=16)
    assert [name for name, _ in found.layers] == ["0", "1", "2"]
    measured = mirjax.tokens.measure(hidden, mask)
    for number, (_, values) in enumerate(found.layers):
        by_name = {v.name: v.value for v in values}
        right = float(measured.prompt_entropy[number])
        assert by_name["prompt_entropy"] == pytest.approx(right, abs=1e-5)
        assert by_name["curvature"] == pytest.approx(float(measured.curvature[number]), abs=1e-5)
        entropy = float(measured.dataset_entropy[number])
        assert by_name["entropy"] == pytest.approx(entropy, abs=1e-5)
        if number < 2:
            expected = {
                "next_mir": measured.between.mir,
                "next_hdr_debiased": measured.debiased.hdr,
            }
            for name, right in expected.items():
                assert by_name[name] == pytest.approx(float(right[number]), abs=2e-5), name
    assert not any(name.startswith("next") for name in by_name)
    found.write("layers")
    assert read("layers").layers[0][0] == "0"
    assert "| measure | 0 | 1 | 2 |" in found.markdown()


def test_labels_of_text_and_of_any_numbers_and_a_head_that_was_turned():
    features, labels, head = drawn()
    text = np.array(["cat", "dog", "emu", "fox"])[labels]
    right = report(features, labels=labels, head=head)
    named = report(features, labels=text, head=np.ascontiguousarray(head.T))
    assert named.classes == ("cat", "dog", "emu", "fox")
    assert named["mir"].value == pytest.approx(right["mir"].value, abs=1e-6)
    assert "was turned" in named.notes[0]
    others = report(features, labels=labels * 10 + 7)
    assert others.classes == ("7", "17", "27", "37")
    assert others["nc1"].value == pytest.approx(right["nc1"].value, rel=1e-5)


def test_a_square_head_is_turned_if_only_that_fits():
    rng = np.random.default_rng(2)
    head, labels = rng.normal(size=(6, 6)).astype(np.float32), np.arange(300) % 6
    features = head[labels] + 0.3 * rng.normal(size=(300, 6)).astype(np.float32)
    features[0] = np.nan
    found = [report(features, labels=labels, head=w) for w in (head, head.T.copy())]
    assert found[0]["mir"].value == pytest.approx(found[1]["mir"].value, abs=1e-6)
    assert "its rows are the classes" in found[0].notes[0]
    assert "it was turned" in found[1].notes[0]


def test_rows_that_are_masked_or_broken_do_not_count():
    features, labels, head = drawn()
    mask = np.arange(N) % 3 > 0
    right = report(features[mask], labels=labels[mask], head=head)
    found = report(features, labels=labels, head=head, mask=mask, batch_size=64)
    broken = np.where(mask[:, None], features, np.nan).astype(np.float32)
    left_out = report(broken, labels=labels, head=head)
    for other in (found, left_out):
        assert_values(other, {v.name: v.value for v in right.values})
    assert "80 of them: 0, 3, 6, 9, 12 and 75 more" in left_out.warnings[0]


def test_warnings_say_what_is_odd():
    features, labels, head = drawn()
    features[5], features[9] = features[6], 0
    labels[:] = np.where(np.arange(N) < 200, 0, 1)
    text = " ".join(report(features, labels=labels, head=head).warnings)
    for expected in (
        "all zero, 1 of them (9)",
        "1 repeat an earlier one",
        "2 of 4 classes have no sample: 2, 3",
        "not balanced: from 40 to 200",
    ):
        assert expected in text, text
    assert "are few for 6 features" in report(features[:5]).warnings[0]


def test_written_once_and_read_again(files):
    assert main(["report", "features.npy", "--labels", "labels.npy", "--head", "head.npy"]) == 0
    found = read("report")
    content = json.loads((files / "report" / "report.json").read_text(encoding="utf-8"))
    assert content["schema"] == SCHEMA
    assert found.json() == (files / "report" / "report.json").read_text(encoding="utf-8")
    page = (files / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,iVBOR") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "prefers-color-scheme: dark" in page
    for name in ("report.html", "report.md"):
        assert "MIR, debiased" in (files / "report" / name).read_text(encoding="utf-8")
    before = page
    assert main(["report", "features.npy"]) == 2
    assert (files / "report" / "report.html").read_text(encoding="utf-8") == before


def test_names_of_files_are_shown_and_not_run(tmp_path):
    place = tmp_path / "<script>alert(1)</script>.npy".replace("/", "∕")
    np.save(place, drawn()[0])
    page = report(place).html()
    assert "<script>" not in page


def test_reports_beside_each_other(files, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        features, labels, head = drawn(seed)
        report(features, labels=labels, head=head).write(name)
    report(drawn()[0]).write("c")
    capsys.readouterr()
    assert main(["compare", "a", "b", "c"]) == 0
    printed = capsys.readouterr().out
    table = compare(["a", "b", "c"])
    assert table.columns[1:3] == ("a (n = 240)", "b (n = 240)")
    row = next(r for r in table.rows if r[0] == "MIR, debiased")
    one, other = (read(x)["mir_debiased"] for x in "ab")
    assert row[3].startswith(f"{other.value - one.value:+.3f} ± ")
    assert row[4:] == ("-", "-")
    assert "MIR, debiased" in printed


def test_a_reader_that_stops_reading(files):
    command = f"{sys.executable} -m mirjax report features.npy | head -n 1"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert finished.stdout == "n = 240\n"
    assert "Traceback" not in finished.stderr
    assert (files / "report" / "report.html").exists()


def test_a_terminal_of_ascii(files):
    finished = subprocess.run(
        [sys.executable, "-m", "mirjax", "report", "features.npy"],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "RankMe" in finished.stdout
    assert "σ" in (files / "report" / "report.html").read_text(encoding="utf-8")


REFUSED = {
    "no file": (["nothing.npy"], "there is no file, folder or pattern of files nothing.npy"),
    "labels of others": (["features.npy", "--labels", "head.npy"], "one label for each row"),
    "labels that are numbers": (["features.npy", "--labels", "column.npy"], "integers or text"),
    "labels from 1": (
        ["features.npy", "--labels", "from1.npy", "--head", "head.npy"],
        "Do they count from 1",
    ),
    "a head of another width": (
        ["features.npy", "--labels", "labels.npy", "--head", "second.npy"],
        r"expected \[C, 6\] or \[6, C\]",
    ),
    "a head without labels": (["features.npy", "--head", "head.npy"], "give labels"),
    "a bias of another size": (
        ["features.npy", "--labels", "labels.npy", "--head", "head.npy", "--bias", "column.npy"],
        r"expected shape \(4,\)",
    ),
    "integer features": (["labels.npy"], "expected float16, bfloat16, float32 or float64"),
    "maps": (["maps.npy"], r"has shape \(3, 4, 5, 5\); expected \[n, d\]"),
    "a mask of others": (["features.npy", "--mask", "from1.npy", "--layers"], "expected"),
    "another number of rows": (["features.npy", "--features2", "maps.npy"], "rows of the same"),
    "nothing finite": (["nan.npy"], "no row is left"),
    "an existing place": (["features.npy", "--out", "labels.npy"], "is a file; expected a folder"),
    "a batch of none": (["features.npy", "--batch-size", "0"], "expected 1 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, files, capsys):
    np.save("column.npy", drawn()[0][:, 0])
    np.save("from1.npy", drawn()[1] + 1)
    np.save("maps.npy", np.ones((3, 4, 5, 5), np.float32))
    np.save("nan.npy", np.full((9, 2), np.nan, np.float32))
    arguments, message = REFUSED[name]
    assert main(["report", *arguments]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mirjax: ")
    assert not (files / "report").exists()


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"schema": "other"}'])
def test_a_folder_without_a_report(content, tmp_path):
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"report.json is (no report|not of the schema)"):
        read(tmp_path)
    with pytest.raises(InputError, match="at least two"):
        compare([tmp_path])


def test_interrupted_nothing_is_written(files, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mirjax.report.measure", interrupt)
    assert main(["report", "features.npy"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (files / "report").exists()


LIMITED = """
import resource
import numpy as np
import mirjax.report
rows = np.lib.format.open_memmap("large.npy", "w+", np.float16, (600_000, 512))
rng = np.random.default_rng(0)
some = rng.normal(size=(20_000, 512)).astype(np.float16)
for start in range(0, len(rows), len(some)):
    rows[start : start + len(some)] = np.roll(some, start // len(some), axis=1)
rows.flush()
del rows
# Everything is compiled before the limit.
mirjax._report.measure._HELD = 0
mirjax.report.report(some, batch_size=20_000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# The file takes 586 MiB of addresses, all its rows in float32 would take twice that on top.
resource.setrlimit(resource.RLIMIT_AS, (used + 1100 * 2**20, resource.RLIM_INFINITY))
found = mirjax.report.report("large.npy", batch_size=20_000)
print(found.n, found["rankme"].value > 500)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space limits are Linux's")
def test_a_file_larger_than_the_memory_is_read_in_parts(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.split() == ["600000", "True"]
