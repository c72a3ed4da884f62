"""Metrics of a network on a whole split: accuracy, MIR, HDR, entropies, neural collapse."""

import math
from typing import Any

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


class Evaluator:
    """Evaluates states on one split; everything is compiled once."""

    def __init__(self, network: Network, split: Any, num_classes: int, settings: Settings):
        self._num_classes = num_classes
        self._split, self._batch = split, min(settings.eval_batch, len(split))
        self._metric_batch, self._limit = settings.metric_batch, settings.metric_limit

        def forward(state: TrainState, images: Array) -> tuple[Array, Array]:
            outputs = network.apply(state.params, state.rest, images, train=False)
            return outputs.logits, outputs.features

        self._forward = jax.jit(jax.vmap(forward, in_axes=(0, None)))
        self._head = jax.jit(jax.vmap(lambda state: network.head(state.params, state.rest)))
        self._metrics = jax.jit(self._compute)

    def __call__(self, states: TrainState) -> list[dict[str, float]]:
        """The metrics of each seed in `states`."""
        logits, features, labels = [], [], []
        for batch in batches(self._split, self._batch):
            batch_logits, batch_features = self._forward(states, batch["image"])
            logits.append(batch_logits)
            features.append(batch_features)
            labels.append(batch["label"])
        n = len(self._split)
        logits, features = (np.concatenate(jax.device_get(x), 1)[:, :n] for x in (logits, features))
        labels = np.concatenate(labels)[:n]
        heads, biases = jax.device_get(self._head(states))
        chosen = self._chosen(features.shape[-1])
        return [
            {k: float(v) for k, v in values.items()} | {"n": float(len(chosen))}
            for values in (
                jax.device_get(self._metrics(*arrays, labels, chosen))
                for arrays in zip(logits, features, heads, biases, strict=True)
            )
        ]

    def _chosen(self, width: int) -> np.ndarray:
        """The samples that enter the metrics of the whole set; all, where that can be afforded."""
        n = len(self._split)
        if min(n, width * min(width, self._num_classes)) <= self._limit:
            return np.arange(n)
        return np.sort(np.random.default_rng(0).permutation(n)[: self._limit])

    def _compute(
        self, logits: Array, features: Array, head: Array, bias: Array, labels: Array, chosen: Array
    ) -> dict[str, Array]:
        classes = self._num_classes
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        values = {
            "accuracy": jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32)),
            "loss": jnp.mean(ce),
        }
        whole = mirjax.interplay(features[chosen], head, labels[chosen])
        values |= whole._asdict()
        values["mir_distance"] = whole.mir - theory.collapsed_mir(classes)

        size = self._metric_batch
        full = len(labels) // size
        if full:
            batched = features[: full * size].reshape(full, size, -1)
            each = mirjax.interplay(batched, head, labels[: full * size].reshape(full, size))
            values |= {"mir_batch": jnp.mean(each.mir), "hdr_batch": jnp.mean(each.hdr)}

        members = jax.nn.one_hot(labels, classes, dtype=features.dtype)
        count = jnp.sum(members, axis=0)
        means = members.T @ features / jnp.maximum(count, 1)[:, None]
        centre = jnp.mean(features, axis=0)
        by_class = mirjax.class_interplay(
            jnp.where(count[:, None] > 0, means, centre), head, global_mean=centre
        )
        values |= {
            "class_mir": by_class.mir,
            "class_hdr": by_class.hdr,
            "class_mir_distance": by_class.mir - theory.collapsed_mir(classes),
        }
        collapse = mirjax.neural_collapse(features, labels, head, num_classes=classes, bias=bias)
        return values | collapse._asdict()


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
