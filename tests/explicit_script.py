"""Run by `test_explicit_mesh.py` on simulated devices: every function on explicit axes of a mesh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mirjax
from mirjax import losses

# Programs of several simulated devices that run at once wait for each other on a small machine.
jax.config.update("jax_cpu_enable_async_dispatch", False)
N, D, C = 48, 6, 4
RNG = np.random.default_rng(0)
Z, W = RNG.normal(size=(N, D)).astype(np.float32), RNG.normal(size=(C, D)).astype(np.float32)
Y = np.arange(N, dtype=np.int32) % C
MANY = RNG.normal(size=(2 * N, D)).astype(np.float32)


def of_moments(z, w, y):
    moments = mirjax.ClassMoments.zeros(C, D).update(z, y)
    both = moments.merge(moments)
    few = mirjax.ClassMoments.zeros(C, D, second=False).update(z, y)
    collapse = both.collapse(w, nc4=moments.agreement(z, w))
    debiased = moments.debiased_interplay(w)
    return moments.interplay(w), debiased, collapse, moments.class_interplay(w), few.entropies(w)


def eagerly(z, w, y):
    moments = mirjax.ClassMoments.zeros(C, D).update(z, y)
    return moments, moments.interplay(w), moments.agreement(z, w)


# Of features, head and labels; each returns a tree of arrays.
SMOOTH = {
    "normalize_rows": lambda z, _w, _y: mirjax.normalize_rows(z),
    "gram": lambda z, _w, _y: mirjax.gram(z),
    "matrix_entropy": lambda z, _w, _y: mirjax.matrix_entropy(mirjax.gram(z)),
    "feature_entropy": lambda z, _w, _y: mirjax.feature_entropy(z, order=0.5),
    "effective_rank": lambda z, _w, _y: mirjax.effective_rank(z, method="products"),
    "interplay": mirjax.interplay,
    "feature_interplay": lambda z, _w, _y: mirjax.feature_interplay(z, z[:, 1:]),
    "kernel_interplay": lambda _z, w, _y: mirjax.kernel_interplay(
        mirjax.gram(w), mirjax.gram(w) + 1
    ),
    "class_means": lambda z, _w, y: mirjax.class_means(z, y, num_classes=C),
    "class_interplay": lambda _z, w, _y: mirjax.class_interplay(w + 1, w),
    "neural_collapse": lambda z, w, y: mirjax.neural_collapse(z, y, w, num_classes=C),
    "many classes": lambda z, _w, y: mirjax.neural_collapse(z, y, MANY, num_classes=len(MANY)),
    "layerwise": lambda z, _w, _y: mirjax.layerwise(mirjax.effective_rank)({"a": z, "b": 2 * z}),
    "mutual_information_loss": losses.mutual_information_loss,
    "entropy_difference_loss": losses.entropy_difference_loss,
    "order 2": lambda z, w, y: mirjax.interplay(z, w, y, order=2),
    "debiased_interplay": mirjax.debiased_interplay,
    "chance_interplay": lambda z, w, y: mirjax.chance_interplay(
        z, w, y, key=jax.random.key(0), permutations=2
    ),
    "debiased loss": lambda z, w, y: losses.mutual_information_loss(
        z, w, y, order=2, debiased=True
    ),
    "PairMoments": lambda z, w, y: mirjax.PairMoments.zeros().update(z, w, y),
    "spectra": lambda z, _w, y: mirjax.spectra.measure(z, y, num_classes=C),
    "moments": of_moments,
}
WHOLE = {
    "spectra of moments": lambda z, _w, y: mirjax.ClassMoments.zeros(C, D).update(z, y).spectra(),
    "dataset_interplay": mirjax.dataset_interplay,
    "dataset_interplay, lanczos": lambda z, w, y: mirjax.dataset_interplay(
        z, w, y, method="lanczos", rank=4, probes=4
    ),
    "dataset_feature_interplay": lambda z, _w, _y: mirjax.dataset_feature_interplay(z, z[:, 1:]),
    "dataset_debiased_interplay": mirjax.dataset_debiased_interplay,
    "batch_bias": lambda z, w, y: mirjax.batch_bias(
        z, w, y, batch_sizes=np.array([8]), max_batches=2
    ),
}


def every(z, w, y):
    return {name: function(z, w, y) for name, function in SMOOTH.items()}


def total(function):
    return lambda *a: sum(jnp.sum(part) for part in jax.tree.leaves(function(*a)))


def gradients(z, w, y):
    def both(z, w):
        return mirjax.interplay(z, w, y), of_moments(z, w, y)[1:]

    return jax.grad(total(both), argnums=(0, 1))(z, w)


def error(found, right):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
    return max(float(np.max(np.abs(f - r)) / (np.max(np.abs(r)) + 1e-3)) for f, r in pairs)


def main():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Explicit,))

    def put(array, *spec):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    plain, sharded = (Z, W, Y), (put(Z, "data"), put(W), put(Y, "data"))
    errors = {}
    for name, function in (WHOLE | {"update, interplay, agreement": eagerly}).items():
        right = jax.tree.map(np.asarray, function(*plain))
        with jax.set_mesh(mesh):
            errors[f"{name}, rows"] = error(function(*sharded), right)
            errors[f"{name}, NumPy"] = error(function(*plain), right)
    moments = mirjax.ClassMoments.zeros(C, D).update(Z, Y)
    errors["head, outside"] = error(moments.interplay(put(W)), moments.interplay(W))
    bias = WHOLE["batch_bias"]
    errors["batch_bias, outside"] = error(bias(*sharded), jax.tree.map(np.asarray, bias(*plain)))
    for function in (every, gradients):
        compiled = jax.jit(function)
        right = jax.tree.map(np.asarray, compiled(*plain))
        with jax.set_mesh(mesh):
            found = compiled(*sharded)
        for name in right if function is every else range(2):
            errors[f"{name}, compiled"] = error(found[name], right[name])
    # What does not fit together on explicit axes shows when it is traced.
    for name, function in (SMOOTH | WHOLE).items():
        jax.jit(function).trace(*sharded)
        jax.jit(function).trace(put(Z), put(W, "data"), put(Y))
        with jax.set_mesh(mesh):
            derivative = jax.grad(total(function), argnums=(0, 1)) if name in SMOOTH else function
            jax.jit(derivative).trace(*sharded)
    # Batches that are split over devices.
    batches = put(np.stack([Z] * 8), "data"), put(W), put(np.stack([Y] * 8), "data")
    with jax.set_mesh(mesh):
        mapped = jax.vmap(mirjax.interplay, in_axes=(0, None, 0))
        results = jax.jit(lambda *a: (mirjax.interplay(*a).mir, mapped(*a).mir))(*batches)
        errors["batch axis"] = error(results, [mirjax.interplay(*plain).mir] * 2)
        for rows in (sharded[0], batches[0]):
            assert jax.typeof(mirjax.gram(rows)).sharding.spec[0] == "data"
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
