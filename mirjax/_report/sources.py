"""Arrays in files, read some rows at a time. Nothing here unpickles anything."""

import dataclasses
import glob
import json
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

# What a file without a name in its ending may be read as, by extension.
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".arrow", ".feather", ".pt", ".pth", ".txt")
_SAFETENSORS = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
# A header beyond this is of no file of tensors.
_LONGEST_HEADER = 100 * 2**20


class InputError(ValueError):
    """A file, or what is in it, is not what was asked for; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An array whose rows (first axis) are read in parts.

    Attributes:
        name: what to call it in messages: the file, and the key in it.
        shape: of the whole array.
        dtype: as it is stored.
        read: rows from the first number up to the second.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]

    def all(self) -> np.ndarray:
        """The whole array in memory."""
        return np.asarray(self.read(0, self.shape[0]))

    def layer(self, number: int) -> "Source":
        """One entry of the first axis, which is then the array."""
        shape = self.shape[1:]

        def read(start: int, stop: int) -> np.ndarray:
            return self.read(number, number + 1)[0][start:stop]

        return Source(f"{self.name}, layer {number}", shape, self.dtype, read)


def open_arrays(
    what: Any, role: str, *, key: str | None = None, separate: bool = False
) -> list[Source]:
    """The arrays that an argument of the command or the function means.

    Args:
        what: an array, a path, a pattern with `*`, a folder, or a sequence of paths.
        role: the argument's name, for messages: `features`, `labels`, ...
        key: the name of the array in files that hold several.
        separate: whether every file (or every key) is an array of its own, such as a layer; if not,
            several files are parts of one, one after the other.

    Returns:
        One source, or if `separate` one for each array.

    Raises:
        InputError: nothing is there, it cannot be read, or parts do not fit together.
    """
    if hasattr(what, "shape") and hasattr(what, "dtype"):
        return [of_array(np.asarray(what), f"the array of {role}")]
    paths = _paths(what, role)
    if separate and len(paths) == 1 and key is None:
        return _by_key(paths[0], role)
    sources = [_open(path, role, key) for path in paths]
    return sources if separate else [_joined(sources, role)]


def of_array(array: np.ndarray, name: str) -> Source:
    """An array in memory."""
    return Source(name, array.shape, array.dtype, lambda start, stop: array[start:stop])


def _paths(what: Any, role: str) -> list[Path]:
    if isinstance(what, (list, tuple)):
        return [path for one in what for path in _paths(one, role)]
    path = Path(what)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not found:
            raise InputError(
                f"{role}: the folder {path} has no file that ends with {', '.join(SUFFIXES)}."
            )
        kinds = sorted({p.suffix.lower() for p in found})
        if len(kinds) > 1:
            raise InputError(
                f"{role}: the folder {path} has files of several kinds ({', '.join(kinds)}). Name "
                f"those that are meant by a pattern, such as {path}/*{kinds[0]}."
            )
    elif path.exists():
        return [path]
    else:
        found = [Path(p) for p in glob.glob(str(what))]
        if not found:
            raise InputError(f"{role}: there is no file, folder or pattern of files {what}.")
    # By numbers in the names where there are any: part-2 comes before part-10.
    return sorted(found, key=lambda p: [int(x) if x.isdigit() else x for x in _split(p.name)])


def _split(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def _open(path: Path, role: str, key: str | None) -> Source:
    arrays = _arrays(path, role)
    if key is not None and key not in arrays and set(arrays) != {""}:
        raise InputError(f"{role}: {path} has no array {key!r}, but {_names(arrays)}.")
    if key is None or set(arrays) == {""}:
        key = _only(arrays, path, role)
    return arrays[key]()


def _by_key(path: Path, role: str) -> list[Source]:
    return [make() for make in _arrays(path, role).values()]


def _only(arrays: Mapping[str, Any], path: Path, role: str) -> str:
    if len(arrays) == 1:
        return next(iter(arrays))
    # An array with the name of the argument is the one that is meant.
    if role in arrays:
        return role
    raise InputError(
        f"{role}: {path} has several arrays ({_names(arrays)}). Say which: --{role}-key NAME."
    )


def _names(arrays: Mapping[str, Any]) -> str:
    names = list(arrays)
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _arrays(path: Path, role: str) -> dict[str, Callable[[], Source]]:
    """How to open each array of a file, by its key; the empty key where there is one without name.

    Raises:
        InputError: the file is of no kind that can be read, or is damaged.
    """
    readers = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        ".parquet": _parquet,
        ".arrow": _arrow,
        ".feather": _arrow,
        ".pt": _torch,
        ".pth": _torch,
        ".txt": _text,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{role}: {path} ends with {path.suffix or 'no suffix'!r}; expected one of "
            f"{', '.join(SUFFIXES)}."
        )
    try:
        return reader(path)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"{role}: {path} needs the package {error.name}, which is not installed: pip install "
            f"{'torch' if error.name == 'torch' else 'mirjax[report]'}."
        ) from None
    # What a damaged file makes of a reader is any of these.
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{role}: {path} cannot be read as {path.suffix}: {reason}") from None


def _npy(path: Path) -> dict[str, Callable[[], Source]]:
    with path.open("rb") as file:
        start = file.read(6)
    # NumPy takes anything else for a pickle, and advises to load it unsafely.
    if start != b"\x93NUMPY":
        raise InputError(f"{path} cannot be read as .npy: it is no array of NumPy.")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"": lambda: _numeric(array, str(path))}


def _npz(path: Path) -> dict[str, Callable[[], Source]]:
    def opener(member: str) -> Callable[[], Source]:
        return lambda: _numeric(_npz_member(path, member), f"{path}[{member}]")

    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
    if not names:
        raise InputError(f"{path} holds no array.")
    return {name.removesuffix(".npy"): opener(name.removesuffix(".npy")) for name in names}


def _npz_member(path: Path, member: str) -> np.ndarray:
    """Mapped into memory if it is not compressed, as `np.savez` leaves it, and read if it is."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    with path.open("rb") as file:
        # The local header: 30 bytes, a name and an extra field of their own lengths.
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(info.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise InputError(f"{path}[{member}] has version {version} of the format npy.")
        shape, is_fortran, dtype = header(file)
        if dtype.hasobject:
            raise InputError(f"{path}[{member}] holds Python objects, which are not read.")
        return np.memmap(path, dtype, "r", file.tell(), shape, order="F" if is_fortran else "C")


def _safetensors(path: Path) -> dict[str, Callable[[], Source]]:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise InputError(f"{path} has no header of safetensors.")
        header = json.loads(file.read(length))
    size = path.stat().st_size - 8 - length

    def opener(key: str, entry: Mapping[str, Any]) -> Callable[[], Source]:
        def make() -> Source:
            if entry["dtype"] not in _SAFETENSORS:
                raise InputError(f"{path}[{key}] has dtype {entry['dtype']}, which is not read.")
            dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop <= size or stop - start != math.prod(shape) * dtype.itemsize:
                raise InputError(f"{path}[{key}] lies outside the file, which may be cut off.")
            array = np.memmap(path, dtype, "r", 8 + length + start, shape)
            return _numeric(array, f"{path}[{key}]")

        return make

    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    return {key: opener(key, entry) for key, entry in entries.items()}


def _parquet(path: Path) -> dict[str, Callable[[], Source]]:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path, memory_map=True)
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]

    def opener(column: str) -> Callable[[], Source]:
        def part(number: int) -> Any:
            return file.read_row_group(number, columns=[column]).column(0)

        return lambda: _of_columns(path, column, counts, part)

    return {column: opener(column) for column in file.schema_arrow.names}


def _arrow(path: Path) -> dict[str, Callable[[], Source]]:
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    counts = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]

    def opener(place: int, column: str) -> Callable[[], Source]:
        return lambda: _of_columns(
            path, column, counts, lambda number: reader.get_batch(number).column(place)
        )

    return {column: opener(i, column) for i, column in enumerate(reader.schema.names)}


def _of_columns(
    path: Path, column: str, counts: Sequence[int], part: Callable[[int], Any]
) -> Source:
    """A column in several parts, of which the last that was read is kept."""
    name, kept = f"{path}[{column}]", {}

    def rows_of(number: int) -> np.ndarray:
        if number not in kept:
            kept.clear()
            kept[number] = _from_arrow(part(number), name)
        return kept[number]

    parts = [i for i, count in enumerate(counts) if count]
    if not parts:
        raise InputError(f"{name} has no rows.")
    first = rows_of(parts[0])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return _pieces(name, (int(offsets[-1]), *first.shape[1:]), first.dtype, offsets, rows_of)


def _from_arrow(column: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if column.null_count:
        raise InputError(f"{name} has {column.null_count} missing values.")
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = set(column.value_lengths().to_pylist())
        if len(lengths) != 1:
            raise InputError(f"{name} has lists of {len(lengths)} lengths; expected one.")
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.asarray(column.to_pylist(), dtype=np.str_)
    return column.to_numpy(zero_copy_only=False)


def _torch(path: Path) -> dict[str, Callable[[], Source]]:
    import torch

    # Only tensors and plain containers: no code of the file is run.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    tensors = {"": content} if isinstance(content, torch.Tensor) else dict(content)
    tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensor by name.")

    def opener(key: str, tensor: Any) -> Callable[[], Source]:
        def read(start: int, stop: int) -> np.ndarray:
            part = tensor[start:stop]
            # NumPy has no bfloat16.
            return (part.float() if part.dtype == torch.bfloat16 else part).numpy()

        dtype = read(0, 0).dtype
        if tensor.dtype == torch.bfloat16:
            dtype = np.dtype(jnp.bfloat16)
        name = f"{path}[{key}]" if key else str(path)
        return lambda: Source(name, tuple(tensor.shape), dtype, read)

    return {str(key): opener(str(key), tensor) for key, tensor in tensors.items()}


def _is_zip(path: Path) -> bool:
    return zipfile.is_zipfile(path)


def _text(path: Path) -> dict[str, Callable[[], Source]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {"": lambda: of_array(np.asarray(lines, dtype=np.str_), str(path))}


def _numeric(array: np.ndarray, name: str) -> Source:
    if array.ndim == 0:
        raise InputError(f"{name} is a single number; expected an array with rows.")
    if array.dtype == np.dtype("V2"):
        # How NumPy stores bfloat16, which it has no name for.
        array = array.view(jnp.bfloat16)
    # Its kind is that of records.
    is_record = array.dtype.kind == "V" and array.dtype != jnp.bfloat16
    if array.dtype.hasobject or is_record:
        raise InputError(f"{name} has dtype {array.dtype}; expected numbers or text.")
    mapped = getattr(array, "_mmap", None)
    if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
        return of_array(array, name)

    def read(start: int, stop: int) -> np.ndarray:
        part = np.array(array[start:stop])
        # What was read would stay in memory until something else needs it.
        mapped.madvise(mmap.MADV_DONTNEED)
        return part

    return Source(name, array.shape, array.dtype, read)


def _joined(sources: list[Source], role: str) -> Source:
    """Several arrays as one, one after the other."""
    if len(sources) == 1:
        return sources[0]
    first = sources[0]
    for other in sources[1:]:
        if other.shape[1:] != first.shape[1:] or other.dtype != first.dtype:
            raise InputError(
                f"{role}: parts of one array must have rows of one kind: {first.name} has "
                f"{first.dtype} rows of shape {first.shape[1:]}, {other.name} has {other.dtype} "
                f"rows of shape {other.shape[1:]}."
            )
    offsets = np.concatenate([[0], np.cumsum([source.shape[0] for source in sources])])
    return _pieces(
        f"{first.name} and {len(sources) - 1} more",
        (int(offsets[-1]), *first.shape[1:]),
        first.dtype,
        offsets,
        lambda number: sources[number],
    )


def _pieces(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    offsets: np.ndarray,
    piece: Callable[[int], Any],
) -> Source:
    """An array that lies in pieces, which begin at `offsets`."""

    def read(start: int, stop: int) -> np.ndarray:
        stop = min(stop, shape[0])
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        parts = []
        while start < stop:
            inside, end = start - offsets[first], min(stop, offsets[first + 1])
            rows = piece(first)
            if isinstance(rows, Source):
                parts.append(rows.read(int(inside), int(end - offsets[first])))
            else:
                parts.append(rows[inside : end - offsets[first]])
            start, first = int(end), first + 1
        return np.concatenate(parts) if parts else np.empty((0, *shape[1:]), dtype)

    return Source(name, shape, dtype, read)
