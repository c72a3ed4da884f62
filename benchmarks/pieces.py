"""The pieces of `benchmarks.agenda`, in the order of their worth.

    python -m benchmarks.pieces NAME FOLDER [images=ARCHIVE labels=FILE]

does one of them. Estimates are for one H100, and guesses until a call has noted what a piece took.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Run = Callable[[Path, dict[str, Path]], None]
"""`(folder of the agenda, files) -> None`; what it writes lies below the folder."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of work that is done in one go."""

    name: str
    minutes: float
    what: str
    run: Run
    needs: tuple[str, ...] = ()
    """The files that it reads: `images`, `labels`."""


IMAGES = ("images", "labels")
MI, ED = {"mi_weight": 0.1}, {"ed_weight": 0.1}


def _benchmark(name: str, *arguments: str) -> Run:
    """A benchmark, which takes the place of this process, so that signals reach it."""

    def run(folder: Path, _: dict[str, Path]) -> None:
        place = folder / "results" / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.execv(sys.executable, [sys.executable, *arguments, "--json", str(place)])

    return run


def _group(*arguments: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.run", *arguments)


def cifar10(data: dict[str, Path]) -> str:
    """The name of CIFAR-10 for `--dataset`: made of its images once on each machine."""
    import numpy as np

    from train.data.image_tree import image_tree

    place = Path(tempfile.gettempdir()) / "mirjax-agenda" / "cifar10-jpeg.npz"
    if not place.exists():
        archive = image_tree(data["images"], "cifar10", (32, 32, 3), data["labels"])
        arrays: dict[str, Any] = {"source_note": np.asarray("JPEG images")}
        for split in ("train", "test"):
            of_split = archive.splits[split]
            arrays[f"x_{split}"] = np.stack(list(of_split.images()))
            arrays[f"y_{split}"] = of_split.labels["label"].astype(np.int32)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part.npz")
        np.savez(part, **arrays)
        os.replace(part, place)
    return f"npz:{place}"


EPOCH = 50_000 // 64


def _supervised(name: str, arms: dict[str, dict[str, float]], **changes: Any) -> Run:
    """One supervised run of all arms and seeds, side by side."""

    def run(folder: Path, data: dict[str, Path]) -> None:
        from train.run.lanes import lanes_of
        from train.run.settings import PAPER
        from train.supervised import Supervised, fit, load_data

        values: dict[str, Any] = {
            **PAPER,
            "dataset": cifar10(data),
            "steps": 60 * EPOCH,
            "eval_every": 6 * EPOCH,
        }
        values |= {"seeds": 5, "precision": "bfloat16", "eval_train": False, **changes}
        # Batch statistics of 60 epochs settle with the usual momentum.
        values |= {"batch_norm_momentum": 0.99, "out": folder / "runs" / name, "resume": True}
        settings = Supervised(**values)
        lanes = [
            dataclasses.replace(lane, knobs=lane.knobs._replace(**knobs), tags={"arm": arm})
            for arm, knobs in arms.items()
            for lane in lanes_of(settings)
        ]
        fit(settings, load_data(settings), lanes, quiet=True)

    return run


def _few_labels(name: str, seed: int, **changes: Any) -> Run:
    """One FreeMatch run on 40 labels, as published but for its length."""

    def run(folder: Path, data: dict[str, Path]) -> None:
        from train.run.settings import PAPER
        from train.semisupervised import fit, open_pool
        from train.ssl.settings import Semisupervised

        values: dict[str, Any] = {
            **PAPER,
            "dataset": cifar10(data),
            "steps": 130_000,
            "eval_every": 10_000,
        }
        values |= {"first_seed": seed, "precision": "bfloat16", "eval_train": False, **changes}
        settings = Semisupervised(**values, out=folder / "runs" / name, resume=True)
        fit(settings, open_pool(settings), quiet=True)

    return run


def _command(name: str, command: str, preset: str = "paper", **changes: Any) -> Run:
    """An experiment with its published settings, but for what is named."""

    def run(folder: Path, data: dict[str, Path]) -> None:
        import importlib

        module = importlib.import_module(f"train.{command}")
        values: dict[str, Any] = {"out": folder / "runs" / name, "resume": True, **changes}
        if command != "grokking":
            values["dataset"] = cifar10(data)
        module.run(dataclasses.replace(module.PRESETS[preset], **values), quiet=True).show()

    return run


def _of_few_labels() -> list[Piece]:
    arms: dict[str, dict[str, Any]] = {"plain": {}, "mi": MI, "ed": ED}
    debiased: dict[str, Any] = {"order": 2, "debiased": True}
    arms |= {"mi-debiased": MI | debiased, "ed-debiased": ED | debiased}
    return [
        Piece(
            f"freematch-{arm}-{seed}",
            25,
            f"FreeMatch, 40 labels, 130,000 steps, {arm}, seed {seed}",
            _few_labels(f"freematch-{arm}-{seed}", seed, **changes),
            IMAGES,
        )
        for seed in range(3)
        for arm, changes in arms.items()
    ]


SHORT: dict[str, Any] = {"steps": 40 * EPOCH, "precision": "bfloat16", "batch_norm_momentum": 0.99}
RATES = (3e-2, 3e-3, 3e-4)

PIECES: Sequence[Piece] = (
    Piece(
        "terms-bfloat16",
        4,
        "the terms in a FreeMatch step, bfloat16",
        _benchmark("terms-bfloat16", *_group("semisupervised", "--precision", "bfloat16")),
    ),
    Piece(
        "terms-float32",
        4,
        "the terms in a FreeMatch step, float32",
        _benchmark("terms-float32", *_group("semisupervised")),
    ),
    Piece(
        "supervised",
        22,
        "60 epochs of CIFAR-10 (JPEG): cross-entropy, + MI, + ED, five seeds each",
        _supervised("supervised", {"cross-entropy": {}, "+ MI": MI, "+ ED": ED}),
        IMAGES,
    ),
    Piece(
        "supervised-debiased",
        16,
        "the same with debiased terms: + MI, + ED",
        _supervised("supervised-debiased", {"+ MI": MI, "+ ED": ED}, order=2, debiased=True),
        IMAGES,
    ),
    Piece(
        "grokking",
        22,
        "modulus 113 as published: ten seeds and controls, past the transition",
        _command("grokking", "grokking", seeds=10, steps=16_000, interventions=False),
    ),
    Piece(
        "precision",
        10,
        "bfloat16 beside float32: 20 epochs, three seeds (this is the one in float32)",
        _supervised(
            "precision", {"cross-entropy": {}}, seeds=3, steps=20 * EPOCH, precision="float32"
        ),
        IMAGES,
    ),
    Piece(
        "precision-bfloat16",
        6,
        "bfloat16 beside float32: 20 epochs, three seeds (this is the one in bfloat16)",
        _supervised("precision-bfloat16", {"cross-entropy": {}}, seeds=3, steps=20 * EPOCH),
        IMAGES,
    ),
    *_of_few_labels(),
    Piece(
        "dynamics",
        22,
        "dynamics with random labels, 40 epochs",
        _command("dynamics", "dynamics", **SHORT, eval_every=5 * EPOCH, seeds=2),
        IMAGES,
    ),
    *(
        Piece(
            f"connectivity-{rate:g}",
            22,
            f"connectivity, learning rate {rate:g}, 40 epochs",
            _command(
                f"connectivity-{rate:g}",
                "connectivity",
                **SHORT,
                eval_every=20 * EPOCH,
                learning_rates=(rate,),
                seeds=3,
            ),
            IMAGES,
        )
        for rate in RATES
    ),
    Piece(
        "pruning",
        22,
        "pruning, 40 epochs, and 20 of fine-tuning",
        _command(
            "pruning",
            "pruning",
            **SHORT,
            eval_every=20 * EPOCH,
            finetune_steps=20 * EPOCH,
            sparsities=(0.0, 0.5, 0.9),
            seeds=2,
        ),
        IMAGES,
    ),
    Piece(
        "errors",
        3,
        "errors of the two methods for an entropy",
        _benchmark("errors", *_group("errors", "--sides", "64", "256", "512")),
    ),
    Piece(
        "loader",
        5,
        "FreeMatch steps beside PyTorch's loader with 16 workers",
        _benchmark("loader", *_group("loader", "--precision", "bfloat16", "--workers", "16")),
    ),
    Piece(
        "methods",
        4,
        "decomposition beside products at sides 1,024 and 2,048",
        _benchmark("methods", *_group("methods", "--sides", "1024", "2048")),
    ),
    Piece(
        "lanes",
        6,
        "memory and time of a step of 1, 8 and 32 networks",
        _benchmark("lanes", "-m", "benchmarks.lanes"),
    ),
    Piece(
        "rows",
        10,
        "batches, layers, one entropy, supervised steps, streamed input, orders",
        _benchmark("rows", *_group("batch", "layers", "one", "supervised", "input", "orders")),
    ),
    Piece(
        "whole-set",
        4,
        "a whole set of (1,281,167, 2048, 1000)",
        _benchmark("whole-set", "benchmarks/dataset.py", "--rows", "1281167,2048,1000"),
    ),
)


def do(pieces: Sequence[Piece], arguments: Sequence[str]) -> None:
    """Does the piece that is named, with its compiled programs in the folder."""
    import jax

    from train.run.command import enable_cache, exit_on_user_error

    name, folder, *files = arguments
    data = {key: Path(path) for key, _, path in (file.partition("=") for file in files)}
    piece = next(piece for piece in pieces if piece.name == name)
    kind = jax.devices()[0].device_kind.replace(" ", "-")
    cache = Path(folder, "cache", f"{kind}-jax-{jax.__version__}").resolve()
    # In the environment, for a benchmark that takes the place of this process.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    with exit_on_user_error(resumable=True):
        enable_cache()
        piece.run(Path(folder), data)


if __name__ == "__main__":
    do(PIECES, sys.argv[1:])
