"""Checks of arguments: shapes and dtypes when a function is traced, values on request (`check`)."""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jaxtyping import Float, Int

ArrayLike = Array | np.ndarray

# Names rather than dtypes: bfloat16 is not a NumPy dtype.
_FLOATS = ("bfloat16", "float16", "float32", "float64")


def as_float(array: ArrayLike, name: str, *, axes: str) -> Array:
    """`array` as a JAX array in the dtype of the computation: half precision becomes float32.

    `axes` names the trailing axes, such as `"n d"`; any number of batch axes may precede them.
    """
    array = _as_array(array, name, axes)
    if array.dtype.name not in _FLOATS:
        raise TypeError(
            f"{name} must have dtype {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]}, got {array.dtype} "
            f"of shape {array.shape}. Cast it, for example {name}.astype(jnp.float32)."
        )
    # Eigenvalues and sums of squares need at least float32.
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def as_labels(array: ArrayLike, name: str = "labels") -> Array:
    """`array` as integer class labels."""
    array = _as_array(array, name, "n")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be integers in [0, num_classes), got {array.dtype} of shape "
            f"{array.shape}. For soft labels q of shape [n, num_classes] use "
            "feature_interplay(features, q @ head)."
        )
    # Narrow types cannot hold every class number; 64-bit labels stay as they are.
    return array if array.dtype.itemsize > 4 else array.astype(jnp.int32)


def _as_array(array: ArrayLike, name: str, axes: str) -> Array:
    # A nested list would become an array of a dtype that nobody chose.
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TypeError(
            f"{name} must be an array of shape [..., {axes.replace(' ', ', ')}], "
            f"got {type(array).__name__}. Convert it with jnp.asarray."
        )
    array = jnp.asarray(array)
    names = axes.split()
    if array.ndim < len(names):
        raise ValueError(f"{name} must have shape [..., {', '.join(names)}], got {array.shape}.")
    empty = [axis for axis, size in zip(names[::-1], array.shape[::-1], strict=False) if size == 0]
    if empty:
        raise ValueError(f"{name} of shape {array.shape} is empty along {', '.join(empty)}.")
    return array


def common_float(*arrays: Array) -> list[Array]:
    """The arrays in one dtype: float64 if any of them is float64."""
    dtype = jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32
    return [array.astype(dtype) for array in arrays]


def same_size(
    first: Array,
    first_name: str,
    second: Array,
    second_name: str,
    *,
    axis: Sequence[int],
    what: str,
) -> None:
    """Raises unless `first.shape[axis[0]] == second.shape[axis[1]]`."""
    if first.shape[axis[0]] != second.shape[axis[1]]:
        raise ValueError(
            f"{first_name} of shape {first.shape} and {second_name} of shape {second.shape} "
            f"disagree in {what}: {first.shape[axis[0]]} against {second.shape[axis[1]]}."
        )


def square(kernel: Array, name: str) -> None:
    """Raises unless the last two axes have the same length."""
    if kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"{name} must be square, [..., n, n], got {kernel.shape}. "
            f"For features of shape [n, d] pass gram({name})."
        )


def head_of(features: Array, head: Array) -> None:
    """Raises unless the head has as many columns as the features."""
    if features.shape[-1] != head.shape[-1]:
        is_transposed = features.shape[-1] == head.shape[-2]
        hint = (
            " A Flax Dense kernel is [d, num_classes]: pass its transpose, kernel.T."
            if is_transposed
            else ""
        )
        raise ValueError(
            f"features of shape {features.shape} and head of shape {head.shape} disagree in d: "
            f"{features.shape[-1]} against {head.shape[-1]}; expected features [..., n, d] and "
            f"head [..., num_classes, d].{hint}"
        )


def sample_weights(weights: ArrayLike | None, rows: Array, name: str) -> Array:
    """`weights` in the dtype of `rows`; ones if None."""
    if weights is None:
        return jnp.ones(rows.shape[:-1], rows.dtype)
    array = _as_array(weights, "weights", "n")
    same_size(rows, name, array, "weights", axis=(-2, -1), what="the number of samples n")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"weights must be real, got {array.dtype}.")
    return array.astype(rows.dtype)


def as_groups(groups: ArrayLike | None, rows: Array, name: str = "features") -> Array | None:
    """Integer `groups`, one for each row, if they are given."""
    if groups is None:
        return None
    array = _as_array(groups, "groups", "n")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"groups must be integers, got {array.dtype}.")
    same_size(rows, name, array, "groups", axis=(-2, -1), what="the number of samples n")
    # Places among the groups are counted in the same type.
    return array if array.dtype.itemsize > 4 else array.astype(jnp.int32)


def entropy_order(order: float | int, method: str = "eigh") -> None:
    """Raises unless the order is one, and the method exists and supports it."""
    if isinstance(order, bool) or not isinstance(order, (int, float)):
        raise TypeError(
            f"order must be a Python number (it is static), got {type(order).__name__}."
        )
    if not order > 0:  # not `order <= 0`: NaN is refused too
        raise ValueError(f"order must be positive, got {order}.")
    if method not in ("eigh", "products", "auto"):
        raise ValueError(f"method must be 'eigh', 'products' or 'auto', got {method!r}.")
    if method == "products" and order not in (1, 2):
        raise ValueError(
            f"method='products' supports orders 1 and 2, got order {order}. Use 'eigh' or 'auto'."
        )


def as_mask(mask: ArrayLike, name: str = "mask") -> Array:
    """`mask` as Booleans: 1 or True for what counts, as PyTorch and Hugging Face have it."""
    if not hasattr(mask, "dtype") or not (
        mask.dtype == np.bool_ or jnp.issubdtype(mask.dtype, jnp.integer)
    ):
        raise TypeError(
            f"{name} must be a Boolean or integer array, True or 1 for what counts, got "
            f"{getattr(mask, 'dtype', type(mask).__name__)}."
        )
    return jnp.asarray(mask).astype(bool)


def decay_range(first: int, last: int) -> None:
    """Raises unless `first` to `last` are numbers of at least two eigenvalues."""
    if not all(isinstance(number, (int, np.integer)) for number in (first, last)):
        raise TypeError(f"first and last must be integers, got {first!r} and {last!r}.")
    if not 1 <= first < last:
        raise ValueError(f"first and last must satisfy 1 <= first < last, got {first} and {last}.")


def ridge(delta: float) -> None:
    """Raises unless `delta`, which is added to eigenvalues, is positive."""
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}.")


def check(
    features: Float[ArrayLike, "*batch n d"] | None = None,
    head: Float[ArrayLike, "*batch c d"] | None = None,
    labels: Int[ArrayLike, "*batch n"] | None = None,
    *,
    weights: ArrayLike | None = None,
    kernel: Float[ArrayLike, "*batch n n"] | None = None,
) -> None:
    """Raises an error if the *values* of the arguments make a metric meaningless.

    Every function checks shapes and dtypes when it is traced, and so does this one. They cannot
    check values, since a compiled function cannot raise; each function documents what it returns
    for meaningless ones. This function finds them: NaN and infinities, zero rows, labels outside
    `[0, num_classes)`, negative weights, weights that are all zero, kernels that are not symmetric
    or not positive semi-definite. Samples of weight 0 are ignored.

    On concrete arrays it raises at once. Inside a transformed function it adds checks for
    `jax.experimental.checkify.checkify`; without that transformation JAX raises an error.

    Args:
        features: `[..., n, d]`.
        head: `[..., num_classes, d]`.
        labels: integers `[..., n]`; pass `head` too, which gives the number of classes.
        weights: real `[..., n]`.
        kernel: `[..., n, n]`, of the same samples; its eigenvalues are computed, `O(n³)`.

    Raises:
        TypeError, ValueError: shapes or dtypes do not match, also in batch axes that do not
            broadcast, or a value is meaningless; the message names the argument, the problem and
            where it first occurs.

    Warns:
        UserWarning: a square head seems to be transposed: of concrete features and labels of at
            least three classes, the transpose predicts at least twice as many labels as the head
            (bias left out), and its rows follow the centred class means of the unit features by
            more than 4 standard errors of a random head. At most 10,000 samples are looked at.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.ones((3, 2)).at[1].set(0.0)
        >>> mirjax.check(features)
        Traceback (most recent call last):
        ...
        ValueError: features: 1 of 3 rows are all zero (first at row 1); they count as weight 0.
    """
    # What is static comes first, for all arguments.
    features = None if features is None else as_float(features, "features", axes="n d")
    head = None if head is None else as_float(head, "head", axes="num_classes d")
    labels = None if labels is None else as_labels(labels)
    weights = None if weights is None else _real_weights(weights)
    kernel = None if kernel is None else as_float(kernel, "kernel", axes="n n")
    if labels is not None and head is None:
        raise ValueError("labels can only be checked against a head: pass head as well.")
    if kernel is not None:
        square(kernel, "kernel")
    _shapes_agree(features, head, labels, weights, kernel)
    counted = None if weights is None else weights != 0
    if weights is not None:
        _check_weights(weights)
    # Weights apply to samples, never to the rows of the head.
    for name, rows, keep in (("features", features, counted), ("head", head, None)):
        if rows is None:
            continue
        broken = _where_counted(~jnp.all(jnp.isfinite(rows), axis=-1), keep)
        _fail_where(broken, name, "rows hold NaN or infinity; the metrics are NaN.", unit="row")
        zero = _where_counted(jnp.all(rows == 0, axis=-1), keep)
        _fail_where(zero, name, "rows are all zero; they count as weight 0.", unit="row")
    if labels is not None and head is not None:
        classes = head.shape[-2]
        wrong = _where_counted((labels < 0) | (labels >= classes), counted)
        _fail_where(wrong, "labels", f"entries lie outside [0, {classes}); the metrics are NaN.")
        if features is not None and classes == head.shape[-1]:
            _warn_if_transposed(features, head, labels, weights)
    if kernel is not None:
        _check_kernel(kernel)


def _real_weights(weights: ArrayLike) -> Array:
    array = _as_array(weights, "weights", "n")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"weights must be real, got {array.dtype}.")
    # Integers and Booleans too, as in the metrics.
    return array if array.dtype.name in _FLOATS else array.astype(jnp.float32)


def _shapes_agree(
    features: Array | None,
    head: Array | None,
    labels: Array | None,
    weights: Array | None,
    kernel: Array | None,
) -> None:
    if features is not None and head is not None:
        head_of(features, head)
    # The axis of the samples, of the classes for the head. Batch axes are those before it.
    axes = (
        ("features", features, -2),
        ("head", head, -2),
        ("labels", labels, -1),
        ("weights", weights, -1),
        ("kernel", kernel, -2),
    )
    given = [(name, array, axis) for name, array, axis in axes if array is not None]
    sizes = {array.shape[axis] for name, array, axis in given if name != "head"} - {1}
    for name, array, axis in given:
        # As a batch, a column would be n sets of one sample.
        if axis == -1 and array.ndim > 1 and array.shape[-1] == 1 and array.shape[-2] in sizes:
            raise ValueError(
                f"{name} must be [..., n], one number for each sample, got {array.shape}. Drop the "
                f"last axis: {name}[..., 0]."
            )
    pairs = [(one, other) for i, one in enumerate(given) for other in given[i + 1 :]]
    for (name, array, axis), (other_name, other, other_axis) in pairs:
        if "head" not in (name, other_name):
            what, both = "the number of samples n", (axis, other_axis)
            same_size(array, name, other, other_name, axis=both, what=what)
        batch, other_batch = array.shape[:axis], other.shape[:other_axis]
        # From the last axis on, as in broadcasting.
        sides = zip(batch[::-1], other_batch[::-1], strict=False)
        if any(side != other_side and 1 not in (side, other_side) for side, other_side in sides):
            raise ValueError(
                f"{name} of shape {array.shape} and {other_name} of shape {other.shape} disagree "
                f"in the batch axes, which must be equal or broadcast: {batch} against "
                f"{other_batch}."
            )


def _where_counted(bad: Array, counted: Array | None) -> Array:
    """`bad & counted`, where one of them may have batch axes that the other lacks."""
    if counted is None:
        return bad
    shape = jnp.broadcast_shapes(bad.shape, counted.shape)
    return jnp.broadcast_to(bad, shape) & jnp.broadcast_to(counted, shape)


def _check_weights(weights: Array) -> None:
    _fail_where(weights < 0, "weights", "entries are negative; weights must be >= 0.")
    _fail_where(~jnp.isfinite(weights), "weights", "entries are NaN or infinite.")
    none_left = jnp.sum(weights, axis=-1) == 0
    _fail_where(none_left, "weights", "sets are all zero; no sample is left.", unit="batch")


def _warn_if_transposed(features: Array, head: Array, labels: Array, weights: Array | None) -> None:
    arrays = features, head, labels, jnp.ones(labels.shape[-1:]) if weights is None else weights
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return
    # On the host, whatever the sharding and the precision of products on the devices.
    signature = "(n,d),(c,d),(n),(n)->(),(),()"
    of_batches = np.vectorize(fits, signature=signature, otypes=[float, float, bool])
    share, transposed, is_far_better = of_batches(*map(np.asarray, arrays))
    places = np.argwhere(is_far_better)
    if len(places):
        place = tuple(places[0])
        batch = ", ".join(map(str, place))
        where = f" (first at batch {batch})" if batch else ""
        warnings.warn(
            f"head of shape {head.shape} seems to be transposed{where}: it predicts "
            f"{share[place]:.0%} of the labels, its transpose {transposed[place]:.0%}. Expected "
            "head [..., num_classes, d]. A Flax Dense kernel is [d, num_classes]: pass its "
            "transpose, kernel.T.",
            UserWarning,
            stacklevel=3,
        )


def fits(
    features: np.ndarray, head: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[float, float, bool]:
    """Shares of the labels that head and transpose predict; whether the latter is far better."""
    counted = np.flatnonzero(weights)
    if len(counted) > 10_000:
        # At random, since labels may be sorted or periodic.
        counted = np.random.default_rng(0).choice(counted, 10_000, replace=False)
    labels, rows = labels[counted], features[counted]
    # The scale of a row changes no prediction, and squares of raw entries could overflow.
    rows = rows / np.max(np.abs(rows), axis=-1, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    head = head / np.max(np.abs(head))
    share, transposed = (np.mean(np.argmax(rows @ w.T, -1) == labels) for w in (head, head.T))
    # A class of similar samples is right or wrong as a whole. With few classes an untrained head
    # may therefore predict twice as many by chance, but its rows do not follow the class means.
    present = np.unique(labels)
    means = np.stack([np.mean(rows[labels == c], axis=0, dtype=np.float64) for c in present])
    towards = head.T[present].astype(np.float64)
    means, towards = (x - np.mean(x, axis=0) for x in (means, towards))
    inner, squares = np.sum(means * towards), np.sum(means**2) * np.sum(towards**2)
    # cos / √((1 - cos²) / (free - 1)) > 4, without a division by 0.
    free = (len(present) - 1) * head.shape[-1]
    follows = inner > 0 and inner**2 * (free - 1) > 16 * (squares - inner**2)
    is_twice = transposed > 0 and transposed >= 2 * share
    return share, transposed, len(present) >= 3 and follows and is_twice


def _check_kernel(kernel: Array) -> None:
    _fail_where(~jnp.isfinite(kernel), "kernel", "entries are NaN or infinite.")
    # What rounding may do to a symmetric kernel, relative to its largest entry.
    scale = jnp.max(jnp.abs(kernel), axis=(-2, -1), keepdims=True)
    tolerance = 8 * kernel.shape[-1] * float(jnp.finfo(kernel.dtype).eps)
    skew = jnp.abs(kernel - jnp.swapaxes(kernel, -1, -2)) > tolerance * scale
    _fail_where(skew, "kernel", "entries differ from those of the transpose; it must be symmetric.")
    # Unit scale, so that the solver neither overflows nor underflows.
    unit = kernel / jnp.where(scale == 0, 1.0, scale)
    values = jnp.linalg.eigvalsh(unit)
    negative = values < -tolerance * values[..., -1:]
    _fail_where(negative, "kernel", "eigenvalues are negative; it must be positive semi-definite.")


def _fail_where(bad: Array, name: str, what: str, unit: str = "entry") -> None:
    total = bad.size
    # The position depends on values, so only a concrete array can report it.
    if isinstance(bad, jax.core.Tracer):
        checkify.check(~jnp.any(bad), f"{name}: {{count}} of {total} {what}", count=jnp.sum(bad))
        return
    places = np.argwhere(np.asarray(bad))
    if len(places):
        where = ", ".join(map(str, places[0])) or "0"
        problem, _, consequence = what.partition(";")
        problem = problem.rstrip(".")
        ending = f";{consequence}" if consequence else "."
        raise ValueError(
            f"{name}: {len(places)} of {total} {problem} (first at {unit} {where}){ending}"
        )
