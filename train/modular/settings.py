"""Settings of grokking runs."""

import dataclasses
from typing import Literal

import numpy as np

from train.modular.task import modular_task
from train.run.settings import RunSettings

# Controls and interventions, each of which differs in one thing from the main runs.
CONTROLS = ("random-labels", "no-decay", "large-fraction")
INTERVENTIONS = ("+MI", "+ED")


@dataclasses.dataclass(frozen=True)
class Grokking(RunSettings):
    """Trains a transformer on a part of a table modulo p, and measures when it generalises."""

    steps_per_call: int | None = None
    """Steps in one call of the compiled function; if not given, 100. It changes results by rounding
    at most."""
    lanes_per_call: int | None = None
    """Networks that are trained together under one `vmap`; if not given, all whose training sets
    have the same size. The others follow through the same compiled step."""
    modulus: int = 23
    """The modulus p. The table of the operation has p² pairs of numbers."""
    operation: Literal["add", "subtract", "multiply", "squares"] = "add"
    """The operation to learn, modulo p; `squares` is a² + b²."""
    fractions: tuple[float, ...] = (0.6,)
    """Shares of the pairs to train on. Every share is trained with every weight decay and seed."""
    weight_decays: tuple[float, ...] = (1.0,)
    """Weight decays of AdamW, which act on all parameters."""
    width: int = 48
    """Width of the residual stream. The MLP is four times as wide."""
    heads: int = 4
    """Number of attention heads."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after ten steps of warm-up. The betas are 0.9 and 0.98."""
    controls: bool = True
    """Whether to train three controls too: with random labels, without weight decay, and on
    `large_fraction` of the pairs."""
    large_fraction: float = 0.85
    """Share of the pairs that the last of the controls is trained on, with which it generalises at
    once."""
    interventions: bool = True
    """Whether to train two interventions too: with the MI term and with the ED term, which are in
    the loss during `information_steps` only."""
    kinds: tuple[Literal["random-labels", "no-decay", "large-fraction", "+MI", "+ED"], ...] = ()
    """Which controls and interventions to train, of those that `controls` and `interventions` ask
    for; if none is named, all of these."""
    kind_seeds: int | None = None
    """Number of seeds of each control and intervention, the first ones; if not given, all seeds."""
    mi_weight: float = 0.1
    """Weight of the MI term, the mutual information of features and unembedding rows, in nats
    (maximised)."""
    ed_weight: float = 0.1
    """Weight of the ED term, the difference of the entropies of features and unembedding rows, in
    nats (minimised)."""
    information_steps: tuple[int, int] = (200, 2000)
    """The first step with the MI or ED term, and the first step without it again."""
    information_batch: int = 64
    """Number of pairs on which the MI or ED term is computed, drawn anew for each step."""
    log_events: int = 20
    """Number of evaluations on a logarithmic scale of steps, besides those of `eval_every`."""
    exact_side: int | None = None
    """Largest side of a matrix that is decomposed for MIR and HDR of all pairs of a part of the
    table; larger ones are estimated. If not given, 4096, but 2048 on a TPU."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least_one("modulus", "width", "heads", "information_batch", "log_events")
        self.at_least_one("exact_side")
        self.at_least_one("kind_seeds")
        if self.kind_seeds is not None and self.kind_seeds > self.seeds:
            raise ValueError(
                f"kind_seeds must be at most seeds = {self.seeds}, got {self.kind_seeds}."
            )
        unknown = sorted(set(self.kinds) - {*CONTROLS, *INTERVENTIONS})
        if unknown:
            raise ValueError(
                f"kinds must be of {', '.join((*CONTROLS, *INTERVENTIONS))}, got {unknown[0]}."
            )
        for flag, kinds in (("controls", CONTROLS), ("interventions", INTERVENTIONS)):
            named = [kind for kind in self.kinds if kind in kinds]
            if named and not getattr(self, flag):
                raise ValueError(f"kinds names {named[0]}, which --no-{flag} leaves out.")
        # Made only to raise its errors, of a share that leaves no pair to test on for example.
        for fraction in (*self.fractions, self.large_fraction):
            modular_task(self.modulus, fraction, self.operation)
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}.")
        start, stop = self.information_steps
        informed = any(map(self.has, INTERVENTIONS))
        if not 0 <= start < stop or (informed and start >= self.steps):
            raise ValueError(
                f"information_steps must be FIRST < LAST with FIRST below steps = {self.steps}, "
                f"got {start} and {stop} (or give --no-interventions)."
            )
        self.distinct("fractions")
        self.distinct("weight_decays")
        if min(self.weight_decays) < 0:
            raise ValueError(f"weight_decays must not be negative, got {self.weight_decays}.")

    def has(self, kind: str) -> bool:
        """Whether a control or intervention is to be trained."""
        asked = self.controls if kind in CONTROLS else self.interventions
        return asked and (not self.kinds or kind in self.kinds)

    def events(self) -> list[int]:
        """The steps of `eval_every`, and `log_events` more on a logarithmic scale."""
        logarithmic = np.geomspace(1, self.steps, self.log_events).round().astype(int)
        return sorted({*super().events(), *logarithmic.tolist()})
