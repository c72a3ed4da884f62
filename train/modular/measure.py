"""What is measured of networks that learn a table modulo p."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mirjax
from mirjax._batch.gram import means_by_class as class_means
from train.engine.state import TrainState
from train.evaluation.layers import head_coordinates, layer_interplay
from train.modular.fourier import (
    excluded_logits,
    fourier_norms,
    frequency_shares,
    gini,
    key_frequencies,
    restricted_logits,
    sum_waves,
)
from train.modular.task import Table
from train.modular.trainer import precise_cross_entropy
from train.reporting.records import Record
from train.run.lanes import Lane

# The kind of the lanes that are neither a control nor an intervention.
MAIN = "grokking"


_OF_MEANS = ("nc1", "nc2_equinorm", "nc2_equiangle")


class Measure:
    """Loss, accuracy, MIR, HDR, entropies and neural collapse of the training pairs, the test pairs and
    all; the same of the layers where it has a meaning; weights.

    The network's parameters are written to a file a step, for `progress_records`.
    """

    def __init__(
        self, network: Any, tables: Sequence[Table], lanes: Sequence[Lane], snapshots: Path
    ):
        self._network, self._tables, self._folder = network, tables, snapshots
        self._lanes = lanes
        self._forward = jax.jit(jax.vmap(self._activations))
        self._pairs = jnp.asarray(np.stack([table.pairs for table in tables]))
        self._collapse = jax.jit(self._of_means, static_argnums=3)
        self._layer = jax.jit(self._headless)
        self._weights = jax.jit(jax.vmap(self._of_weights))

    def __call__(self, states: TrainState) -> list[dict[str, float]]:
        """The metrics of each lane of the group."""
        self._save(states)
        found = jax.device_get(self._forward(states.params, self._pairs))
        weights = jax.device_get(self._weights(states.params))
        return [
            self._one(
                table, *(jax.tree.map(lambda x, i=i: x[i], part) for part in (found, weights))
            )
            for i, table in enumerate(self._tables)
        ]

    def _activations(self, params: Any, pairs: Array) -> dict[str, Array]:
        model = self._network.model(params)
        found = model.activations(pairs)
        logits = found["stream"] @ model.unembedding[...]
        # `=` is no answer: its row of the head belongs to no class.
        return found | {"logits": logits, "head": model.head[: self._network.modulus]}

    def _one(
        self, table: Table, found: dict[str, Any], weights: dict[str, Any]
    ) -> dict[str, float]:
        size = table.train_size
        values: dict[str, Any] = {}
        splits = {"train": slice(None, size), "test": slice(size, None), "all": slice(None)}
        for name, part in splits.items():
            features, labels, head = found["stream"][part], table.labels[part], found["head"]
            logits = found["logits"][part]
            whole = mirjax.dataset_interplay(features, head, labels)
            loss, collapse = self._collapse(features, labels, (logits, head), self._network.modulus)
            own = {
                "n": len(labels),
                "accuracy": np.mean(np.argmax(logits, axis=1) == labels),
                "loss": loss,
                **{field: getattr(whole, field) for field in mirjax.Interplay._fields},
                "mir_standard_error": whole.standard_error.mir,
                "effective_rank": np.exp(whole.entropy1),
                **collapse._asdict(),
            }
            values |= {f"{name}_{k}": v for k, v in own.items()}
            for layer in ("attention", "hidden"):
                own = self._of_layer(found[layer][part], head_coordinates(head), labels)
                values |= {f"{name}_{layer}_{k}": v for k, v in own.items()}
        return {k: float(v) for k, v in jax.device_get(values | weights).items()}

    def _of_means(
        self, features: Array, labels: Array, others: tuple[Array, Array], classes: int
    ) -> tuple[Array, mirjax.NeuralCollapse]:
        logits, head = others
        collapse = mirjax.neural_collapse(features, labels, head, num_classes=classes)
        return jnp.mean(precise_cross_entropy(logits, labels)), collapse

    def _of_layer(self, features: Array, head: Array, labels: Any) -> dict[str, Any]:
        whole = layer_interplay(features, head, labels)
        collapse = self._layer(features, labels)
        of_means = {k: getattr(collapse, k) for k in _OF_MEANS}
        return {
            "mir": whole.mir,
            "hdr": whole.hdr,
            "effective_rank": np.exp(whole.entropy1),
        } | of_means

    def _headless(self, features: Array, labels: Array) -> mirjax.NeuralCollapse:
        # What a layer has without a head; the class means stand in for one.
        classes = self._network.modulus
        means, _ = class_means(features, labels, classes, jnp.ones(len(features)))
        return mirjax.neural_collapse(features, labels, means, num_classes=classes)

    def _of_weights(self, params: Any) -> dict[str, Array]:
        model, modulus = self._network.model(params), self._network.modulus
        squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
        neurons = (model.back[...] @ model.unembedding[...])[:, :modulus]
        return {
            "weight_norm": jnp.sqrt(squares),
            "gini_embedding": gini(fourier_norms(model.embedding[...][:modulus])),
            "gini_neurons": gini(fourier_norms(neurons.T)),
        }

    def _save(self, states: TrainState) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        step = int(states.step[0])
        for i, lane in enumerate(self._lanes):
            leaves = jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], states.params))
            place = snapshot(self._folder, lane, step)
            temporary = place.with_suffix(".part.npz")
            np.savez(temporary, *(np.asarray(leaf) for leaf in leaves))
            os.replace(temporary, place)


def snapshot(folder: Path, lane: Lane, step: int) -> Path:
    """Where the parameters of a lane at a step lie."""
    return folder / f"{lane.name}-step{step}.npz"


def progress_records(
    settings: Any, network: Any, lanes: Sequence[Lane], tables: Sequence[Table]
) -> list[Record]:
    """Restricted and excluded loss of every lane at every event, of addition; else nothing.

    The key frequencies are those of the network at the end, as in the source: of one that does not
    generalise they mean little.
    """
    if settings.operation != "add":
        return []
    waves = jnp.asarray(sum_waves(settings.modulus))
    structure = jax.tree.structure(network.init(jax.random.key(0))[0])
    grid = jnp.asarray(
        np.stack(np.divmod(np.arange(settings.modulus**2), settings.modulus), axis=1)
    )
    grid = grid.astype(jnp.int32)

    @jax.jit
    def logits_of(leaves: list[Array]) -> Array:
        params = jax.tree.unflatten(structure, leaves)
        return network.forward(params, grid)[0][:, : settings.modulus]

    @jax.jit
    def losses(logits: Array, keys: Array, train: Array, labels: Array) -> dict[str, Array]:
        each = {
            "restricted": precise_cross_entropy(restricted_logits(logits, waves, keys), labels),
            "excluded": precise_cross_entropy(excluded_logits(logits, waves, keys), labels),
        }
        share = jnp.sum(frequency_shares(logits, waves) * keys)
        return {
            "restricted_loss": jnp.mean(each["restricted"]),
            "excluded_loss": jnp.sum(each["excluded"] * train) / jnp.sum(train),
            "key_share": share,
        }

    def along(lane: Lane, table: Table) -> Iterator[Record]:
        events = [0, *settings.events()]
        place = settings.modulus * table.pairs[:, 0] + table.pairs[:, 1]
        train = np.zeros(settings.modulus**2, np.float32)
        train[place[: table.train_size]] = 1
        labels = np.empty_like(table.labels)
        labels[place] = table.labels
        last = logits_of(_leaves(settings.out / "snapshots", lane, events[-1]))
        keys = key_frequencies(np.asarray(frequency_shares(last, waves)))
        for step in events:
            logits = logits_of(_leaves(settings.out / "snapshots", lane, step))
            found = jax.device_get(losses(logits, jnp.asarray(keys), train, labels))
            values = {name: float(value) for name, value in found.items()}
            names = (np.flatnonzero(keys) + 1).tolist()
            yield {"step": step, "seed": lane.seed, **lane.tags, "keys": names, **values}

    pairs = zip(lanes, tables, strict=True)
    return [record for lane, own in pairs for record in along(lane, own)]


def _leaves(folder: Path, lane: Lane, step: int) -> list[Array]:
    with np.load(snapshot(folder, lane, step), allow_pickle=False) as file:
        return [jnp.asarray(file[name]) for name in file.files]
