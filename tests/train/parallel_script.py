"""Run by test_sharding.py on simulated devices: trains a few steps, prints the outcome as JSON."""

import json
import os
import sys

DEVICES, OUT = int(sys.argv[1]), sys.argv[2]
# JAX reads these when it is imported.
FLAGS = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tests import contexts  # noqa: E402
from train import semisupervised  # noqa: E402
from train.data.types import from_arrays  # noqa: E402
from train.engine.loader import loader_of  # noqa: E402
from train.engine.sharding import BY_LANE, mesh_of, place  # noqa: E402
from train.engine.state import Network, initial_state  # noqa: E402
from train.engine.step import UsedTerms  # noqa: E402
from train.engine.trainer import make_call  # noqa: E402
from train.run.checkpoint import Checkpoints  # noqa: E402
from train.run.lanes import lanes_of  # noqa: E402
from train.ssl.pool import pool_of  # noqa: E402
from train.ssl.settings import Semisupervised  # noqa: E402
from train.supervised import (  # noqa: E402
    Supervised,
    fit,
    make_step,
    optimizer_of,
)


def main():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 12, 12, 1)).astype(np.uint8)
    data = from_arrays("noise", images, np.arange(96) % 3, images[:50], np.arange(50) % 3)
    settings = Supervised(
        model="conv", augment=True, steps=4, eval_every=2, eval_train=False, batch_size=16, metric_batch=8, eval_batch=16,
        mi_weight=0.2, ed_weight=0.1, smoothing=0.1, seeds=2, out=Path(OUT),
    )  # fmt: skip
    jax.config.update("jax_compilation_cache_dir", ".cache/jax")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    result = fit(settings, data, lanes_of(settings), quiet=True)
    if DEVICES > 1:
        stopped = dataclasses.replace(settings, out=Path(OUT + "-stopped"))
        save = Checkpoints.save

        def save_and_die(self, *arguments):
            save(self, *arguments)
            raise KeyboardInterrupt

        Checkpoints.save = save_and_die
        try:
            fit(stopped, data, quiet=True)
        except KeyboardInterrupt:
            Checkpoints.save = save
        resumed = fit(dataclasses.replace(stopped, resume=True), data, quiet=True)
        assert resumed.records == result.records
    few = Semisupervised(
        model="mlp", labels=12, unlabelled_ratio=2, steps=2, eval_every=2, eval_train=False, batch_size=16,
        metric_batch=8, eval_batch=16, mi_weight=0.2, statistics_momentum=0.5, out=Path(OUT + "-few"),
    )  # fmt: skip
    states = semisupervised.fit(few, pool_of(few, data, few.labels), quiet=True).states
    text, _ = compiled_step(settings, data, 1)
    of_lanes, states_of_lanes = compiled_step(settings, data, DEVICES)
    where = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(result.states.params)}
    print(
        "RESULT"
        + json.dumps(
            {
                "devices": len(jax.devices()),
                "exchanged": [kind for kind in COLLECTIVES if kind in of_lanes],
                "lanes_on_a_device": [
                    shard.data.shape[0] for shard in states_of_lanes.step.addressable_shards
                ],
                "lie_on": sorted(where),
                "adds_over_devices": "all-reduce" in text,
                # The first convolution's output: 16 maps of 6 x 6, or the share of one device.
                "maps": f"f32[{16 // DEVICES},6,6,32]" in text,
                "records": result.records,
                "few": [
                    np.asarray(x).ravel().tolist()
                    for x in jax.tree.leaves((states.ema_params, states.algorithm_state))
                ],
                "params": [
                    np.asarray(x).ravel().tolist() for x in jax.tree.leaves(result.states.params)
                ],
            }
        )
    )


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def compiled_step(settings, data, seeds):
    """What the compiler makes of a step of so many networks on the mesh, and their states."""
    lanes = lanes_of(dataclasses.replace(settings, seeds=seeds, mi_weight=0.0, ed_weight=0.0))
    mesh = mesh_of(seeds, settings.batch_size)
    network, transform = Network.of(settings, data), optimizer_of(settings)
    step = make_step(network, transform, UsedTerms.of(lanes))
    loader = loader_of(data.train, settings.batch_size, mesh)
    call = make_call(jax.vmap(step), loader, looped=False, mesh=mesh)
    states = place(initial_state(network, transform, lanes), mesh, BY_LANE)
    return call.lower(states, *loader.example(lanes), 1).compile().as_text(), states


if __name__ == "__main__":
    contexts.share()
    main()
