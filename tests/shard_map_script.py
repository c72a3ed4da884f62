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
    "moments": lambda z, w, y: mirjax.ClassMoments.zeros(C, D).update(z, y).collapse(w).cdnv,
}


def main():
    devices = jax.device_count()
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(devices * N, D)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(C, D)), jnp.float32)
    y = jnp.asarray(rng.integers(0, C, devices * N), jnp.int32)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
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
