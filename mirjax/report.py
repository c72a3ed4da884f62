"""Reports of features in files: every number that they allow, in JSON, Markdown and one HTML page.

The command `mirjax report` does the same without a line of Python. Pictures need Matplotlib
(`pip install "mirjax[plot]"`).
"""

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mirjax._checks import fits
from mirjax._report.definitions import DEFINITIONS
from mirjax._report.measure import LAYER_SAMPLE, Inputs, Progress, Value, between, measure
from mirjax._report.sources import InputError as InputError
from mirjax._report.sources import Source, open_arrays
from mirjax._report.tables import Section as Section
from mirjax._report.tables import Table as Table
from mirjax._report.tables import escaped as escaped
from mirjax._report.tables import page as page

SCHEMA = "mirjax.report/1"
FILES = ("report.json", "report.md", "report.html")


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, ready to be written or shown.

    Attributes:
        title: names the features.
        inputs: what each argument was: its file, shape and dtype.
        n: how many samples counted.
        values: the numbers, each with its n, its error and what it is at collapse.
        warnings: sentences on what to know before using a number.
        notes: sentences on what was done.
        eigenvalues: of the covariance of the features, largest first.
        classes: the name of each class, in the order of the head's rows.
        counts: samples of each class.
        layers: the name of each layer and its values, if there are layers.
        mirjax: the version that measured.
    """

    title: str
    inputs: Mapping[str, str]
    n: int
    values: tuple[Value, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    eigenvalues: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    layers: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    mirjax: str = ""

    def __getitem__(self, name: str) -> Value:
        """The value of this name, such as `"mir"`."""
        for value in self.values:
            if value.name == name:
                return value
        raise KeyError(f"{name}: this report has {', '.join(v.name for v in self.values)}.")

    def json(self) -> str:
        """The report as JSON: its schema, and null for what is not a finite number."""
        content = {"schema": SCHEMA} | dataclasses.asdict(self)
        return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"

    def tables(self) -> list[Table]:
        """The values, and if there are layers a table of them."""
        found = [_table_of(f"n = {self.n:,}", self.values)] if self.values else []
        if self.layers:
            names = list(dict.fromkeys(v.name for _, values in self.layers for v in values))
            by_layer = [{v.name: v for v in values} for _, values in self.layers]
            rows = tuple(
                (
                    DEFINITIONS[name][0],
                    *(_number(v[name].value) if name in v else "-" for v in by_layer),
                )
                for name in names
            )
            layers = ("measure", *(name for name, _ in self.layers))
            found.append(Table(f"Layers, n = {self.n:,}", layers, rows))
        return found

    def markdown(self) -> str:
        """The report as a page of Markdown."""
        lines = [f"# {escaped(self.title)}", ""]
        lines += [f"- {escaped(role)}: {escaped(what)}" for role, what in self.inputs.items()]
        lines += ["", *(f"> **Note:** {escaped(text)}\n" for text in self.warnings)]
        lines += [f"{escaped(text)}\n" for text in self.notes]
        lines += [table.markdown() for table in self.tables()]
        return "\n".join([*lines, f"mirjax {self.mirjax}, {SCHEMA}", ""])

    def html(self) -> str:
        """The report as one HTML file, with pictures if Matplotlib is installed."""
        return page(self.title, [self.section()])

    def section(self) -> Section:
        """The report as a part of a page."""
        inputs = Table("", ("", ""), tuple(self.inputs.items()))
        counts = Table("", ("class", "n"), _counts(self.classes, self.counts))
        folded = [("Inputs", inputs)] + ([("Classes", counts)] if self.classes else [])
        pictures, notes = _pictures(self), list(self.notes)
        if pictures is None:
            notes.append('No pictures: Matplotlib is not installed (pip install "mirjax[plot]").')
        return Section(
            f"n = {self.n:,}, mirjax {self.mirjax}",
            notes=tuple(notes),
            warnings=self.warnings,
            pictures=tuple(pictures or ()),
            tables=tuple(self.tables()),
            folded=tuple(folded),
        )

    def write(self, folder: str | Path) -> list[Path]:
        """Writes `report.json`, `report.md` and `report.html` into a folder.

        Args:
            folder: a new folder, or one that holds none of the three.

        Returns:
            The files.

        Raises:
            InputError: one of them exists; nothing is overwritten.
        """
        place = Path(folder)
        new_place(place)
        place.mkdir(parents=True, exist_ok=True)
        files = []
        for name, text in zip(FILES, (self.json(), self.markdown(), self.html()), strict=True):
            # Exclusive: a file that came in between is not overwritten either.
            with (place / name).open("x", encoding="utf-8") as file:
                file.write(text)
            files.append(place / name)
        return files


def report(
    features: Any,
    /,
    *,
    labels: Any = None,
    head: Any = None,
    bias: Any = None,
    mask: Any = None,
    features2: Any = None,
    layers: bool = False,
    tolerance: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    keys: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measures everything that the given arrays or files allow.

    Without labels these are entropies and spectra; with labels collapse and LiDAR; with a head MIR,
    HDR (order 1, with bounds or an error where it is estimated; order 2 debiased, with its error),
    NC1 to NC4, and what all of these are at collapse. Files are read in parts.

    Args:
        features: `[n, d]`; `[n, tokens, d]` with a mask of tokens; with `layers` one axis more in
            front, or several files (or keys). An array, or the path of a file (`.npy`, `.npz`,
            `.safetensors`, `.parquet`, `.arrow`, `.pt`), a pattern, a folder, or a list of paths,
            whose rows follow each other.
        labels: integers or text `[n]`. Text is sorted, and its place is the number of the class.
        head: `[C, d]` or `[d, C]`, of which the one that fits is taken.
        bias: `[C]`.
        mask: `[n]`, 1 for samples that count; or `[n, tokens]`, 1 for tokens that count.
        features2: `[n, e]`, another representation of the same samples.
        layers: whether `features` are those of several layers.
        tolerance: of the joint entropy where it is estimated, as in `dataset_interplay`.
        batch_size: rows that are read at once; chosen by their size if not given.
        seed: draws the samples of what takes all rows at once, where there are too many.
        keys: the name of the array in files that hold several, by argument.
        progress: called with what is done and the share that is.

    Returns:
        The `Report`.

    Raises:
        InputError: a file cannot be read, or arrays do not fit together; in one line.

    Example:
        >>> import numpy as np
        >>> from mirjax.report import report
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(300) % 3
        >>> features = rng.normal(size=(3, 8))[labels] + rng.normal(size=(300, 8))
        >>> found = report(features.astype(np.float32), labels=labels)
        >>> print(f"{found['nc1'].value:.2f} {found['rankme'].value:.1f} of n = {found.n}")
        0.42 7.6 of n = 300
    """
    keys, show = dict(keys or {}), progress or (lambda *_: None)
    sources = open_arrays(features, "features", key=keys.get("features"), separate=layers)
    if layers and len(sources) == 1:
        sources = [sources[0].layer(i) for i in range(sources[0].shape[0])]
    first = sources[0]
    token_mask, weights = _masks(mask, first, keys)
    _check_features(sources, token_mask is not None, layers)
    n, width = first.shape[0], sources[-1].shape[-1]
    described = {"features": _describe(sources)}
    numbers, names, notes = None, (), []
    if labels is not None:
        source = open_arrays(labels, "labels", key=keys.get("labels"))[0]
        described["labels"] = _describe([source])
        numbers, names = _labels(source, n, first.name)
    rows = None
    if head is not None:
        source = open_arrays(head, "head", key=keys.get("head"))[0]
        described["head"] = _describe([source])
        if numbers is None:
            raise InputError("head: a head is compared with features at the labels; give labels.")
        rows, turned = _head(source, width, sources[-1], numbers)
        notes += [turned] if turned else []
        names = _all_classes(names, numbers, len(rows), source.name)
    elif numbers is not None:
        names, numbers = _compact(names, numbers)
    offsets = None
    if bias is not None:
        source = open_arrays(bias, "bias", key=keys.get("bias"))[0]
        described["bias"] = _describe([source])
        if rows is None or source.shape != (len(rows),):
            expected = "a head" if rows is None else f"shape ({len(rows)},)"
            raise InputError(f"bias: {source.name} has shape {source.shape}; expected {expected}.")
        offsets = source.all().astype(np.float32)
    inputs = [
        # The head is applied to the last layer.
        Inputs(source, numbers, names, *given, weights, token_mask)
        for source, given in zip(
            sources, [*[(None, None)] * (len(sources) - 1), (rows, offsets)], strict=True
        )
    ]
    measured = [
        measure(one, tolerance=tolerance, batch_size=batch_size, progress=show) for one in inputs
    ]
    for number, pair in enumerate(itertools.pairwise(inputs)):
        show("successive layers", number / (len(inputs) - 1))
        steps, said = between(*pair, seed, name="next", most=LAYER_SAMPLE)
        measured[number].values += steps
        notes += [] if number else said
    last, values = measured[-1], list(measured[-1].values)
    if features2 is not None:
        other = open_arrays(features2, "features2", key=keys.get("features2"))[0]
        described["features2"] = _describe([other])
        if len(other.shape) != 2 or other.shape[0] != n or len(sources[-1].shape) != 2:
            raise InputError(
                f"features2: {other.name} has shape {other.shape}; expected [{n}, width], rows of "
                f"the same samples as {first.name}."
            )
        show("both representations", 0.0)
        both = inputs[-1], dataclasses.replace(inputs[-1], features=other)
        pairs, said = between(*both, seed)
        values, notes = values + pairs, notes + said
    by_layer = ()
    if layers:
        by_layer = tuple(
            (_layer_name(source, i), tuple(m.values))
            for i, (source, m) in enumerate(zip(sources, measured, strict=True))
        )
    counts = tuple(last.counts) if names else ()
    warnings = tuple(dict.fromkeys(text for m in measured for text in m.warnings))
    title = f"Report of {first.name.removesuffix(', layer 0')}"
    title += f", {len(sources)} layers" if layers else ""
    return Report(
        title,
        described,
        last.n,
        tuple(values),
        warnings,
        tuple(notes),
        tuple(last.eigenvalues),
        tuple(names),
        counts,
        by_layer,
        _version(),
    )


def read(folder: str | Path) -> Report:
    """The report that was written into a folder.

    Args:
        folder: with a `report.json`, or the file itself.

    Raises:
        InputError: there is none, or it is of another version.
    """
    place = Path(folder)
    place = place / "report.json" if place.is_dir() else place
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise InputError(f"{place} is not of the schema {SCHEMA}.")

        def values_of(found: Any) -> tuple[Value, ...]:
            return tuple(
                Value(**v | {"value": math.nan if v["value"] is None else v["value"]})
                for v in found
            )

        layers = tuple((name, values_of(v)) for name, v in content.pop("layers"))
        values = values_of(content.pop("values"))
        lists = {k: tuple(v) for k, v in content.items() if isinstance(v, list)}
        return Report(**content | lists | {"values": values, "layers": layers})
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place} is no report that can be read: {error}") from None


def compare(folders: Sequence[str | Path], /) -> Table:
    """Reports beside each other, with the difference of each from the first.

    Args:
        folders: at least two, each with a `report.json`.

    Returns:
        A `Table` with a row for each measure that any report has. A difference has the error of
        both where both have one, as if they were independent; reports of the same samples are not,
        and their difference is then known better than it says.

    Raises:
        InputError: fewer than two are named, or one cannot be read.
    """
    if len(folders) < 2:
        raise InputError("compare needs at least two folders with reports.")
    reports = [read(folder) for folder in folders]
    names = [str(folder) for folder in folders]
    measures = list(dict.fromkeys(v.name for r in reports for v in r.values))
    rows = []
    for measure_name in measures:
        found = [{v.name: v for v in r.values}.get(measure_name) for r in reports]
        cells = [DEFINITIONS[measure_name][0]]
        for number, value in enumerate(found):
            cells.append("-" if value is None else _with_error(value.value, value.error))
            if number:
                cells.append(_difference(found[0], value))
        rows.append(tuple(cells))
    columns = ["measure", f"{names[0]} (n = {reports[0].n:,})"]
    for name, other in zip(names[1:], reports[1:], strict=True):
        columns += [f"{name} (n = {other.n:,})", "difference"]
    return Table("Differences are from the first", tuple(columns), tuple(rows))


def new_place(folder: Path) -> None:
    """Raises unless a report can be written there without overwriting anything.

    Raises:
        InputError: the folder is a file, or holds a report.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; expected a folder.")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise InputError(f"out: {folder}/{there[0]} exists and is kept; name another folder.")


def _masks(
    mask: Any, features: Source, keys: Mapping[str, str]
) -> tuple[Source | None, np.ndarray | None]:
    """The mask of tokens, and that of samples; one of them is None."""
    if mask is None:
        return None, None
    source = open_arrays(mask, "mask", key=keys.get("mask"))[0]
    if source.dtype.kind not in "bui":
        raise InputError(f"mask: {source.name} has dtype {source.dtype}; expected 1 and 0.")
    if source.shape == features.shape[:1]:
        return None, source.all().astype(bool)
    if len(features.shape) == 3 and source.shape == features.shape[:2]:
        return source, None
    raise InputError(
        f"mask: {source.name} has shape {source.shape}; expected {features.shape[:1]} for samples"
        + (f" or {features.shape[:2]} for tokens." if len(features.shape) == 3 else ".")
    )


def _check_features(sources: Sequence[Source], has_tokens: bool, layers: bool) -> None:
    for source in sources:
        kind = source.dtype.name
        if source.dtype.kind != "f" and kind != "bfloat16":
            raise InputError(
                f"features: {source.name} has dtype {kind}; expected float16, bfloat16, float32 or "
                "float64."
            )
        if 0 in source.shape:
            raise InputError(f"features: {source.name} of shape {source.shape} is empty.")
        if len(source.shape) != (3 if has_tokens else 2):
            hint = "[n, tokens, d]" if has_tokens else "[n, d]"
            more = "" if layers else "; for layers in front pass --layers"
            if len(source.shape) == 3 and not has_tokens:
                more += "; for tokens pass their mask"
            raise InputError(
                f"features: {source.name} has shape {source.shape}; expected {hint}{more}."
            )
        if source.shape[0] != sources[0].shape[0]:
            raise InputError(
                f"features: {source.name} has {source.shape[0]:,} rows, {sources[0].name} has "
                f"{sources[0].shape[0]:,}; layers must be of the same samples."
            )


def _labels(source: Source, n: int, features: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of classes, and the names of the classes if the labels are text."""
    if source.shape != (n,):
        raise InputError(
            f"labels: {source.name} has shape {source.shape}; expected ({n},), one label for each "
            f"row of {features}."
        )
    array = source.all()
    if array.dtype.kind in "US":
        names, numbers = np.unique(array, return_inverse=True)
        return numbers.astype(np.int64), tuple(map(str, names))
    if array.dtype.kind not in "ui":
        raise InputError(
            f"labels: {source.name} has dtype {array.dtype}; expected integers or text."
        )
    return array.astype(np.int64), ()


def _compact(names: tuple[str, ...], numbers: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that occur, numbered from 0."""
    if names:
        return names, numbers
    found, places = np.unique(numbers, return_inverse=True)
    return tuple(map(str, found)), places.astype(np.int64)


def _all_classes(
    names: tuple[str, ...], numbers: np.ndarray, classes: int, head: str
) -> tuple[str, ...]:
    """A name for each row of the head."""
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= classes:
        hint = " Do they count from 1? Subtract 1." if low == 1 and high == classes else ""
        raise InputError(
            f"labels: they go from {low} to {high}, but the head {head} has {classes} rows, for "
            f"classes 0 to {classes - 1}.{hint}"
        )
    if names and len(names) != classes:
        raise InputError(
            f"labels: there are {len(names)} different texts, but the head {head} has {classes} "
            "rows; expected one row for each text, in sorted order."
        )
    return names or tuple(map(str, range(classes)))


def _head(
    source: Source, width: int, features: Source, labels: np.ndarray
) -> tuple[np.ndarray, str]:
    """The head as `[C, d]`, and a sentence if it had to be turned."""
    if len(source.shape) != 2 or width not in source.shape:
        raise InputError(
            f"head: {source.name} has shape {source.shape}; expected [C, {width}] or [{width}, C] "
            f"for the rows of {features.name}, which are {width} wide."
        )
    rows = source.all().astype(np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"head: {source.name} holds NaN or infinity.")
    if source.shape[1] != width:
        return rows.T.copy(), f"The head is stored as [{width}, {source.shape[1]}] and was turned."
    if source.shape[0] == width:
        return _square_head(rows, features, labels)
    return rows, ""


def _square_head(rows: np.ndarray, features: Source, labels: np.ndarray) -> tuple[np.ndarray, str]:
    """A head as wide as it has rows, turned if only its transpose fits the labels."""
    count = min(len(labels), 10_000)
    some = np.asarray(features.read(0, count)).astype(np.float32)
    # Tokens have no row of their own here: the mean of those that are finite stands for a prompt.
    some = np.nanmean(some, axis=1) if some.ndim == 3 else some
    finite = np.isfinite(some).all(axis=1).astype(np.float32)
    share, turned, is_far_better = fits(some, rows, labels[:count], finite)
    said = f"as it is stored it predicts {share:.0%} of the labels, turned {turned:.0%}"
    if is_far_better:
        return rows.T.copy(), f"The head is square; {said}: it was turned."
    return rows, f"The head is square; {said}: its rows are the classes."


def _describe(sources: Sequence[Source]) -> str:
    first = sources[0]
    more = f" and {len(sources) - 1} more layers" if len(sources) > 1 else ""
    return f"{first.name}{more}, shape {first.shape}, {first.dtype.name}"


def _layer_name(source: Source, number: int) -> str:
    name = source.name
    if name.endswith("]"):
        return name[name.rindex("[") + 1 : -1]
    return str(number) if ", layer " in name else Path(name).stem


def _table_of(title: str, values: Sequence[Value]) -> Table:
    rows = []
    for value in values:
        label, definition = DEFINITIONS[value.name]
        error = "" if value.error is None else f"± {value.error:.1g}"
        if value.lower is not None and value.upper is not None:
            error += f" [{_number(value.lower)}, {_number(value.upper)}]"
        at = value.at_collapse
        distance = "" if at is None else f"{value.value - at:+.3f}"
        form = "" if at is None else _number(at)
        rows.append((label, _number(value.value), error.strip(), form, distance, definition))
    columns = ("measure", "value", "error", "at collapse", "distance", "definition")
    return Table(title, columns, tuple(rows))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "inf" if value == math.inf else "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def _with_error(value: float, error: float | None) -> str:
    return _number(value) + ("" if error is None else f" ± {error:.1g}")


def _difference(first: Value | None, other: Value | None) -> str:
    if first is None or other is None:
        return "-"
    apart = other.value - first.value
    if first.error is None or other.error is None:
        return f"{apart:+.3f}"
    return f"{apart:+.3f} ± {math.hypot(first.error, other.error):.1g}"


def _counts(classes: Sequence[str], counts: Sequence[int]) -> tuple[tuple[str, str], ...]:
    # A page of a thousand rows helps nobody.
    shown = [(name, f"{count:,}") for name, count in zip(classes, counts, strict=True)][:100]
    rest = len(classes) - len(shown)
    return tuple(shown + ([(f"and {rest:,} more", "")] if rest else []))


def _pictures(found: Report) -> list[tuple[str, bytes]] | None:
    """PNG pictures, or None without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    from mirjax import plot

    drawn = []
    if len(found.eigenvalues) > 1:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        values = {"features": np.asarray(found.eigenvalues, np.float32)}
        plot.spectra(values, ax=figure.subplots()).legend()
        drawn.append(("Eigenvalues of the covariance of the features", figure))
    if found.layers:
        names = [name for name, _ in found.layers]
        by_layer = [{v.name: v.value for v in values} for _, values in found.layers]
        # Of all layers, or of all but the last.
        shown = [m for m in by_layer[0] if all(m in values for values in by_layer[:-1])]
        curves = {
            DEFINITIONS[m][0]: [values[m] for values in by_layer if m in values] for m in shown
        }
        axes = plot.layers({"": curves}, names=names)
        drawn.append(("All measures over the layers", axes[0].figure))
    return [(what, _png(figure)) for what, figure in drawn]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _finite(content: Any) -> Any:
    """What JSON can hold: null for numbers that are not finite."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    is_broken = isinstance(content, float) and not math.isfinite(content)
    return None if is_broken else content


def _version() -> str:
    try:
        return version("mirjax")
    except PackageNotFoundError:
        return "0+unknown"
