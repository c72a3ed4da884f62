"""Tables and pictures over sparsity."""

from collections.abc import Sequence
from typing import Any

from train.evaluate import closed_forms
from train.plots import Line, Panel, draw, levels
from train.records import Record, cell, curves, select
from train.summary import Claim, Summary
from train.tables import table_of

COLUMNS = {
    "accuracy": "test_accuracy",
    "MIR head": "test_mir",
    "MIR head, b": "test_mir_batch",
    "HDR head": "test_hdr",
    "MIR dense": "features_mir",
    "MIR dense, b": "features_mir_batch",
    "HDR dense": "features_hdr",
    "HDR dense, b": "features_hdr_batch",
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
    settings: Any,
    source: str,
    num_classes: int,
    records: Sequence[Record],
    dense: Sequence[Record],
) -> Summary:
    """The summary of pruning records beside the dense network's, and its picture."""
    n = int(records[0]["test_n"])
    title = (
        f"Pruning: {source}, {settings.model}, {settings.steps:,} steps, then "
        f"{settings.finetune_steps:,}, seeds: {settings.seeds}"
    )
    note = f"test set, n = {n:,}; batches of {settings.metric_batch}; mean ± standard deviation"
    forms = closed_forms(num_classes)
    panels = []
    for name, metric in PANELS.items():
        lines = []
        for number, method in enumerate(("magnitude", "random")):
            for stage in STAGES:
                own = select(records, stage=stage, method=method)
                if method == "random":  # nothing is dropped at 0, however it is chosen
                    own += select(records, stage=stage, sparsity=0.0)
                style = "--" if stage == "pruned" else "-"
                found = curves(own, metric, by="sparsity")
                lines.append(
                    Line(f"{method}, {stage}", *found, colour=f"C{number}", style=style, marker="o")
                )
        marks = levels(forms, [metric] if metric.startswith("test_") else [])
        panels.append(Panel(name, "sparsity", lines, marks))
    draw(panels, settings.out / "pruning.png", title=f"{title}\n{note}")
    groups = {"dense": list(dense)}
    for method in ("magnitude", "random"):
        for sparsity in settings.sparsities:
            for stage in STAGES:
                own = select(records, sparsity=sparsity, method=method, stage=stage)
                if own:
                    groups[f"{sparsity:g}, {method}, {stage}"] = own
    title_of_table = (
        f"Over sparsity: {note}. Head: features against head rows; dense: features against those of the "
        "network before pruning; b: mean over batches"
    )
    table = table_of(groups, COLUMNS, title=title_of_table, first="network")
    return Summary(
        settings.out,
        title,
        (table,),
        {"pruning.png": "accuracy, MIR and HDR over sparsity, by magnitude and at random"},
        tuple(claims(settings, records)),
    )


def claims(settings: Any, records: Sequence[Record]) -> list[Claim]:
    """The paper's number at 90 %, and what the control says of it."""
    unchanged = select(records, sparsity=0.0, stage="pruned")
    share = min(settings.sparsities, key=lambda s: abs(s - 0.9))
    magnitude, random = (
        select(records, sparsity=share, method=method, stage="fine-tuned")
        for method in ("magnitude", "random")
    )
    if not random:
        return []
    kept = [r["features_mir_batch"] for r in magnitude]
    mean = sum(kept) / len(kept)
    verdict = "agrees" if abs(mean - 0.5) <= 0.1 else "disagrees"
    if abs(share - 0.9) > 0.01:
        verdict = "not measured at 90 %"
    pairs = list(zip(magnitude, random, strict=True))
    higher = sum(a["features_mir"] > b["features_mir"] for a, b in pairs)
    found = []
    if unchanged:
        found.append(
            Claim(
                "for comparison: MIR of the features with themselves, nothing pruned",
                "not reported",
                f"{cell(unchanged, 'features_mir_batch')} in batches, {cell(unchanged, 'features_mir')} of the "
                "whole set",
                "the value to hold the next row against: MIR of two equal kernels is not 1",
            )
        )
    return [
        *found,
        Claim(
            "MIR between the features before and after stays high at 90 % sparsity",
            "about 0.5",
            f"sparsity {share:g}: {cell(magnitude, 'features_mir_batch')} in batches, "
            f"{cell(magnitude, 'features_mir')} of the whole set",
            f"{verdict}: in batches, within 0.1 of 0.5 is agreement",
        ),
        Claim(
            "it is magnitude pruning that keeps it (control: random masks)",
            "not reported",
            f"random masks: {cell(random, 'features_mir_batch')} in batches, "
            f"{cell(random, 'features_mir')} of the whole set",
            f"{'yes' if higher == len(pairs) else 'no' if higher == 0 else 'not decided'}: magnitude is above "
            f"random (whole set) in {higher} of {len(pairs)} seeds",
        ),
    ]
