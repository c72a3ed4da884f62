"""Measurements of semi-supervised training: of its steps, and of the averaged weights on sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from train.engine.sharding import from_owners, local_lane, owned
from train.engine.state import Network
from train.engine.trainer import Group
from train.evaluation.evaluator import Evaluator
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

    It is called with the groups of lanes.
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
        self._classes, self._algorithm, self._mesh = classes, algorithm, mesh
        self._test = Evaluator(network, data.test, classes, settings, mesh, networks=networks)
        splits = {"labelled_": {seed: pool.labelled_split(seed) for seed in pool.labelled}}
        if settings.eval_train and any(pool.hidden(seed).any() for seed in pool.labelled):
            splits["unlabelled_"] = {seed: pool.hidden_split(seed) for seed in pool.labelled}
        # The splits of all seeds have the same size, so that one evaluator serves them all.
        self._of_seeds = {
            prefix: (
                Evaluator(
                    network,
                    next(iter(by_seed.values())),
                    classes,
                    settings,
                    mesh,
                    networks=networks,
                ),
                by_seed,
            )
            for prefix, by_seed in splits.items()
        }

    def __call__(self, groups: Sequence[Group]) -> list[Metrics]:
        """The metrics of each lane."""
        return [metrics for group in groups for metrics in self._of_group(group)]

    def _of_group(self, group: Group) -> list[Metrics]:
        states, lanes = group.states, len(group.lanes)
        algorithm_state = states.algorithm_state
        metrics = from_owners(
            {i: self._thresholds(local_lane(algorithm_state, i)) for i in owned(self._mesh, lanes)}
        )
        # The batch statistics are not averaged: they are those of training.
        averaged = states._replace(
            params=states.ema_params, ema_params=None, opt_state=None, algorithm_state=None
        )
        measured = {}
        for prefix, (evaluator, splits) in self._of_seeds.items():
            of_lanes = [splits[lane.seed] for lane in group.lanes]
            measured[prefix] = evaluator(averaged, of_lanes, lanes=lanes)
        measured["test_"] = self._test(averaged, lanes=lanes)
        for prefix, values in measured.items():
            for of_lane, found in zip(metrics, values, strict=True):
                of_lane |= {f"{prefix}{name}": value for name, value in found.items()}
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
