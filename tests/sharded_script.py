"""Run by test_sharded.py on simulated devices, alone or as one of two processes: prints JSON."""

import json
import os
import sys

DEVICES, PROCESS, PORT, KIND = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
# JAX reads these when it is imported.
FLAGS = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

if PORT != "0":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{PORT}", num_processes=2, process_id=PROCESS)

import mirjax  # noqa: E402
from tests import contexts  # noqa: E402


def main():
    rng = np.random.default_rng(0)
    results = {"devices": len(jax.devices()), "processes": jax.process_count()}
    # Sizes for which the same operator is chosen on any number of devices.
    for name, (n, d, classes) in {"moments": (480, 12, 5), "rows": (320, 16, 80)}.items():
        features, second = rng.normal(size=(n, d)), rng.normal(size=(n, 7))
        head, labels = rng.normal(size=(classes, d)), rng.integers(0, classes, n)
        features, second, head = (x.astype(np.float32) for x in (features, second, head))
        rows = tuple(map(spread, (features, second, labels.astype(np.int32))))
        options = {"method": "lanczos", "rank": 16, "probes": 4}
        found = {"head": mirjax.dataset_interplay(rows[0], head, rows[2], **options)}
        if name == "moments" and KIND == "all":
            found["exact"] = mirjax.dataset_interplay(rows[0], head, rows[2], method="exact")
            found["pair"] = mirjax.dataset_feature_interplay(rows[0], rows[1], **options)
        for kind, result in found.items():
            fields = (result.joint_entropy, result.mir, result.lower.mir, result.upper.mir)
            results[f"{name} {kind}"] = [float(x) for x in fields]
        shards = len(jax.devices())
        moments = mirjax.ClassMoments.zeros(classes, d).update(rows[0], rows[2], shards=shards)
        results[f"{name} collapse"] = [float(x) for x in moments.collapse(head, nc4=jnp.zeros(()))]
    print("RESULT" + json.dumps(results))


def spread(array):
    kind = AxisType.Explicit if KIND == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(kind,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


if __name__ == "__main__":
    contexts.share()
    main()
