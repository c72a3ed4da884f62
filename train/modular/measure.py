"""What is measured of networks that learn a table modulo p."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import mirjax
from train.engine.sharding import from_owners, local_step, owned, whole
from train.engine.trainer import Group
from train.evaluation.evaluator import debiased_metrics
from train.evaluation.layers import head_coordinates, headless_collapse, layer_interplay
from train.modular.fourier import (
    excluded_logits,
    fourier_norms,
    frequency_shares,
    gini,
    key_frequencies,
    restricted_logits,
    sum_waves,
)
from train.modular.network import ModularNetwork
from train.modular.step import precise_cross_entropy
from train.modular.task import Task
from train.reporting.records import WITHOUT_DIRECTION, Record, only_counts_above_zero
from train.run import hosts
from train.run.files import replacing
from train.run.lanes import Lane, take_lane
from train.run.loop import Metrics

# The kind of the lanes that are neither a control nor an intervention.
MAIN = "grokking"

# Metrics of neural collapse that have a meaning without a head.
_OF_MEANS = ("nc1", "nc2_equinorm", "nc2_equiangle")

# Of fewer samples there is no error of a debiased value.
_FEWEST = 3
# The published metrics are those of batches, whose size is not known: this is ours.
BATCH = 64
# Vectors that are split off where the joint entropy is estimated. The default, four times as many,
# makes the estimates nearly twice as slow, and the error of MIR (0.0025 at most with 32) by a third
# to a half smaller.
RANK = 32
# Random vectors for the rest, in the layers: half as many as is usual. The error of their MIR is
# 0.0032 at most, and 0.0025 with 16 (sums, one seed, four steps).
LAYER_PROBES = 8
# The network computes in it. If that is said, collapse need not look for it in the features.
_PRECISION = "float32"


class TableEvaluator:
    """Metrics of the training pairs, the test pairs and all pairs, of the layers and of the
    weights.

    They are loss, accuracy, MIR, HDR, entropies and neural collapse, and of the layers those of
    them that have a meaning. MIR and HDR are also averaged over batches of 64 pairs, as published.
    Of the unmirrored test pairs they are loss, accuracy and the debiased
    values. Each evaluation also writes the parameters to a file, for `progress_records`.
    """

    def __init__(
        self,
        network: ModularNetwork,
        lanes: Sequence[Lane],
        tasks: Sequence[Task],
        snapshots: Path,
        mesh: Mesh | None = None,
        *,
        exact_side: int | None = None,
    ):
        self._network, self._lanes, self._tasks = network, lanes, tasks
        self._mesh, self._folder, self._exact_side = mesh, snapshots, exact_side
        self._forward = jax.jit(jax.vmap(self._activations))
        self._collapse = jax.jit(self._of_means, static_argnums=3)
        self._layer = jax.jit(self._of_layer_means, static_argnums=2)
        self._batches = jax.jit(means_over_batches)
        self._weights = jax.jit(jax.vmap(self._of_weights))

    def __call__(self, groups: Sequence[Group]) -> list[Metrics]:
        """The metrics of each lane, in the order of the groups; each process measures its own."""
        metrics: list[Metrics] = []
        for group in groups:
            rows = slice(len(metrics), len(metrics) + len(group.lanes))
            tasks = self._tasks[rows]
            params = jax.tree.map(np.asarray, whole(group.states.params))
            _save(params, int(local_step(group.states)), self._lanes[rows], self._folder)
            here = owned(self._mesh, len(tasks))
            found = {}
            if here:
                mine = jax.tree.map(lambda x, here=here: x[np.asarray(here)], params)
                pairs = np.stack([tasks[i].pairs for i in here])
                # On the host at once: slices by lane and split would each be a call of the device.
                activations = jax.device_get(self._forward(mine, pairs))
                weights = jax.device_get(self._weights(mine))
                found = {
                    lane: self._of_lane(
                        tasks[lane], take_lane(activations, i), take_lane(weights, i)
                    )
                    for i, lane in enumerate(here)
                }
            metrics += from_owners(found)
        return metrics

    def _activations(self, params: Any, pairs: Array) -> dict[str, Array]:
        model = self._network.model(params)
        activations = model.activations(pairs)
        logits = activations["stream"] @ model.unembedding[...]
        # The token `=` is no answer, so its row of the head belongs to no class.
        return activations | {"logits": logits, "head": model.head[: self._network.modulus]}

    def _of_lane(self, task: Task, activations: dict[str, Any], weights: dict[str, Any]) -> Metrics:
        # The pairs to train on come first.
        size, head = task.train_size, activations["head"]
        values: dict[str, Any] = {}
        splits = {"train": slice(None, size), "test": slice(size, None), "all": slice(None)}
        for name, part in splits.items():
            features, logits = activations["stream"][part], activations["logits"][part]
            labels = task.labels[part]
            whole = mirjax.dataset_interplay(
                features, head, labels, exact_side=self._exact_side, rank=RANK
            )
            # (a, b) and (b, a) are nearly the same sample.
            low, high = np.sort(task.pairs[part], axis=1).T
            groups = (low * self._network.modulus + high).astype(np.int32)
            debiased = mirjax.dataset_debiased_interplay(features, head, labels, groups=groups)
            loss, collapse, spectral_entropy = self._collapse(
                features, labels, (logits, head), self._network.modulus
            )
            of_split = {
                "n": len(labels),
                "accuracy": np.mean(np.argmax(logits, axis=1) == labels),
                "loss": loss,
                "spectral_entropy": spectral_entropy,
                **{field: getattr(whole, field) for field in mirjax.Interplay._fields},
                "mir_standard_error": whole.standard_error.mir,
                **debiased_metrics(debiased),
                "effective_rank": np.exp(whole.entropy1),
                WITHOUT_DIRECTION: len(labels) - whole.weight,
                **collapse._asdict(),
            }
            values |= {f"{name}_{k}": v for k, v in of_split.items()}
            if name != "all" and len(labels) >= BATCH:
                of_batches = self._batches(features, head, labels)
                values |= {f"{name}_{k}_batch": v for k, v in of_batches.items()}
            # Of the layers, what has been trained on and what has not: both at once cost the most
            # and tell nothing more.
            for layer in ("attention", "hidden") if name != "all" else ():
                of_layer = self._of_layer(activations[layer][part], head_coordinates(head), labels)
                values |= {f"{name}_{layer}_{k}": v for k, v in of_layer.items()}
        unseen = task.unmirrored()
        if len(unseen) >= _FEWEST:
            features, logits = activations["stream"][unseen], activations["logits"][unseen]
            labels = task.labels[unseen]
            of_unseen = {
                "n": len(unseen),
                "accuracy": np.mean(np.argmax(logits, axis=1) == labels),
                "loss": jnp.mean(precise_cross_entropy(*map(jnp.asarray, (logits, labels)))),
                **debiased_metrics(mirjax.dataset_debiased_interplay(features, head, labels)),
            }
            values |= {f"unmirrored_{k}": v for k, v in of_unseen.items()}
        # Plain numbers, which JSON can hold.
        numbers = {k: float(v) for k, v in jax.device_get(values | weights).items()}
        return only_counts_above_zero(numbers)

    def _of_means(
        self, features: Array, labels: Array, others: tuple[Array, Array], classes: int
    ) -> tuple[Array, mirjax.NeuralCollapse, Array]:
        logits, head = others
        collapse = mirjax.neural_collapse(
            features, labels, head, num_classes=classes, precision=_PRECISION
        )
        loss = jnp.mean(precise_cross_entropy(logits, labels))
        return loss, collapse, normalized_spectral_entropy(features)

    def _of_layer(self, features: Array, head: Array, labels: np.ndarray) -> dict[str, Any]:
        whole = layer_interplay(
            features,
            head,
            labels,
            exact_side=self._exact_side,
            rank=RANK,
            probes=LAYER_PROBES,
        )
        of_means = self._layer(features, labels, self._network.modulus)
        return {
            "mir": whole.mir,
            "hdr": whole.hdr,
            "effective_rank": np.exp(whole.entropy1),
            WITHOUT_DIRECTION: len(labels) - whole.weight,
        } | of_means

    def _of_layer_means(self, features: Array, labels: Array, classes: int) -> dict[str, Array]:
        collapse = headless_collapse(features, labels, classes, precision=_PRECISION)
        return {k: getattr(collapse, k) for k in _OF_MEANS}

    def _of_weights(self, params: Any) -> dict[str, Array]:
        model, modulus = self._network.model(params), self._network.modulus
        squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
        # How the neurons reach the logits: the token `=` is no answer.
        neurons = (model.back[...] @ model.unembedding[...])[:, :modulus]
        return {
            "weight_norm": jnp.sqrt(squares),
            "gini_embedding": gini(fourier_norms(model.embedding[...][:modulus])),
            "gini_neurons": gini(fourier_norms(neurons.T)),
        }


def means_over_batches(features: Array, head: Array, labels: Array) -> dict[str, Array]:
    """MIR and HDR, averaged over all full batches; the pairs are in random order."""
    count = len(labels) // BATCH
    batched = features[: count * BATCH].reshape(count, BATCH, -1)
    heads = jnp.broadcast_to(head, (count, *head.shape))
    found = mirjax.interplay(batched, heads, labels[: count * BATCH].reshape(count, BATCH))
    return {"mir": jnp.mean(found.mir), "hdr": jnp.mean(found.hdr)}


def normalized_spectral_entropy(features: Array) -> Array:
    """The entropy of the eigenvalues of the covariance `[d, d]`, divided by `log d`.

    It is what arXiv 2604.13123 follows through grokking: 1 if the features vary alike in all
    directions, 0 if in one.
    """
    offsets = features - jnp.mean(features, axis=0, keepdims=True)
    return mirjax.matrix_entropy(offsets.T @ offsets) / np.log(features.shape[1])


def _save(params: Any, step: int, lanes: Sequence[Lane], folder: Path) -> None:
    if not hosts.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for i, lane in enumerate(lanes):
        leaves = jax.tree.leaves(take_lane(params, i))
        # A resumed run writes the same file again; a killed one leaves no half of it.
        with replacing(snapshot(folder, lane, step)) as temporary, temporary.open("wb") as file:
            np.savez(file, *leaves)


def snapshot(folder: Path, lane: Lane, step: int) -> Path:
    """The file of the parameters of a lane at a step."""
    return folder / f"{lane.name}-step{step}.npz"


def progress_records(
    network: ModularNetwork,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    *,
    events: Sequence[int],
    snapshots: Path,
) -> list[Record]:
    """Restricted and excluded loss of every lane at every event, for tasks of addition.

    The key frequencies are those of the network at the end, as in the source. They mean little for
    a network that does not generalise.
    """
    modulus = network.modulus
    waves = jnp.asarray(sum_waves(modulus))
    # The files hold the leaves alone, in the order of this structure.
    structure = jax.tree.structure(network.init(jax.random.key(0))[0])
    grid = jnp.asarray(np.stack(np.divmod(np.arange(modulus**2), modulus), axis=1))
    grid = grid.astype(jnp.int32)

    @jax.jit
    def logits_of(leaves: list[Array]) -> Array:
        params = jax.tree.unflatten(structure, leaves)
        return network.forward(params, grid)[0][:, :modulus]

    @jax.jit
    def losses(logits: Array, keys: Array, train: Array, labels: Array) -> dict[str, Array]:
        restricted = precise_cross_entropy(restricted_logits(logits, waves, keys), labels)
        excluded = precise_cross_entropy(excluded_logits(logits, waves, keys), labels)
        return {
            "restricted_loss": jnp.mean(restricted),
            "excluded_loss": jnp.sum(excluded * train) / jnp.sum(train),
            "key_share": jnp.sum(frequency_shares(logits, waves) * keys),
        }

    def along(lane: Lane, task: Task) -> Iterator[Record]:
        # Back to the order `p a + b` of the waves.
        place = modulus * task.pairs[:, 0] + task.pairs[:, 1]
        train = np.zeros(modulus**2, np.float32)
        train[place[: task.train_size]] = 1
        labels = np.empty_like(task.labels)
        labels[place] = task.labels
        # The frequencies that the network ends with, followed back through its course.
        last = logits_of(_leaves(snapshots, lane, events[-1]))
        keys = key_frequencies(np.asarray(frequency_shares(last, waves)))
        for step in events:
            logits = logits_of(_leaves(snapshots, lane, step))
            measured = jax.device_get(losses(logits, jnp.asarray(keys), train, labels))
            values = {name: float(value) for name, value in measured.items()}
            names = (np.flatnonzero(keys) + 1).tolist()
            yield {"step": step, "seed": lane.seed, **lane.tags, "keys": names, **values}

    pairs = zip(lanes, tasks, strict=True)
    return [record for lane, task in pairs for record in along(lane, task)]


def _leaves(folder: Path, lane: Lane, step: int) -> list[Array]:
    with np.load(snapshot(folder, lane, step), allow_pickle=False) as file:
        return [jnp.asarray(file[name]) for name in file.files]
