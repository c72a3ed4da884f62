"""The metrics of every layer of a network on one split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import mirjax
from train.data.batches import batches
from train.data.types import RecordSplit, Split
from train.engine.sharding import from_owners, local_lane, owned
from train.engine.state import Network, TrainState
from train.evaluation.evaluator import debiased_metrics, spectra_metrics
from train.reporting.records import WITHOUT_DIRECTION, only_counts_above_zero
from train.run.loop import Metrics
from train.run.settings import EvaluationSettings

SAMPLES = 10_000
"""How many samples of a split are evaluated, the first in the order of `batches`.

The activations of all layers are held at once, which limits their number.
"""


class LayerEvaluator:
    """MIR, HDR, NC1 and the measures of spectra of each layer, over the set and over batches.

    Each layer is compared with the rows of the head, as the features are. Only the Gram matrix of
    those rows counts, so that a layer may have any width.
    """

    def __init__(
        self,
        network: Network,
        split: Split | RecordSplit,
        num_classes: int,
        settings: EvaluationSettings,
        mesh: Mesh | None = None,
    ):
        self._mesh, self._exact_side = mesh, settings.exact_side
        self._network, self._split, self._classes = network, split, num_classes
        self._samples = min(len(split), SAMPLES)
        self._metric_batch = min(settings.metric_batch, self._samples)
        self._batch = min(settings.eval_batch, self._samples)
        self._forward = jax.jit(lambda s, images: network.layers(s.params, s.rest, images))
        self._mean_over_batches = jax.jit(self._of_batches)
        self._nc1 = jax.jit(self._variability)
        self._pairs = jax.jit(self._of_pairs)
        self._spectra = jax.jit(
            lambda rows, y: mirjax.spectra.measure(rows, y, num_classes=num_classes)
        )

    def __call__(self, states: TrainState, *, lanes: int | None = None) -> list[Metrics]:
        """The metrics of each lane, named `LAYER_METRIC`; of the first `lanes` if that is given.

        Each process measures its own lanes.
        """
        # Not with the state of the optimizer, which would be copied for nothing.
        states = states._replace(opt_state=None)
        lanes = len(states.seed) if lanes is None else lanes
        return from_owners(
            {i: self._of_lane(local_lane(states, i)) for i in owned(self._mesh, lanes)}
        )

    def _of_lane(self, state: TrainState) -> Metrics:
        parts, labels, seen = [], [], 0
        for batch in batches(self._split, self._batch):
            parts.append(self._forward(state, batch["image"]))
            labels.append(batch["label"])
            seen += self._batch
            # The last batch may reach beyond the limit; its rest is cut off below.
            if seen >= self._samples:
                break
        labels = np.concatenate(labels)[: self._samples]
        layers = {
            name: jnp.concatenate([part[name] for part in parts])[: self._samples]
            for name in parts[0]
        }
        # In coordinates of their span the rows have at most as many columns as there are classes.
        head, _ = self._network.head(state.params, state.rest)
        head = head_coordinates(head)
        of_batches = self._mean_over_batches(layers, head[labels])
        values: dict[str, Any] = {"n": float(self._samples)}
        for name, features in layers.items():
            whole = layer_interplay(features, head, labels, exact_side=self._exact_side)
            debiased = debiased_metrics(layer_debiased(features, head, labels))
            debiased |= debiased_metrics(self._pairs(features, head, labels), "_batch")
            spectra = spectra_metrics(self._spectra(features, labels))
            values |= {f"{name}_{metric}": v for metric, v in (debiased | spectra).items()}
            values |= {
                f"{name}_mir": whole.mir,
                f"{name}_hdr": whole.hdr,
                f"{name}_entropy": whole.entropy1,
                f"{name}_mir_batch": of_batches[name].mir,
                f"{name}_hdr_batch": of_batches[name].hdr,
                f"{name}_nc1": self._nc1(features, labels),
                f"{name}_{WITHOUT_DIRECTION}": self._samples - whole.weight,
            }
        numbers = map(float, jax.device_get(list(values.values())))
        return only_counts_above_zero(dict(zip(values, numbers, strict=True)))

    def _of_batches(self, layers: dict[str, Array], rows: Array) -> dict[str, mirjax.Interplay]:
        """Means over all full batches of `metric_batch` samples."""
        # Samples that fill no batch are left out, as in the evaluation of the features.
        count = self._samples // self._metric_batch

        def batched(x: Array) -> Array:
            return x[: count * self._metric_batch].reshape(count, self._metric_batch, -1)

        of_every_batch = jax.vmap(mirjax.layerwise(mirjax.feature_interplay))(
            jax.tree.map(batched, layers), batched(rows)
        )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), of_every_batch)

    def _of_pairs(self, features: Array, head: Array, labels: Array) -> mirjax.DebiasedInterplay:
        """From the pairs within all full batches of `metric_batch` samples."""
        features, head = _padded(features, head)
        count = self._samples // self._metric_batch
        rows = features[: count * self._metric_batch].reshape(count, self._metric_batch, -1)
        of_rows = labels[: count * self._metric_batch].reshape(count, -1)
        heads = jnp.broadcast_to(head, (count, *head.shape))
        return mirjax.PairMoments.zeros().update(rows, heads, of_rows).interplay()

    def _variability(self, features: Array, labels: Array) -> Array:
        return headless_collapse(features, labels, self._classes).nc1


def headless_collapse(
    features: Array, labels: Array, num_classes: int, *, precision: str | None = None
) -> mirjax.NeuralCollapse:
    """Neural collapse of a layer without a head: only NC1 and NC2 of class means have a meaning.

    `precision` is the dtype in which the features were made, if it is known.
    """
    # The class means stand in for the head, so what compares with the head is trivial.
    means = mirjax.class_means(features, labels, num_classes=num_classes).means
    return mirjax.neural_collapse(
        features, labels, means, num_classes=num_classes, precision=precision
    )


def layer_interplay(
    features: Array,
    head: Array,
    labels: Array | np.ndarray,
    *,
    exact_side: int | None = None,
    rank: int | None = None,
    probes: int | None = None,
) -> mirjax.DatasetInterplay:
    """`mirjax.dataset_interplay` of a layer `[n, d]` of any width with `head_coordinates`.

    Both are padded to one width with columns of zeros, which change no Gram matrix.
    """
    features, head = _padded(features, head)
    return mirjax.dataset_interplay(
        features, head, labels, exact_side=exact_side, rank=rank, probes=probes
    )


def layer_debiased(
    features: Array,
    head: Array,
    labels: Array | np.ndarray,
    groups: Array | np.ndarray | None = None,
) -> mirjax.DebiasedInterplay:
    """`mirjax.dataset_debiased_interplay` of a layer, as in `layer_interplay`."""
    return mirjax.dataset_debiased_interplay(*_padded(features, head), labels, groups=groups)


def _padded(features: Array, head: Array) -> tuple[Array, Array]:
    width = max(features.shape[1], head.shape[1])
    first, second = (jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (features, head))
    return first, second


def head_coordinates(head: Array) -> Array:
    """Rows with the Gram matrix of the head's rows, in coordinates of the space they span."""
    left, values, _ = jnp.linalg.svd(mirjax.normalize_rows(head), full_matrices=False)
    return left * values
