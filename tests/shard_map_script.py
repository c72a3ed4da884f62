"""Run by `test_shard_map.py` on simulated devices: values and gradients inside `jax.shard_map`."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import mirjax
from mirjax import losses

# More than 40, up to which another solver is used.
N, D, C = 48, 44, 6


def collapse_sum(z, w, y):
    result = mirjax.neural_collapse(z, y, w, num_classes=len(w))
    return sum(part for name, part in result._asdict().items() if name != "nc4")


FUNCTIONS = {
    "interplay": lambda z, w, y: sum(mirjax.interplay(z, w, y)[:3]),
    "products": lambda z, w, y: mirjax.interplay(z, w, y, method="products").mir,
    "moments of pairs": lambda z, w, y: mirjax.interplay(z[:, :3], w[:, :3], y).mir,
    "feature entropy": lambda z, *_: mirjax.feature_entropy(z),
    "order 3": lambda z, *_: mirjax.feature_entropy(z, order=3),
    "feature interplay": lambda z, w, y: mirjax.feature_interplay(z, w[y]).hdr,
    "kernels": lambda z, w, y: mirjax.kernel_interplay(mirjax.gram(z), mirjax.gram(w[y])).mir,
    "class interplay": lambda z, w, y: (
        mirjax.class_interplay(mirjax.class_means(z, y, num_classes=C).means, w).mir
    ),
    "collapse": collapse_sum,
    "mutual information": losses.mutual_information_loss,
    "entropy difference": losses.entropy_difference_loss,
    "many classes": lambda z, w, y: collapse_sum(z, jnp.tile(w, (20, 1)), y + 30),
    "order 2": lambda z, w, y: mirjax.interplay(z[:, :5], w[:4, :5], y % 4, order=2).mir,
    "debiased": lambda z, w, y: mirjax.debiased_interplay(z, w, y).mir,
    "debiased loss": lambda z, w, y: losses.mutual_information_loss(
        z[:, :5], w[:4, :5], y % 4, order=2, debiased=True
    ),
    "pairs": lambda z, w, y: mirjax.PairMoments.zeros().update(z, w, y).purities[2],
    "moments": lambda z, w, y: mirjax.ClassMoments.zeros(C, D).update(z, y).collapse(w).cdnv,
    "spectra": lambda z, _w, y: sum(mirjax.spectra.measure(z, y, num_classes=C)[1:]),
}


def merged(z, w, y):
    moments = mirjax.ClassMoments.zeros(C, D).update(z, y)
    both = moments.merge(moments.update(z[:5], y[:5]))
    few = mirjax.ClassMoments.zeros(8 * N, D, second=False).update(z, y, precision="bfloat16")
    collapse = both.collapse(w, nc4=moments.agreement(z, w))
    pairs = mirjax.PairMoments.zeros().update(z, w, y).reduce("data").interplay().mir
    debiased = both.debiased_interplay(w).mir
    return collapse, both.class_interplay(w), few.reduce("data").sums.spread, pairs, debiased


# Types that do not fit show when a function is traced. In these gradients are traced as well,
def smooth(z, w, y):
    weights = jnp.abs(z[:, 0])
    return (
        mirjax.normalize_rows(z),
        mirjax.effective_rank(z, weights=weights),
        [mirjax.feature_entropy(z, order=order) for order in (0.5, 2, jnp.inf)],
        mirjax.matrix_entropy(mirjax.gram(z), order=0.5),
        mirjax.interplay(jnp.stack([z, z]), w, jnp.stack([y, y]), weights=weights),
        jax.vmap(mirjax.feature_interplay)(jnp.stack([w, w]), jnp.stack([w, z[:C]])),
        mirjax.neural_collapse(z, y, w, num_classes=C, bias=w[:, 0], weights=weights),
        mirjax.debiased_interplay(z, w, y, weights=weights, groups=y),
        mirjax.debiased_feature_interplay(z, z[:, 1:]),
        mirjax.chance_interplay(z, w, y, key=jax.random.key(0), permutations=2),
        mirjax.layerwise(mirjax.effective_rank)({"a": z, "b": w}),
        mirjax.spectra.measure(z, y, num_classes=C, weights=weights),
        mirjax.spectra.measure(z[:20], y[:20], num_classes=C),
        mirjax.spectra.diff_effective_rank(z, z[:, :5]),
        mirjax.ClassMoments.zeros(C, 5).update(z[:, :5], y, weights).interplay(w[:, :5]),
        merged(z, w, y),
    )


# and in these only values.
def whole(z, w, y):
    options = {"method": "lanczos", "rank": 4, "probes": 4}
    moments = mirjax.ClassMoments.zeros(C, 5).update(z[:, :5], y)
    return (
        moments.spectra(),
        moments.spectra(per_class=True),
        mirjax.spectra.measure(z[:, :5], y, num_classes=C, per_class=True),
        mirjax.dataset_interplay(z[:, :5], w[:, :5], y),
        mirjax.dataset_interplay(z, w, y, **options),
        mirjax.dataset_interplay(z[:, :3], w[:, :3], y, **options),
        mirjax.dataset_feature_interplay(z[:, :3], z[:, 3:7]),
        mirjax.dataset_feature_interplay(z, z[:, :9], **options),
        mirjax.dataset_feature_interplay(z[:, :3], z[:, 3:7], **options),
        mirjax.dataset_debiased_interplay(z, w, y),
        mirjax.dataset_debiased_interplay(z[:, :3], w[:, :3], y),
        mirjax.batch_bias(z[:, :5], w[:, :5], y, batch_sizes=(8,), max_batches=2),
    )


def total(function):
    return lambda *a: sum(jnp.sum(part) for part in jax.tree.leaves(function(*a)))


def trace(mesh, z, w, y):
    gradients = jax.grad(total(smooth), argnums=(0, 1))
    for function in (smooth, gradients, whole):
        # Also where only one of the arguments varies over devices.
        for specs in ((P("data"), P(), P("data")), (P("data"), P(), P()), (P(), P("data"), P())):

            def mean(*arguments, function=function):
                return jax.lax.pmean(function(*arguments), "data")

            few = [
                x if spec == P() else jnp.concatenate([x] * mesh.size)
                for x, spec in zip((z, w, y), specs, strict=True)
            ]
            jax.jit(jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P())).trace(*few)


def main():
    devices = jax.device_count()
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(devices * N, D)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(C, D)), jnp.float32)
    y = jnp.asarray(rng.integers(0, C, devices * N), jnp.int32)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if sys.argv[1:] == ["trace"]:
        trace(mesh, z[:N], w, y[:N])
        return
    errors = {}
    for name, function in FUNCTIONS.items():

        def one(z, w, y, function=function):
            value, gradient = jax.value_and_grad(function)(z, w, y)
            return value[None], gradient

        inside = jax.shard_map(
            one, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P("data")
        )
        values, gradients = jax.jit(inside)(z, w, y)
        alone = jax.jit(one)
        parts = [alone(z[i : i + N], w, y[i : i + N]) for i in range(0, len(z), N)]
        expected = [np.concatenate(part) for part in zip(*parts, strict=True)]
        errors[name] = [
            float(np.max(np.abs(found - right)) / np.max(np.abs(right)))
            for found, right in zip((values, gradients), expected, strict=True)
        ]

    def reduced(z, y):
        return mirjax.ClassMoments.zeros(C, D).update(z, y).reduce("data")

    inside = jax.shard_map(reduced, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
    whole = mirjax.ClassMoments.zeros(C, D).update(z, y)
    found, right = jax.jit(inside)(z, y).collapse(w).nc1, whole.collapse(w).nc1
    errors["reduce"] = [abs(float(found / right) - 1), 0.0]
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
