"""Metrics of a network on a whole split: accuracy, MIR, HDR, entropies, neural collapse."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import mirjax
from mirjax import theory
from train.data import batches
from train.settings import Settings
from train.state import Network, TrainState


class Tally(NamedTuple):
    """What one pass over a split adds up, for each seed."""

    weight: Array
    correct: Array
    cross_entropy: Array
    groups: Array
    """Full batches of `metric_batch` samples, and the sums of their MIR and HDR."""
    mir: Array
    hdr: Array
    moments: mirjax.ClassMoments | None
    """None where the features take less memory than they would."""


class Evaluator:
    """Evaluates states on one split, in one pass; everything is compiled once."""

    def __init__(self, network: Network, split: Any, num_classes: int, settings: Settings):
        self._network, self._split, self._classes = network, split, num_classes
        self._group = min(settings.metric_batch, len(split))
        groups = math.ceil(min(settings.eval_batch, len(split)) / self._group)
        self._batch = groups * self._group
        self._width = network.width
        # The same choice as `dataset_interplay` makes: by class moments, or from the features.
        self._by_moments = num_classes * self._width <= 2 * len(split)
        held = 4 * len(split) * self._width * settings.seeds
        self._held = not self._by_moments or held <= settings.memory_limit_mib * 2**20
        self._start = jax.jit(self._zeros, static_argnums=0)
        self._add = jax.jit(self._accumulate, donate_argnums=0)
        self._head = jax.jit(jax.vmap(lambda state: network.head(state.params, state.rest)))
        self._of_moments = jax.jit(
            lambda m, head, nc4: (m.class_interplay(head), m.collapse(head, nc4=nc4))
        )
        self._of_features = jax.jit(self._from_features)
        self._agreement = jax.jit(
            lambda m, z, head, bias, weight: m.agreement(z, head, bias=bias, weights=weight)
        )

    def __call__(self, states: TrainState) -> list[dict[str, float]]:
        """The metrics of each seed in `states`."""
        seeds = len(states.seed)
        tally, held, labels, weights = self._start(seeds), [], [], []
        for batch in batches(self._split, self._batch):
            tally, features = self._add(
                tally, states, batch["image"], batch["label"], batch["weight"]
            )
            labels.append(batch["label"])
            weights.append(batch["weight"])
            if self._held:
                held.append(features)
        heads, biases = self._head(states)
        labels, weights = np.concatenate(labels), np.stack(weights)
        return [
            self._report(
                jax.tree.map(lambda x, s=s: x[s], tally),
                [features[s] for features in held],
                labels,
                weights,
                heads[s],
                biases[s],
            )
            for s in range(seeds)
        ]

    def _zeros(self, seeds: int) -> Tally:
        def one(_: Array) -> Tally:
            zero = jnp.zeros(())
            moments = mirjax.ClassMoments.zeros(self._classes, self._width)
            moments = moments if self._by_moments else None
            return Tally(zero, zero, zero, zero, zero, zero, moments)

        return jax.vmap(one)(jnp.arange(seeds))

    def _accumulate(
        self, tally: Tally, states: TrainState, images: Array, labels: Array, weights: Array
    ) -> tuple[Tally, Array]:
        grouped_labels, grouped_weights = (x.reshape(-1, self._group) for x in (labels, weights))
        full = jnp.sum(grouped_weights, axis=1) == self._group

        def one(tally: Tally, state: TrainState) -> tuple[Tally, Array]:
            outputs = self._network.apply(state.params, state.rest, images, train=False)
            logits, features = outputs.logits, outputs.features
            grouped = features.reshape(-1, self._group, self._width)
            each = mirjax.interplay(
                grouped,
                jnp.broadcast_to(outputs.head, (len(grouped), *outputs.head.shape)),
                grouped_labels,
            )
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            moments = tally.moments
            new = Tally(
                tally.weight + jnp.sum(weights),
                tally.correct + jnp.sum(weights * (jnp.argmax(logits, -1) == labels)),
                tally.cross_entropy + jnp.sum(weights * ce),
                tally.groups + jnp.sum(full),
                tally.mir + jnp.sum(jnp.where(full, each.mir, 0.0)),
                tally.hdr + jnp.sum(jnp.where(full, each.hdr, 0.0)),
                None if moments is None else moments.update(features, labels, weights),
            )
            return new, features

        return jax.vmap(one)(tally, states)

    def _report(
        self,
        tally: Tally,
        features: list[Array],
        labels: np.ndarray,
        weights: np.ndarray,
        head: Array,
        bias: Array,
    ) -> dict[str, float]:
        if tally.moments is None:
            n = len(self._split)
            rows, labels = jnp.concatenate(features)[:n], labels[:n]
            whole = mirjax.dataset_interplay(rows, head, labels)
            by_class, collapse = self._of_features(rows, labels, head, bias)
        else:
            whole = tally.moments.interplay(head)
            agreed = [
                self._agreement(tally.moments, z, head, bias, w)
                for z, w in zip(features, weights, strict=False)
            ]
            nc4 = sum(agreed) / tally.weight if agreed else jnp.nan
            by_class, collapse = self._of_moments(tally.moments, head, nc4)
        at_collapse = theory.collapsed_mir(self._classes)
        values = {
            "accuracy": tally.correct / tally.weight,
            "loss": tally.cross_entropy / tally.weight,
            **{name: getattr(whole, name) for name in mirjax.Interplay._fields},
            "mir_lower": whole.lower.mir,
            "mir_upper": whole.upper.mir,
            "mir_standard_error": whole.standard_error.mir,
            "mir_distance": whole.mir - at_collapse,
            "mir_batch": tally.mir / tally.groups,
            "hdr_batch": tally.hdr / tally.groups,
            "class_mir": by_class.mir,
            "class_hdr": by_class.hdr,
            "class_mir_distance": by_class.mir - at_collapse,
            **collapse._asdict(),
            "n": whole.weight,
        }
        return {name: float(value) for name, value in jax.device_get(values).items()}

    def _from_features(
        self, features: Array, labels: Array, head: Array, bias: Array
    ) -> tuple[mirjax.Interplay, mirjax.NeuralCollapse]:
        members = jax.nn.one_hot(labels, self._classes, dtype=features.dtype)
        count = jnp.sum(members, axis=0)[:, None]
        centre = jnp.mean(features, axis=0)
        means = jnp.where(count > 0, members.T @ features / jnp.maximum(count, 1), centre)
        collapse = mirjax.neural_collapse(
            features, labels, head, num_classes=self._classes, bias=bias
        )
        return mirjax.class_interplay(means, head, global_mean=centre), collapse


def closed_forms(num_classes: int) -> dict[str, float]:
    """Where each metric tends to at neural collapse, for pictures and tables."""
    entropy = theory.collapsed_entropy(num_classes)
    mir = theory.collapsed_mir(num_classes)
    zeros = ("hdr", "hdr_batch", "class_hdr", "entropy_difference", "nc1", "nc2_equinorm")
    zeros += ("nc2_equiangle", "nc3", "nc2_equinorm_head", "nc2_equiangle_head")
    return dict.fromkeys(zeros, 0.0) | {
        "mir": mir,
        "class_mir": mir,
        "entropy1": entropy,
        "entropy2": entropy,
        "mutual_information": theory.collapsed_mutual_information(num_classes),
        "joint_entropy": 2 * entropy - theory.collapsed_mutual_information(num_classes),
        "nc4": 1.0,
    }


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
