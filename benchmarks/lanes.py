"""What lanes and devices cost: steps of several networks on meshes of devices and processes.

    python -m benchmarks.lanes [--rows LANESxDEVICESxPROCESSES ...] [--json FILE]

Each row starts its processes anew, on simulated devices unless there are accelerators (of which the
rows then use one process). It times a step on the mesh and on one device in turn, and reads off the
compiled program what moves between devices. Simulated devices share the cores of the machine: their
ratio says only whether dividing costs something, not what it gains.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROWS = ("8x8x1", "8x2x2", "8x4x1", "3x4x1", "5x4x1", "1x8x1", "1x2x2", "2x2x2")
ON_ACCELERATORS = ("1x1x1", "8x1x1", "32x1x1")
ROUNDS, STEPS = 7, 5
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1}
_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def moved(program: str) -> dict[str, int]:
    """Bytes of the results of each kind of exchange in a compiled program."""
    found: dict[str, int] = {}
    # Long tuples have comments with the numbers of their parts.
    program = re.sub(r"/\*.*?\*/", "", program)
    for shapes, kind in re.findall(rf"= (\(?[^=]*?) ({_KINDS})(?:-start)?\(", program):
        size = 0
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            count = 1
            for side in filter(None, sides.split(",")):
                count *= int(side)
            size += _BYTES.get(dtype, 4) * count
        found[kind] = found.get(kind, 0) + size
    return found


def measure(lanes: int) -> dict[str, Any]:
    """Times the steps of so many networks on all devices and on one, in turn."""
    import jax
    import numpy as np

    from benchmarks.training import noise
    from train.data.types import from_arrays
    from train.engine.loader import loader_of
    from train.engine.sharding import described, mesh_of, place
    from train.engine.state import Network, initial_state
    from train.engine.step import UsedTerms
    from train.engine.trainer import Trainer
    from train.run import hosts
    from train.run.lanes import lanes_of
    from train.supervised import Supervised, make_step, optimizer_of

    images, labels = noise()
    data = from_arrays("noise", images[:2000], labels[:2000], images[:100], labels[:100])
    accelerator = jax.default_backend() != "cpu"
    model = "wrn-28-2" if accelerator else "conv"
    settings = Supervised(model=model, batch_size=64, seeds=lanes)
    networks, network = lanes_of(settings), Network.of(settings, data)
    optimizer = optimizer_of(settings)
    step = jax.vmap(make_step(network, optimizer, UsedTerms.of(networks), augment=True))

    def trainer_on(mesh: Any) -> Trainer:
        return Trainer(
            step,
            loader_of(data.train, settings.batch_size, mesh),
            networks,
            initial_state(network, optimizer, networks),
            mesh,
            steps_per_call=10 if accelerator else 1,
            lanes_per_call=lanes,
        )

    def seconds(trainer: Trainer) -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            trainer.call(trainer.step + 10)
        trainer.wait()
        return (time.perf_counter() - began) / STEPS

    mesh = mesh_of(lanes, settings.batch_size)
    both = trainer_on(mesh)
    # The program of a call, from what a call is given.
    sources, indices = both._batches[0](0, 1)
    filled = both._filled(indices)
    if mesh.size > 1:
        filled = place(filled, mesh, both._loader.indices_spec)
    compiled = both._call.lower(both.groups[0].states, sources, filled, 1).compile()
    memory = compiled.memory_analysis()
    seconds(both)
    row = {
        "lanes": lanes,
        "devices": len(jax.devices()),
        "processes": jax.process_count(),
        "divided": described(mesh, lanes) or "1 device",
        "moved": moved(compiled.as_text()),
        "mib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
        "device": jax.devices()[0].device_kind,
    }
    ratios, steps = [], []
    if mesh.size == 1:
        return row | {"seconds": sorted(seconds(both) for _ in range(ROUNDS))}
    if not hosts.several():
        alone = trainer_on(mesh_of(lanes, settings.batch_size, devices=1))
        seconds(alone)
        for _ in range(ROUNDS):
            one, all_ = seconds(alone), seconds(both)
            ratios.append(all_ / one)
            steps.append(all_)
    else:
        # One device alone is the row of one process; here the time of the mesh alone.
        steps = [seconds(both) for _ in range(ROUNDS)]
    return row | {"ratios": sorted(ratios), "seconds": sorted(np.asarray(steps).tolist())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", help=f"by default {' '.join(ROWS)}")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        lanes, processes, process, port = map(int, options.child)
        from train.run import hosts

        if processes > 1:
            hosts.join(f"127.0.0.1:{port}", processes, process)
        row = measure(lanes)
        if hosts.is_first():
            print("ROW" + json.dumps(row), flush=True)
        hosts.gathered(None)
        return
    import jax

    accelerator = jax.default_backend() != "cpu"
    rows = []
    for name in options.rows or (ON_ACCELERATORS if accelerator else ROWS):
        row = _run(name, simulated=not accelerator)
        rows.append(row)
        print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _run(name: str, *, simulated: bool) -> dict[str, Any]:
    lanes, devices, processes = map(int, name.split("x"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = dict(os.environ)
    if simulated:
        variables["JAX_PLATFORMS"] = "cpu"
        variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.lanes", "--child"]
            + [str(x) for x in (lanes, processes, process, port)],
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    return json.loads(next(x for x in printed[0].splitlines() if x.startswith("ROW"))[3:])


def _line(row: dict[str, Any]) -> str:
    steps = row["seconds"]
    line = f"{row['divided']}: {1e3 * steps[len(steps) // 2]:.0f} ms a step"
    if ratios := row.get("ratios"):
        line += f", {ratios[len(ratios) // 2]:.2f} of one device"
        line += f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    exchanged = ", ".join(f"{k} {v / 2**20:.2f} MiB" for k, v in row["moved"].items())
    return f"{line}; between devices: {exchanged or 'nothing'}; {row['mib']:.0f} MiB a device"


if __name__ == "__main__":
    main()
