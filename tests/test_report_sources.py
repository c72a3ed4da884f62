"""Files of features: each kind gives the array that it holds, and a wrong one a line that says why."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from mirjax._report.sources import InputError, open_arrays

ROWS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
TEXT = np.array(["cat", "dog", "cat", "emu"])


def safetensors(path, arrays, names=None):
    """By the format's own description, so that it does not rest on what it tests."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, data = {"__metadata__": {"made": "here"}}, b""
    for name, array in arrays.items():
        raw = np.asarray(array).tobytes()
        header[name] = {
            "dtype": kinds[np.asarray(array).dtype.name],
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def parquet(path, kind="parquet"):
    pa = pytest.importorskip("pyarrow")
    values = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 4)
    labels = pa.array(["a" if i % 2 else "b" for i in range(23)])
    table = pa.table({"features": values, "labels": labels})
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path, row_group_size=7)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)


def torch_file(path):
    torch = pytest.importorskip("torch")
    torch.save({"features": torch.tensor(ROWS), "step": 3}, path)


KINDS = {
    "npy": lambda p: np.save(p, ROWS),
    "fortran.npy": lambda p: np.save(p, np.asfortranarray(ROWS)),
    "npz": lambda p: np.savez(p, features=ROWS, other=ROWS[:, :1]),
    "compressed.npz": lambda p: np.savez_compressed(p, only=ROWS),
    "safetensors": lambda p: safetensors(p, {"features": ROWS, "b": ROWS[0]}),
    "parquet": parquet,
    "arrow": lambda p: parquet(p, "arrow"),
    "pt": torch_file,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_its_rows_in_any_parts(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    KINDS[kind](path)
    (source,) = open_arrays(str(path), "features")
    assert source.shape == ROWS.shape
    assert source.dtype == ROWS.dtype
    for start, stop in ((0, 23), (0, 1), (5, 16), (22, 23), (20, 99)):
        np.testing.assert_array_equal(source.read(start, stop), ROWS[start:stop])
    np.testing.assert_array_equal(source.all(), ROWS)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(dtype, kind, tmp_path):
    half, path = ROWS.astype(jnp.dtype(dtype)), tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, half)
    elif kind == "npz":
        np.savez(path, half)
    else:
        safetensors(path, {"x": half})
    (source,) = open_arrays(path, "features")
    assert source.dtype.name == dtype
    np.testing.assert_array_equal(source.read(3, 9).astype(np.float32), half[3:9].astype("float32"))


def test_parts_follow_each_other_by_their_numbers(tmp_path):
    for number, rows in enumerate(np.split(ROWS[:22], 11)):
        np.save(tmp_path / f"part-{number}.npy", rows)
    wanted = [str(tmp_path), str(tmp_path / "part-*.npy")]
    for what in (*wanted, [tmp_path / f"part-{i}.npy" for i in range(11)]):
        (source,) = open_arrays(what, "features")
        np.testing.assert_array_equal(source.all(), ROWS[:22])
        np.testing.assert_array_equal(source.read(3, 9), ROWS[3:9])
    assert len(open_arrays(str(tmp_path), "features", separate=True)) == 11


def test_keys_and_layers(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, layer1=ROWS, layer2=2 * ROWS)
    (source,) = open_arrays(path, "features", key="layer2")
    np.testing.assert_array_equal(source.all(), 2 * ROWS)
    layers = open_arrays(path, "features", separate=True)
    assert [layer.name[-8:] for layer in layers] == ["[layer1]", "[layer2]"]
    (stacked,) = open_arrays(np.stack([ROWS, 3 * ROWS]), "features")
    np.testing.assert_array_equal(stacked.layer(1).read(2, 5), 3 * ROWS[2:5])


def test_text(tmp_path):
    np.save(tmp_path / "t.npy", TEXT)
    (tmp_path / "t.txt").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    for name in ("t.npy", "t.txt"):
        np.testing.assert_array_equal(open_arrays(tmp_path / name, "labels")[0].all(), TEXT)


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def pickled(path):
    np.save(path, np.array([Boom()], dtype=object), allow_pickle=True)


def pickled_member(path):
    content = io.BytesIO()
    np.save(content, np.array([Boom()], dtype=object), allow_pickle=True)
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content.getvalue())


def malicious_torch(path):
    torch = pytest.importorskip("torch")
    torch.save({"x": Boom()}, path)


WRONG = {
    "missing.npy": (lambda p: p.with_name("other").touch(), "there is no file, folder or pattern"),
    "empty.npy": (lambda p: p.write_bytes(b""), "cannot be read as .npy"),
    "foreign.npy": (lambda p: p.write_bytes(b"x"), "it is no array of NumPy"),
    "cut.npy": (lambda p: (np.save(p, ROWS), cut(p, 200)), "cannot be read as .npy"),
    "pickle.npy": (pickled, "cannot be read as .npy: .*Python objects"),
    "pickle.npz": (pickled_member, "Python objects"),
    "several.npz": (lambda p: np.savez(p, a=ROWS, b=ROWS), r"several arrays \(a, b\).*-key NAME"),
    "foreign.npz": (lambda p: p.write_bytes(b"no zip at all"), "cannot be read as .npz"),
    "number.npy": (lambda p: np.save(p, np.float32(3)), "is a single number"),
    "cut.safetensors": (
        lambda p: (safetensors(p, {"x": ROWS}), cut(p, 200)),
        "lies outside the file",
    ),
    "foreign.safetensors": (lambda p: p.write_bytes(b"\xff" * 64), "no header of safetensors"),
    "foreign.parquet": (lambda p: p.write_bytes(b"PAR1 but not"), "cannot be read as .parquet"),
    "code.pt": (malicious_torch, "cannot be read as .pt"),
    "table.csv": (lambda p: p.write_bytes(b"1,2"), "ends with '.csv'; expected one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name, tmp_path, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    make, message = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        open_arrays(tmp_path / name, "features")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_parts_and_folders_that_do_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "b.npy", ROWS[:, :2])
    with pytest.raises(InputError, match="parts of one array must have rows of one kind"):
        open_arrays(tmp_path, "features")
    (tmp_path / "c.txt").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match=r"several kinds \(.npy, .txt\)"):
        open_arrays(tmp_path, "features")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="has no file that ends with"):
        open_arrays(tmp_path / "none", "features")
    np.savez(tmp_path / "d.npz", a=ROWS, b=ROWS)
    with pytest.raises(InputError, match="has no array 'z', but"):
        open_arrays(tmp_path / "d.npz", "features", key="z")


def test_missing_values_and_ragged_lists(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table(
        {"ragged": [[1.0], [1.0, 2.0]], "missing": [1.0, None], "even": [[1.0], [2.0]]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    for column, message in (("ragged", "lists of 2 lengths"), ("missing", "1 missing values")):
        with pytest.raises(InputError, match=message):
            open_arrays(tmp_path / "x.parquet", "features", key=column)
    (source,) = open_arrays(tmp_path / "x.parquet", "features", key="even")
    np.testing.assert_array_equal(source.all(), [[1.0], [2.0]])
