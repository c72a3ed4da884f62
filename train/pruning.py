"""Magnitude pruning and fine-tuning with the masks held: `python -m train.pruning`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 15 minutes on 2 cores),
`smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mirjax
from train.classifier import about, source_of
from train.experiment import load_data, run_command
from train.folders import claim as claim_folder
from train.folders import write_text
from train.images import ImageData
from train.lanes import Lane, lanes_of
from train.loop import Result
from train.masks import sparse_masks, sparsity_of
from train.presets import PAPER, SMALL
from train.pruning_summary import summarize
from train.records import Record, final_records
from train.runs import Extractor
from train.state import Network, TrainState
from train.step import masked
from train.summary import Summary
from train.supervised import Supervised, fit


@dataclasses.dataclass(frozen=True)
class Pruning(Supervised):
    """Global unstructured pruning: accuracy, MIR and HDR over sparsity, before and after fine-tuning."""

    sparsities: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    """Shares of all weights that are dropped, each by magnitude and, as a control, at random."""
    finetune_steps: int = 500
    """Steps after pruning, with the dropped weights held at zero."""
    finetune_learning_rate: float = 0.01
    """Peak learning rate of these steps, decayed to 0 by a cosine."""

    def __post_init__(self):
        super().__post_init__()
        if self.finetune_steps < 1 or self.finetune_learning_rate <= 0:
            raise ValueError("finetune_steps and finetune_learning_rate must be positive.")
        self.distinct("sparsities")
        if not all(0 <= share < 1 for share in self.sparsities):
            raise ValueError(f"sparsities must be in [0, 1), got {self.sparsities}.")


PRESETS = {
    "small": Pruning(
        **SMALL,
        steps=2000,
        eval_every=2000,
        seeds=3,
        out=Path("runs/pruning"),
    ),
    "smoke": Pruning(
        steps=20,
        eval_every=20,
        finetune_steps=10,
        sparsities=(0.0, 0.9),
        out=Path("runs/pruning-smoke"),
    ),
    "paper": Pruning(
        **PAPER,
        eval_every=2**16,
        finetune_steps=2**16,
        seeds=3,
        out=Path("runs/pruning-paper"),
    ),
}


def run(settings: Pruning, *, quiet: bool = False) -> Summary:
    """Trains, prunes, fine-tunes, and compares features before and after."""
    data = load_data(settings)
    folder = claim_folder(settings, about(data))
    dense = fit(dataclasses.replace(settings, out=folder / "dense"), data, quiet=quiet)
    lanes = pruned_lanes(settings)
    finetuning = dataclasses.replace(
        settings,
        steps=settings.finetune_steps,
        eval_every=min(settings.eval_every, settings.finetune_steps),
        checkpoint_every=None,
        learning_rate=settings.finetune_learning_rate,
        out=folder / "pruned",
    )

    def prune(states: TrainState) -> TrainState:
        return pruned(states, dense.states, lanes)

    tuned = fit(finetuning, data, lanes, start_from=prune, quiet=quiet)
    start = prune(tuned.states)
    records = pruning_records(settings, data, dense, tuned, start)
    write_text(folder / "pruning.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    dense_last = final_records(dense.records)
    return summarize(settings, source_of(data), data.num_classes, records, dense_last).write()


def pruned_lanes(settings: Pruning) -> list[Lane]:
    """A lane for each sparsity, method and seed. Its order and augmentation are not those of training."""
    found = []
    for lane in lanes_of(settings):
        knobs = lane.knobs._replace(learning_rate=settings.finetune_learning_rate)
        for sparsity in settings.sparsities:
            for method in ("magnitude", "random") if sparsity else ("magnitude",):
                tags = {"sparsity": sparsity, "method": method}
                found.append(dataclasses.replace(lane, knobs=knobs, tags=tags, copy=1))
    return found


def pruned(states: TrainState, dense: TrainState, lanes: Sequence[Lane]) -> TrainState:
    """The states with the weights of the trained network of their seed, masked, and the masks."""
    rows = {int(seed): row for row, seed in enumerate(dense.seed)}
    places = np.asarray([rows[lane.seed] for lane in lanes])
    params, rest = (jax.tree.map(lambda x: x[places], part) for part in (dense.params, dense.rest))
    masks = [
        sparse_masks(
            jax.tree.map(lambda x, i=i: np.asarray(x[i]), params),
            float(lane.tags["sparsity"]),
            "random" if lane.tags["method"] == "random" else "magnitude",
            seed=lane.seed,
        )
        for i, lane in enumerate(lanes)
    ]
    masks = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *masks)
    return states._replace(params=masked(params, masks), rest=rest, masks=masks)


def pruning_records(
    settings: Pruning, data: ImageData, dense: Result, tuned: Result, start: TrainState
) -> list[Record]:
    """What each pruned network is before (step 0) and after fine-tuning, and its features beside the
    dense network's.
    """
    extract = Extractor(Network.of(settings, data), data.test, batch_size=settings.eval_batch)

    def features_of(states: TrainState, place: int) -> np.ndarray:
        return extract(jax.tree.map(lambda x: x[place], states))[0]

    logged = {(r["seed"], r["sparsity"], r["method"], r["step"]): r for r in tuned.records}
    whole, found = {}, []
    for place, lane in enumerate(tuned.lanes):
        if lane.seed not in whole:
            row = [x.seed for x in dense.lanes].index(lane.seed)
            whole[lane.seed] = features_of(dense.states, row)
        for stage, step, states in (
            ("pruned", 0, start),
            ("fine-tuned", settings.finetune_steps, tuned.states),
        ):
            features = features_of(states, place)
            tags = lane.tags["sparsity"], lane.tags["method"]
            record = dict(logged[lane.seed, *tags, step]) | {"stage": stage}
            record["zeros"] = sparsity_of(jax.tree.map(lambda x, i=place: x[i], states.params))
            found.append({**record, **_beside(whole[lane.seed], features, settings.metric_batch)})
    return found


def _beside(before: np.ndarray, after: np.ndarray, batch: int) -> Record:
    """MIR and HDR between two representations, of the whole set and the mean over batches."""
    whole = mirjax.dataset_feature_interplay(before, after)
    batch = min(batch, len(before))
    count = len(before) // batch
    parts = (jnp.asarray(x[: count * batch].reshape(count, batch, -1)) for x in (before, after))
    each = _feature_interplay(*parts)
    return {
        "features_mir": float(whole.mir),
        "features_hdr": float(whole.hdr),
        "features_mir_standard_error": float(whole.standard_error.mir),
        "features_method": whole.method,
        "features_mir_batch": float(jnp.mean(each.mir)),
        "features_hdr_batch": float(jnp.mean(each.hdr)),
    }


_feature_interplay = jax.jit(mirjax.feature_interplay)


if __name__ == "__main__":
    run_command(PRESETS, run)
