"""Checks of arguments: shapes and dtypes when a function is traced, values on request (`check`)."""

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


def entropy_method(method: str, order: float | int = 1) -> None:
    """Raises unless the method exists and supports the order."""
    if method not in ("eigh", "products", "auto"):
        raise ValueError(f"method must be 'eigh', 'products' or 'auto', got {method!r}.")
    if method == "products" and order not in (1, 2):
        raise ValueError(
            f"method='products' supports orders 1 and 2, got order {order}. Use 'eigh' or 'auto'."
        )


def check(
    features: Float[ArrayLike, "*batch n d"] | None = None,
    head: Float[ArrayLike, "*batch c d"] | None = None,
    labels: Int[ArrayLike, "*batch n"] | None = None,
    *,
    weights: ArrayLike | None = None,
    kernel: Float[ArrayLike, "*batch n n"] | None = None,
) -> None:
    """Raises an error if the *values* of the arguments make a metric meaningless.

    Every function checks shapes and dtypes when it is traced. It cannot check values, since a
    compiled function cannot raise; each function documents what it returns for meaningless ones.
    This function finds them: NaN and infinities, zero rows, labels outside `[0, num_classes)`,
    negative weights, weights that are all zero, kernels that are not symmetric or not positive
    semi-definite. Samples of weight 0 are ignored.

    On concrete arrays it raises at once. Inside a transformed function it adds checks for
    `jax.experimental.checkify.checkify`; without that transformation JAX raises an error.

    Args:
        features: `[..., n, d]`.
        head: `[..., num_classes, d]`.
        labels: integers `[..., n]`; pass `head` too, which gives the number of classes.
        weights: `[..., n]`.
        kernel: `[..., n, n]`; its eigenvalues are computed, `O(n³)`.

    Raises:
        ValueError: the message names the argument, the problem and where it first occurs.

    Example:
        >>> import jax.numpy as jnp, mirjax
        >>> features = jnp.ones((3, 2)).at[1].set(0.0)
        >>> mirjax.check(features)
        Traceback (most recent call last):
        ...
        ValueError: features: 1 of 3 rows are all zero (first at row 1); they count as weight 0.
    """
    counted = None if weights is None else jnp.asarray(weights) != 0
    if weights is not None:
        w = jnp.asarray(weights)
        _fail_where(w < 0, "weights", "entries are negative; weights must be >= 0.")
        _fail_where(~jnp.isfinite(w), "weights", "entries are NaN or infinite.")
        none_left = jnp.sum(w, axis=-1) == 0
        _fail_where(none_left, "weights", "sets are all zero; no sample is left.", unit="batch")
    # Weights apply to samples, never to the rows of the head.
    for name, rows, keep in (("features", features, counted), ("head", head, None)):
        if rows is None:
            continue
        rows = as_float(rows, name, axes="n d")
        counts = jnp.ones(rows.shape[:-1], bool) if keep is None else keep
        broken = ~jnp.all(jnp.isfinite(rows), axis=-1) & counts
        _fail_where(broken, name, "rows hold NaN or infinity; the metrics are NaN.", unit="row")
        zero = jnp.all(rows == 0, axis=-1) & counts
        _fail_where(zero, name, "rows are all zero; they count as weight 0.", unit="row")
    if labels is not None:
        y = as_labels(labels)
        if head is None:
            raise ValueError("labels can only be checked against a head: pass head as well.")
        classes = head.shape[-2]
        wrong = ((y < 0) | (y >= classes)) & (True if counted is None else counted)
        _fail_where(wrong, "labels", f"entries lie outside [0, {classes}); the metrics are NaN.")
    if kernel is not None:
        _check_kernel(as_float(kernel, "kernel", axes="n n"))


def _check_kernel(kernel: Array) -> None:
    square(kernel, "kernel")
    _fail_where(~jnp.isfinite(kernel), "kernel", "entries are NaN or infinite.")
    # What rounding may do to a symmetric kernel, relative to its largest entry.
    scale = jnp.max(jnp.abs(kernel), axis=(-2, -1), keepdims=True)
    tolerance = 8 * kernel.shape[-1] * jnp.finfo(kernel.dtype).eps
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
