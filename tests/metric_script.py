"""Run by `test_metric_objects.py` on simulated devices: a metric of batches that are cut over them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mirjax
from mirjax import metrics

C, D, N = 3, 8, 64


def main():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(N, D)).astype(np.float32), (np.arange(N) % C).astype(np.int32)
    w = rng.normal(size=(C, D)).astype(np.float32)
    metric = metrics.InterplayMetric(C, D)

    @nnx.jit
    def step(metric, rows, labels):
        metric.update(features=rows, labels=labels)

    place = NamedSharding(mesh, PartitionSpec("data"))
    for half in (slice(0, N // 2), slice(N // 2, N)):
        step(metric, jax.device_put(z[half], place), jax.device_put(y[half], place))
    # Each device its own part, gathered as clu does it.
    kind = metrics.StreamedInterplay.of(C, D)
    parts = jax.vmap(kind.from_model_output, in_axes=(0, 0, None))(
        jax.device_put(z.reshape(8, -1, D), place), jax.device_put(y.reshape(8, -1), place), w
    )
    right = metrics.summary(mirjax.ClassMoments.zeros(C, D).update(jnp.asarray(z), y), w)
    errors = {}
    for name, found in (("nnx", metric.compute(w)), ("clu", parts.reduce().compute())):
        errors[name] = max(abs(found[k] - v) / (abs(v) + 1e-2) for k, v in right.items())
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
