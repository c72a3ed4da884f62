"""Builds wheel and source distribution, and tries both as someone would who installs them.

`.ci/run` calls it. Everything is made in a temporary folder, with the versions of `constraints.txt`.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
TESTS = ("tests/test_package.py", "tests/test_readme.py", "tests/train/test_loader.py")
QUICK = ("-m", "not slow", "-k", "not code_prints")
ALONE = """
import importlib.util
import jax.numpy as jnp
import mirjax

assert not any(importlib.util.find_spec(name) for name in ("train", "flax", "optax", "matplotlib"))
head, labels = mirjax.theory.simplex_etf(10, 16), jnp.arange(40) % 10
result = mirjax.interplay(head[labels], head, labels)
assert abs(result.mir - mirjax.theory.collapsed_mir(10)) < 1e-5, result
print("mirjax", mirjax.__version__, "works alone, from", mirjax.__file__)
"""

FILES = """
import numpy as np

rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)
np.save("x.npy", rows)
np.savez("x.npz", rows)
np.save("head.npy", np.eye(3, 8, dtype=np.float32))
open("labels.txt", "w", encoding="utf-8").write("a\\nb\\nc\\n" * 20)
"""
PARQUET = """
import numpy as np, pyarrow as pa, pyarrow.parquet as parquet

rows = np.load("x.npy").astype(np.float32)
lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
parquet.write_table(pa.table({"x": lists}), "x.parquet")
"""


def call(*command, cwd):
    """Runs a command, and ends the program if it fails."""
    if (status := subprocess.run([*map(str, command)], cwd=cwd, check=False).returncode) != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {status}.")


def environment(folder, *packages):
    """The Python of a new virtual environment that holds these packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "-c", PINS, *packages, cwd=folder)
    return python


def wheel_of(source, builder, folder):
    """Builds the wheel of a source tree with the pinned hatchling; its place and its files."""
    # Without isolation: pip does not apply constraints to an environment that it makes for a build.
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    call(builder, "-m", "pip", "wheel", *options, source, cwd=folder.parent)
    (wheel,) = folder.glob("mirjax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel, {name: archive.read(name) for name in archive.namelist()}


def check_wheel(files):
    """The library, its licence and the mark of a typed package; nothing else."""
    tops = {name.split("/")[0] for name in files}
    assert len(tops) == 2, tops
    assert all(top.startswith("mirjax") for top in tops), tops
    assert "mirjax/py.typed" in files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files), sorted(files)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mirjax").rglob("*.py")}
    assert modules == {name for name in files if name.endswith(".py")}


def main():
    """Builds and tries."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        builder = environment(folder / "builder", "hatchling")
        wheel, files = wheel_of(ROOT, builder, folder / "wheel")
        check_wheel(files)

        call(builder, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
        (sdist,) = folder.glob("mirjax-*.tar.gz")
        with tarfile.open(sdist) as archive:
            # Python 3.11.4 and newer.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(folder / "source", **safely)
        (source,) = (folder / "source").iterdir()
        _, again = wheel_of(source, builder, folder / "again")
        assert again == files, "the wheel of the source distribution differs"
        # The tests' packages are those of the environment that runs this; mirjax and train are of the source.
        call(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *QUICK, *TESTS, cwd=source)

        alone = environment(folder / "alone", wheel)
        call(alone, "-c", ALONE, cwd=folder)
        # Reports of files as a new user asks for them, without and with the extras.
        call(alone, "-c", FILES, cwd=folder)
        command = alone.with_name("mirjax")
        given = ("--labels", "labels.txt", "--head", "head.npy")
        for name in ("x.npy", "x.npz"):
            call(command, "report", name, *given, "--out", f"report-{name}", cwd=folder)
        call(command, "compare", "report-x.npy", "report-x.npz", cwd=folder)
        extras = environment(folder / "extras", f"{wheel}[report]")
        call(extras, "-c", PARQUET, cwd=folder)
        call(extras, "-m", "mirjax", "report", "x.parquet", *given, "--out", "parquet", cwd=folder)
        assert "data:image/png" in (folder / "parquet" / "report.html").read_text(encoding="utf-8")
        print(
            f"{wheel.name}: {len(files)} files; {sdist.name}: {sdist.stat().st_size / 2**20:.1f} MiB"
        )


if __name__ == "__main__":
    main()
