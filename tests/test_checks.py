"""`mirjax.check` finds every value without meaning, eagerly and under checkify."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import mirjax


def sound():
    features, head = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)
    labels, weights = np.array([0, 1, 1, 0]), np.ones(4, np.float32)
    options = {"weights": weights, "kernel": np.eye(4, dtype=np.float32)}
    return (features, head, labels), options


def broken(name):
    """Arguments of `check` with one fault, and the message it raises."""
    (features, head, labels), options = sound()
    weights, kernel = options.values()
    match name:
        case "NaN in features":
            features[2, 1] = np.nan
            message = "features: 1 of 4 rows hold NaN or infinity"
        case "infinity in head":
            head[1, 0] = np.inf
            message = "head: 1 of 2 rows hold NaN or infinity"
        case "zero rows of features":
            features[[0, 3]] = 0
            message = "features: 2 of 4 rows are all zero"
        case "zero row of head":
            head[0] = 0
            message = "head: 1 of 2 rows are all zero"
        case "label too large":
            labels[1] = 2
            message = r"labels: 1 of 4 entries lie outside \[0, 2\)"
        case "label negative":
            labels[:3] = -1
            message = r"labels: 3 of 4 entries lie outside \[0, 2\)"
        case "negative weight":
            weights[1] = -1
            message = "weights: 1 of 4 entries are negative"
        case "NaN weight":
            weights[1] = np.nan
            message = "weights: 1 of 4 entries are NaN or infinite"
        case "no weight":
            weights[:] = 0
            message = "weights: 1 of 1 sets are all zero"
        case "NaN in kernel":
            kernel[1, 1] = np.nan
            message = "kernel: 1 of 16 entries are NaN"
        case "skew kernel":
            kernel[0, 1] = 0.5
            message = "kernel: 2 of 16 entries differ from those of the transpose"
        case "indefinite kernel":
            kernel[0, 1] = kernel[1, 0] = 2.0
            message = "kernel: 1 of 4 eigenvalues are negative"
    return (features, head, labels), options, message


FAULTS = (
    "NaN in features",
    "infinity in head",
    "zero rows of features",
    "zero row of head",
    "label too large",
    "label negative",
    "negative weight",
    "NaN weight",
    "no weight",
    "NaN in kernel",
    "skew kernel",
    "indefinite kernel",
)


def inside(arguments, options):
    mirjax.check(*arguments, **options)
    return jnp.sum(arguments[0])


checked = jax.jit(checkify.checkify(inside))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_eagerly(fault):
    arguments, options, message = broken(fault)
    with pytest.raises(ValueError, match=message):
        mirjax.check(*arguments, **options)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_inside_jit(fault):
    arguments, options, message = broken(fault)
    error, _ = checked(arguments, options)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_sound_values_pass():
    arguments, options = sound()
    assert mirjax.check(*arguments, **options) is None
    error, _ = checked(arguments, options)
    error.throw()


def test_samples_of_weight_zero_are_not_looked_at():
    (features, head, labels), options = sound()
    features[1], labels[1], options["weights"][1] = np.nan, -1, 0
    mirjax.check(features, head, labels, **options)


def test_message_says_where():
    features = np.ones((5, 3), np.float32)
    features[3] = 0
    with pytest.raises(ValueError, match="first at row 3"):
        mirjax.check(features)


def test_labels_need_a_head():
    with pytest.raises(ValueError, match="pass head as well"):
        mirjax.check(labels=np.zeros(3, np.int32))


def test_jit_without_checkify_is_an_error():
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(mirjax.check)(jnp.ones((4, 3)))


def full(*shape):
    return np.ones(shape, np.float32)


LABELS = np.zeros(4, int)
DISAGREEING = {
    "labels": (
        (full(4, 3), full(2, 3), np.zeros(5, int)),
        {},
        r"\(4, 3\) and labels of .* 4 against 5",
    ),
    "weights": ((full(4, 3),), {"weights": full(5)}, r"\(4, 3\) and weights of .* 4 against 5"),
    "labels and weights": (
        (None, full(2, 3), LABELS),
        {"weights": full(5)},
        r"labels of .* weights of .* the number of samples n: 4 against 5",
    ),
    "kernel": ((full(4, 3),), {"kernel": np.eye(3, dtype=np.float32)}, "kernel of .* 4 against 3"),
    "weights of a kernel": (
        (),
        {"kernel": np.eye(4, dtype=np.float32), "weights": full(3)},
        "weights of .* kernel of .* 3 against 4",
    ),
    "a column of weights": (
        (full(4, 3),),
        {"weights": full(4, 1)},
        r"weights must be \[..., n\], one number for each sample, got \(4, 1\).*weights\[..., 0\]",
    ),
    "a column of labels": ((full(4, 3), full(2, 3), LABELS[:, None]), {}, r"labels\[..., 0\]"),
    "a column of weights of labels": (
        (None, full(2, 3), LABELS),
        {"weights": full(4, 1)},
        r"weights\[..., 0\]",
    ),
    "a column of weights of a kernel": (
        (),
        {"kernel": np.eye(4, dtype=np.float32), "weights": full(4, 1)},
        r"weights\[..., 0\]",
    ),
    "a transposed head": ((full(4, 3), full(3, 2)), {}, r"disagree in d: 3 against 2.*kernel\.T"),
    "another head": ((full(4, 3), full(2, 5)), {}, r"disagree in d: 3 against 5; expected"),
    "batches": (
        (full(2, 4, 3), full(5, 2, 3)),
        {},
        r"head of shape \(5, 2, 3\) .* equal or broadcast: \(2,\) against \(5,\)",
    ),
    "batches of labels": (
        (full(2, 4, 3), full(2, 3), np.zeros((3, 4), int)),
        {},
        r"labels of .* \(2,\) against \(3,\)",
    ),
    "no axis": (
        (full(4, 3),),
        {"weights": np.float32(1)},
        r"weights must have shape \[..., n\], got",
    ),
}


@pytest.mark.parametrize("fault", DISAGREEING)
def test_shapes_that_disagree_are_refused(fault):
    arguments, options, message = DISAGREEING[fault]
    with pytest.raises(ValueError, match=message):
        mirjax.check(*arguments, **options)
    with pytest.raises(ValueError, match=message):
        checkify.checkify(lambda: mirjax.check(*arguments, **options))()


def test_types_that_no_metric_takes_are_refused():
    with pytest.raises(TypeError, match="weights must be real, got complex64"):
        mirjax.check(full(4, 3), weights=np.ones(4, np.complex64))
    with pytest.raises(TypeError, match="weights must be an array"):
        mirjax.check(full(4, 3), weights=[1.0] * 4)
    for weights in (np.arange(4), np.arange(4) > 0):
        mirjax.check(full(4, 3), weights=weights)


def test_batch_axes_broadcast():
    features, labels, weights = full(4, 3), np.zeros((5, 4), int), np.ones((5, 4), np.float32)
    kernel = np.broadcast_to(np.eye(4, dtype=np.float32), (1, 4, 4))
    mirjax.check(features, full(2, 1, 2, 3), labels, weights=weights, kernel=kernel)
    mirjax.check(full(5, 1, 3), full(2, 3), weights=full(5, 1))
    mirjax.check(full(0, 4, 4), full(4, 4), np.zeros((0, 4), int))
    # A row is looked at in each set that counts it.
    features[1], weights[:3, 1] = np.nan, 0
    with pytest.raises(ValueError, match=r"features: 2 of 20 rows hold NaN .*first at row 3, 1"):
        mirjax.check(features, weights=weights)
    labels[4, 1] = 7
    weights[:, 1] = [0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="labels: 1 of 20 entries lie outside"):
        mirjax.check(None, full(2, 3), labels, weights=weights)


def square_head(classes=8, seed=0, samples=200, noise=0.1):
    """A rotation as head, and features that are close to its rows."""
    rng = np.random.default_rng(seed)
    head = np.linalg.qr(rng.normal(size=(classes, classes)))[0]
    labels = np.arange(samples) % classes
    features = head[labels] + noise * rng.normal(size=(samples, classes))
    return features.astype(np.float32), head.astype(np.float32), labels


def transposed(head):
    return np.swapaxes(head, -1, -2)


@pytest.mark.parametrize("classes", [5, 8, 30])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_square_head_that_is_transposed_warns(classes, scale):
    features, head, labels = square_head(classes)
    features, head = (x * np.float32(scale) for x in (features, head))
    mirjax.check(features, head, labels)
    with pytest.warns(UserWarning, match=r"transposed: it .* its transpose 100%.*kernel\.T") as log:
        mirjax.check(features, transposed(head), labels)
    assert log[0].filename == __file__


def test_a_transposed_head_in_float64_of_any_scale_warns(x64):
    features, head, labels = square_head()
    features, head = (np.float64(x) * 1e200 for x in (features, head))
    mirjax.check(features, head, labels)
    with pytest.warns(UserWarning, match="its transpose 100%"):
        mirjax.check(features, transposed(head), labels)


def test_dense_kernel_of_a_softmax_regression_warns():
    """Trained with gradients, not placed at the class means; half of the samples are wrong."""
    rng = np.random.default_rng(1)
    labels = np.arange(600) % 10
    features = (rng.normal(size=(10, 10))[labels] + 1.5 * rng.normal(size=(600, 10))) + 2.0
    kernel = np.zeros((10, 10))
    for _ in range(300):
        logits = features @ kernel
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        kernel -= 0.1 * features.T @ (p - np.eye(10)[labels]) / 600
    features, kernel = features.astype(np.float32), kernel.astype(np.float32)
    assert 0.4 < np.mean(np.argmax(features @ kernel, 1) == labels) < 0.8
    mirjax.check(features, kernel.T, labels)
    with pytest.warns(UserWarning, match="head of shape .10, 10. seems to be transposed"):
        mirjax.check(features, kernel, labels)


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 6, 12])
def test_heads_that_know_nothing_are_silent(classes, noise):
    """Also where each class is a tight cluster, which is predicted as a whole."""
    rng = np.random.default_rng(classes)
    labels = np.arange(60) % classes
    better = 0
    for _ in range(100):
        means = rng.normal(size=(classes, classes))
        features = means[labels] + noise * rng.normal(size=(60, classes))
        head = rng.normal(size=(classes, classes))
        shares = [np.mean(np.argmax(features @ w.T, 1) == labels) for w in (head, head.T)]
        better += shares[1] >= 2 * shares[0] + 0.2
        mirjax.check(features.astype(np.float32), head.astype(np.float32), labels)
    # Accuracy alone would have warned.
    assert better > 3 or noise > 0.1


def test_symmetric_and_constant_values_are_silent():
    features, _, labels = square_head()
    head = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    mirjax.check(features, head + head.T, labels)
    mirjax.check(features, np.eye(8, dtype=np.float32), labels)
    # The transpose of a nearly symmetric head fits the labels too, but no better.
    nearly = np.eye(8, dtype=np.float32) + 0.1 * head
    mirjax.check(nearly[labels], nearly, labels)
    mirjax.check(full(200, 8), full(8, 8), labels)
    mirjax.check(features[:1], head, labels[:1])
    mirjax.check(features, head, np.zeros_like(labels))


def test_a_transposed_head_among_batches_warns():
    features, head, labels = square_head()
    heads = np.stack([head, head, transposed(head)])
    with pytest.warns(
        UserWarning, match=r"\(3, 8, 8\) seems to be transposed \(first at batch 2\)"
    ):
        mirjax.check(features, heads, labels)
    with pytest.warns(UserWarning, match=r"first at batch 1, 2"):
        mirjax.check(np.stack([-features, features])[:, None], heads, labels)
    mirjax.check(np.stack([features] * 3), heads[:2, None], labels)


def test_samples_of_weight_zero_say_nothing_about_the_transpose():
    features, head, labels = square_head()
    weights = np.where(np.arange(200) < 100, 1.0, 0.0).astype(np.float32)
    features[100:], labels[100:] = np.nan, -1
    mirjax.check(features, head, labels, weights=weights)
    with pytest.warns(UserWarning, match="transposed"):
        mirjax.check(features, transposed(head), labels, weights=weights)
    # The counted half fits the head, the other half its transpose.
    features, _, labels = square_head()
    features[100:] = transposed(head)[labels[100:]]
    mirjax.check(features, head, labels, weights=weights)
    with pytest.warns(UserWarning, match="transposed"):
        mirjax.check(features, head, labels, weights=1 - weights)


def test_large_sets_with_sorted_or_periodic_labels_warn():
    features, head, labels = square_head(samples=40_000)
    for order in (np.arange(40_000), np.argsort(labels, kind="stable")):
        with pytest.warns(UserWarning, match="its transpose 100%"):
            mirjax.check(features[order], transposed(head), labels[order])


def test_nothing_is_said_of_the_transpose_while_traced():
    features, head, labels = square_head()
    arguments = features, transposed(head), labels
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        error, _ = jax.jit(checkify.checkify(inside))(arguments, {})
        error.throw()
        checkify.checkify(lambda: mirjax.check(*arguments))()[0].throw()
        jax.grad(lambda z: (mirjax.check(z, *arguments[1:]), jnp.sum(z))[1])(features)
    assert not log
