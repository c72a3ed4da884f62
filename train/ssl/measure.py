"""What is measured of semi-supervised training: of the steps, and of the averaged weights on whole sets."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.engine.state import Network, TrainState
from train.engine.trainer import Groups
from train.evaluation.evaluator import Evaluator
from train.run.settings import Settings
from train.ssl.algorithms import Algorithm
from train.ssl.pool import Pool


class JudgedGroups(Groups):
    """Tells the accuracy of pseudo-labels too."""

    def advance(self, to: int) -> list[dict[str, float]]:
        """As the loop asks, with the share of right ones among those that count and are known."""
        found = super().advance(to)
        for values in found:
            correct, known = values.pop("step_correct"), values.pop("step_known")
            if known > 0:
                values["step_pseudo_accuracy"] = correct / known
        return found


class Measure:
    """Metrics of the averaged weights on the test, labelled and unlabelled sets, and the thresholds."""

    def __init__(
        self,
        network: Network,
        settings: Settings,
        pool: Pool,
        method: Algorithm,
        groups: Groups,
        mesh: Mesh,
    ):
        data, lanes = pool.data, max(map(len, groups.rows))
        self._classes, self._method = data.num_classes, method
        self._test = Evaluator(network, data.test, self._classes, settings, mesh, networks=lanes)
        splits = {"labelled_": {seed: pool.labelled_split(seed) for seed in pool.labelled}}
        if settings.eval_train and any(pool.hidden(seed).any() for seed in pool.labelled):
            splits["unlabelled_"] = {seed: pool.hidden_split(seed) for seed in pool.labelled}
        # The splits of all seeds have one size.
        self._of_seeds = {
            prefix: (
                Evaluator(network, next(iter(own.values())), self._classes, settings, mesh),
                own,
            )
            for prefix, own in splits.items()
        }

    def __call__(self, states: TrainState, seeds: Sequence[int]) -> list[dict[str, float]]:
        """The metrics of each lane of a group."""
        averaged = states._replace(params=states.average)
        found: list[dict[str, float]] = []
        for i, seed in enumerate(seeds):
            one = jax.tree.map(lambda x, i=i: x[i : i + 1], averaged)
            values = self._thresholds(jax.tree.map(lambda x, i=i: x[i], states.extra))
            for prefix, (evaluator, splits) in self._of_seeds.items():
                (measured,) = evaluator(one, splits[seed])
                values |= {f"{prefix}{name}": value for name, value in measured.items()}
            found.append(values)
        for values, measured in zip(found, self._test(averaged), strict=True):
            values |= {f"test_{name}": value for name, value in measured.items()}
        return found

    def _thresholds(self, extra: Any) -> dict[str, float]:
        limits = np.asarray(self._method.thresholds(extra, self._classes))
        if not np.all(np.isfinite(limits)):
            return {}
        own = {f"threshold_class{c}": float(limit) for c, limit in enumerate(limits)}
        return {"threshold_mean": float(limits.mean()), "threshold_max": float(limits.max())} | own
