"""Measurements of semi-supervised training: of its steps, and of the averaged weights on sets."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.engine.state import Network, TrainState
from train.evaluation.evaluator import Evaluator
from train.run.lanes import take_lane
from train.run.loop import Metrics
from train.run.settings import ImageSettings
from train.ssl.algorithms import Algorithm
from train.ssl.pool import Pool


def with_pseudo_accuracy(terms: Metrics) -> Metrics:
    """The terms, with the accuracy of the pseudo-labels that count and whose truth is known."""
    # Both are means over all samples: only their quotient is an accuracy.
    terms = dict(terms)
    correct, known = terms.pop("step_correct", 0.0), terms.pop("step_known", 0.0)
    return terms | ({"step_pseudo_accuracy": correct / known} if known > 0 else {})


class PoolEvaluator:
    """Metrics of the averaged weights on the test, labelled and unlabelled sets, and the
    thresholds.

    It is called with the states of each group of lanes and the seeds of all lanes.
    """

    def __init__(
        self,
        network: Network,
        settings: ImageSettings,
        pool: Pool,
        algorithm: Algorithm,
        mesh: Mesh,
        *,
        networks: int,
    ):
        data, classes = pool.data, pool.data.num_classes
        self._classes, self._algorithm = classes, algorithm
        self._test = Evaluator(network, data.test, classes, settings, mesh, networks=networks)
        splits = {"labelled_": {seed: pool.labelled_split(seed) for seed in pool.labelled}}
        if settings.eval_train and any(pool.hidden(seed).any() for seed in pool.labelled):
            splits["unlabelled_"] = {seed: pool.hidden_split(seed) for seed in pool.labelled}
        # The splits of all seeds have the same size, so that one evaluator serves them all.
        self._of_seeds = {
            prefix: (
                Evaluator(network, next(iter(by_seed.values())), classes, settings, mesh),
                by_seed,
            )
            for prefix, by_seed in splits.items()
        }

    def __call__(self, groups: Sequence[TrainState], seeds: Sequence[int]) -> list[Metrics]:
        """The metrics of each lane."""
        metrics, left = [], iter(seeds)
        for states in groups:
            # The batch statistics are not averaged: they are those of training.
            averaged = states._replace(params=states.ema_params)
            on_test = self._test(averaged)
            for i, seed in zip(range(len(on_test)), left, strict=False):
                of_lane = self._thresholds(take_lane(states.algorithm_state, i))
                # One lane at a time: lanes of different seeds have different sets.
                for prefix, (evaluator, splits) in self._of_seeds.items():
                    one = jax.tree.map(lambda x, i=i: x[i : i + 1], averaged)
                    (measured,) = evaluator(one, splits[seed])
                    of_lane |= {f"{prefix}{name}": value for name, value in measured.items()}
                of_lane |= {f"test_{name}": value for name, value in on_test[i].items()}
                metrics.append(of_lane)
        return metrics

    def _thresholds(self, algorithm_state: Any) -> Metrics:
        limits = np.asarray(self._algorithm.thresholds(algorithm_state, self._classes))
        # The supervised baseline uses no pseudo-labels: its thresholds are infinite.
        if not np.all(np.isfinite(limits)):
            return {}
        return {
            "threshold_mean": float(limits.mean()),
            "threshold_max": float(limits.max()),
            **{f"threshold_class{c}": float(limit) for c, limit in enumerate(limits)},
        }
