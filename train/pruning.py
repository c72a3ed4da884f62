"""Magnitude pruning and fine-tuning with the masks held: `python -m train.pruning`.

Presets: `small` (the default: a small convolutional network on CIFAR-10, about 15 minutes on 2
cores), `smoke` (digits, seconds), `paper` (WideResNet-28-2 on CIFAR-10; needs an accelerator).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import mirjax
from train.data.types import ImageData, about, source_of
from train.engine.state import Network, TrainState
from train.engine.step import masked
from train.evaluation.closed_forms import closed_forms
from train.evaluation.evaluator import Extractor, debiased_metrics
from train.reporting.plots import Line, Panel, draw, levels
from train.reporting.records import (
    WITHOUT_DIRECTION,
    Record,
    cell,
    curves,
    final_records,
    only_counts_above_zero,
    select,
    without_direction,
)
from train.reporting.summary import Claim, Summary, table_of
from train.run.command import run_command
from train.run.files import write_jsonl
from train.run.folder import claim as claim_folder
from train.run.lanes import Lane, lanes_of
from train.run.loop import Result
from train.run.settings import PAPER, SMALL
from train.supervised import Supervised, fit, load_data


@dataclasses.dataclass(frozen=True)
class Pruning(Supervised):
    """Trains, prunes and fine-tunes a network, and measures accuracy, MIR and HDR over sparsity."""

    sparsities: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    """Shares of the weights of the whole network to drop. The smallest weights are dropped and, as
    a control, random ones."""
    finetune_steps: int = 500
    """Number of fine-tuning steps after pruning, with the dropped weights held at zero."""
    finetune_learning_rate: float = 0.01
    """Peak learning rate of fine-tuning, decayed to 0 by a cosine."""

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
    """Trains, prunes and fine-tunes, and compares the features before and after."""
    data = load_data(settings)
    folder = claim_folder(settings, about(data))
    # Two runs in folders below, so that either resumes from its last checkpoint.
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
    # The pruned networks before fine-tuning, made once more: `fit` returns only the last states.
    start = prune(tuned.states)
    records = pruning_records(settings, data, dense, tuned, start)
    write_jsonl(folder / "pruning.jsonl", records)
    dense_last = final_records(dense.records)
    return summarize(settings, source_of(data), data.num_classes, records, dense_last).write()


def pruned_lanes(settings: Pruning) -> list[Lane]:
    """One lane for each sparsity, method and seed."""
    lanes = []
    for lane in lanes_of(settings):
        knobs = lane.knobs._replace(learning_rate=settings.finetune_learning_rate)
        for sparsity in settings.sparsities:
            # Where nothing is dropped, both methods give the same network.
            for method in ("magnitude", "random") if sparsity else ("magnitude",):
                tags = {"sparsity": sparsity, "method": method}
                # Copy 1, so that order and augmentation of the data are not repeated from training.
                lanes.append(dataclasses.replace(lane, knobs=knobs, tags=tags, copy=1))
    return lanes


def pruned(states: TrainState, dense: TrainState, lanes: Sequence[Lane]) -> TrainState:
    """The states with masks, and with the weights that training gave the lane's seed, masked."""
    dense_rows = {int(seed): row for row, seed in enumerate(dense.seed)}
    rows = np.asarray([dense_rows[lane.seed] for lane in lanes])
    params, rest = (jax.tree.map(lambda x: x[rows], part) for part in (dense.params, dense.rest))
    masks = [
        sparse_masks(
            jax.tree.map(lambda x, i=i: np.asarray(x[i]), params),
            float(lane.tags["sparsity"]),
            # Written out, since the type of a tag is any text.
            "random" if lane.tags["method"] == "random" else "magnitude",
            seed=lane.seed,
        )
        for i, lane in enumerate(lanes)
    ]
    masks = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *masks)
    return states._replace(params=masked(params, masks), rest=rest, masks=masks)


PruningMethod = Literal["magnitude", "random"]


def sparse_masks(
    params: Any, sparsity: float, method: PruningMethod = "magnitude", *, seed: int = 0
) -> Any:
    """Masks that drop a share of all weights of a network, counted over all its kernels together.

    Args:
        params: a pytree of arrays. Kernels (two axes or more) are pruned, that of the head
            included; biases and batch norm stay whole.
        sparsity: the share of weights to drop, in [0, 1]; `round(sparsity · weights)` are dropped.
        method: `"magnitude"` drops the smallest weights (of equal ones the first), `"random"` drops
            weights chosen at random.
        seed: the seed of the random choice.

    Returns:
        Booleans with the structure of `params`, False where a weight is dropped.

    Raises:
        ValueError: the sparsity is not in [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}.")
    leaves, structure = jax.tree.flatten(params)
    # One ranking over all kernels: a layer of small weights loses more of them than others.
    sizes = [np.size(leaf) if np.ndim(leaf) > 1 else 0 for leaf in leaves]
    if method == "random":
        scores = np.random.default_rng(seed).random(sum(sizes))
    else:
        scores = np.abs(np.concatenate([np.ravel(x) for x in leaves if np.ndim(x) > 1]))
    keep = np.ones(len(scores), bool)
    keep[np.argsort(scores, kind="stable")[: round(sparsity * len(scores))]] = False
    # Back from the flat ranking to the shapes of the kernels.
    parts = iter(np.split(keep, np.cumsum([size for size in sizes if size])[:-1]))
    masks = [
        next(parts).reshape(np.shape(x)) if np.ndim(x) > 1 else np.ones(np.shape(x), bool)
        for x in leaves
    ]
    return jax.tree.unflatten(structure, masks)


def sparsity_of(params: Any) -> float:
    """The share of zeros among the weights of all kernels."""
    kernels = [np.asarray(x) for x in jax.tree.leaves(params) if np.ndim(x) > 1]
    return float(sum(np.sum(x == 0) for x in kernels) / sum(x.size for x in kernels))


def pruning_records(
    settings: Pruning, data: ImageData, dense: Result, tuned: Result, start: TrainState
) -> list[Record]:
    """Metrics of every pruned network before (step 0) and after fine-tuning, and those of its
    features compared with the features of the dense network.
    """
    extract = Extractor(Network.of(settings, data), data.test, batch_size=settings.eval_batch)

    def features_of(states: TrainState, place: int) -> np.ndarray:
        return extract(jax.tree.map(lambda x: x[place], states))[0]

    logged = {(r["seed"], r["sparsity"], r["method"], r["step"]): r for r in tuned.records}
    dense_features, records = {}, []
    for place, lane in enumerate(tuned.lanes):
        # All lanes of a seed are compared with the same features, which are computed once.
        if lane.seed not in dense_features:
            row = [x.seed for x in dense.lanes].index(lane.seed)
            dense_features[lane.seed] = features_of(dense.states, row)
        for stage, step, states in (
            ("pruned", 0, start),
            ("fine-tuned", settings.finetune_steps, tuned.states),
        ):
            features = features_of(states, place)
            tags = lane.tags["sparsity"], lane.tags["method"]
            record = dict(logged[lane.seed, *tags, step]) | {"stage": stage}
            # Counted in the weights themselves: evidence that the masks held during fine-tuning.
            record["zeros"] = sparsity_of(jax.tree.map(lambda x, i=place: x[i], states.params))
            compared = _compared(
                dense_features[lane.seed], features, settings.metric_batch, settings.exact_side
            )
            records.append({**record, **compared})
    return records


def _compared(
    before: np.ndarray, after: np.ndarray, batch: int, exact_side: int | None = None
) -> Record:
    """MIR and HDR between two sets of features, of the whole set and averaged over batches."""
    whole = mirjax.dataset_feature_interplay(before, after, exact_side=exact_side)
    batch = min(batch, len(before))
    count = len(before) // batch
    # The samples that fill no batch are left out of the mean over batches.
    parts = (jnp.asarray(x[: count * batch].reshape(count, batch, -1)) for x in (before, after))
    of_batches = _feature_interplay(*parts)
    debiased = _debiased_interplay(before, after)
    values = {
        "features_mir": float(whole.mir),
        **{f"features_{k}": float(v) for k, v in debiased_metrics(debiased).items()},
        "features_hdr": float(whole.hdr),
        "features_mir_standard_error": float(whole.standard_error.mir),
        "features_method": whole.method,
        "features_mir_batch": float(jnp.mean(of_batches.mir)),
        "features_hdr_batch": float(jnp.mean(of_batches.hdr)),
        f"features_{WITHOUT_DIRECTION}": len(before) - float(whole.weight),
    }
    return only_counts_above_zero(values)


_feature_interplay = jax.jit(mirjax.feature_interplay)
_debiased_interplay = jax.jit(mirjax.debiased_feature_interplay)


# Columns of the table and panels of the picture, and the metrics that they show.
COLUMNS = {
    "accuracy": "test_accuracy",
    "MIR head": "test_mir",
    "MIR head, b": "test_mir_batch",
    "MIR head, d": "test_mir_debiased",
    "HDR head": "test_hdr",
    "MIR dense": "features_mir",
    "MIR dense, b": "features_mir_batch",
    "MIR dense, d": "features_mir_debiased",
    "HDR dense": "features_hdr",
    "HDR dense, b": "features_hdr_batch",
    "HDR dense, d": "features_hdr_debiased",
}
PANELS = {
    "accuracy": "test_accuracy",
    "MIR, features against head": "test_mir",
    "HDR, features against head": "test_hdr",
    "cross-entropy": "test_loss",
    "MIR, features before and after": "features_mir",
    "HDR, features before and after": "features_hdr",
}
STAGES = ("pruned", "fine-tuned")


def summarize(
    settings: Pruning,
    source: str,
    num_classes: int,
    records: Sequence[Record],
    dense: Sequence[Record],
) -> Summary:
    """Draws the picture, and sums up the records of pruning and of the dense network in a table and
    claims.
    """
    n = int(records[0]["test_n"])
    title = (
        f"Pruning: {source}, {settings.model}, {settings.steps:,} steps, then "
        f"{settings.finetune_steps:,}, seeds: {settings.seeds}"
    )
    undirected = without_direction([*records, *dense], "test_", "features_")
    note = (
        f"test set, n = {n:,}{undirected}; batches of {settings.metric_batch}; "
        "mean ± standard deviation"
    )
    forms = closed_forms(num_classes)
    panels = []
    for name, metric in PANELS.items():
        lines = []
        for number, method in enumerate(("magnitude", "random")):
            for stage in STAGES:
                rows = select(records, stage=stage, method=method)
                # The network of which nothing is dropped belongs to both methods.
                if method == "random":
                    rows += select(records, stage=stage, sparsity=0.0)
                style = "--" if stage == "pruned" else "-"
                curve = curves(rows, metric, by="sparsity")
                lines.append(
                    Line(f"{method}, {stage}", *curve, colour=f"C{number}", style=style, marker="o")
                )
        # The closed forms are of features against the head, not of features against features.
        marks = levels(forms, [metric] if metric.startswith("test_") else [])
        panels.append(Panel(name, "sparsity", lines, marks))
    draw(panels, settings.out / "pruning.png", title=f"{title}\n{note}")
    by_name = {"dense": list(dense)}
    for method in ("magnitude", "random"):
        for sparsity in settings.sparsities:
            for stage in STAGES:
                rows = select(records, sparsity=sparsity, method=method, stage=stage)
                if rows:
                    by_name[f"{sparsity:g}, {method}, {stage}"] = rows
    title_of_table = (
        f"Over sparsity: {note}. Head: features against head rows; dense: features against those "
        "of the network before pruning; b: mean over batches; d: debiased, order 2"
    )
    table = table_of(by_name, COLUMNS, title=title_of_table, first="network")
    return Summary(
        settings.out,
        title,
        (table,),
        {"pruning.png": "accuracy, MIR and HDR over sparsity, by magnitude and at random"},
        tuple(claims(settings, records)),
    )


def _in_three_ways(records: Sequence[Record]) -> str:
    """MIR between the features before and after: of batches, of the whole set, and debiased."""
    parts = ("mir_batch", "in batches"), ("mir", "of the whole set"), ("mir_debiased", "debiased")
    return ", ".join(f"{cell(records, f'features_{name}')} {where}" for name, where in parts)


def claims(settings: Pruning, records: Sequence[Record]) -> list[Claim]:
    """The paper's number at 90 % sparsity, and whether random masks (the control) reach it."""
    unchanged = select(records, sparsity=0.0, stage="pruned")
    # The sparsity nearest to the published one; the claim says so if it is another.
    share = min(settings.sparsities, key=lambda s: abs(s - 0.9))
    magnitude, random = (
        select(records, sparsity=share, method=method, stage="fine-tuned")
        for method in ("magnitude", "random")
    )
    # Only a sparsity of 0, of which there are no random masks, was asked for.
    if not random:
        return []
    kept = [r["features_mir_batch"] for r in magnitude]
    mean = sum(kept) / len(kept)
    verdict = "agrees" if abs(mean - 0.5) <= 0.1 else "disagrees"
    if abs(share - 0.9) > 0.01:
        verdict = "not measured at 90 %"
    pairs = list(zip(magnitude, random, strict=True))
    higher = sum(a["features_mir"] > b["features_mir"] for a, b in pairs)
    control = "yes" if higher == len(pairs) else "no" if higher == 0 else "not decided"
    comparison = []
    if unchanged:
        comparison.append(
            Claim(
                "for comparison: MIR of the features with themselves, nothing pruned",
                "not reported",
                _in_three_ways(unchanged),
                "the value to hold the next row against: MIR of two equal kernels is not 1",
            )
        )
    return [
        *comparison,
        Claim(
            "MIR between the features before and after stays high at 90 % sparsity",
            "about 0.5",
            f"sparsity {share:g}: {_in_three_ways(magnitude)}",
            f"{verdict}: in batches, within 0.1 of 0.5 is agreement",
        ),
        Claim(
            "it is magnitude pruning that keeps it (control: random masks)",
            "not reported",
            f"random masks: {_in_three_ways(random)}",
            f"{control}: magnitude is above random (whole set) in {higher} of {len(pairs)} seeds",
        ),
    ]


if __name__ == "__main__":
    run_command(PRESETS, run)
