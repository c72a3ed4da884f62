"""Metrics of a network on a whole split: accuracy, MIR, HDR, entropies, neural collapse."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mirjax
from train.data.batches import batches
from train.data.types import RecordSplit, Split
from train.engine.sharding import (
    BY_LANE,
    DATA,
    EVERYWHERE,
    LANES,
    constrain,
    from_owners,
    local_lane,
    over_lanes,
    owned,
    padded,
    padded_states,
    place,
    rows_here,
)
from train.engine.state import Network, TrainState
from train.evaluation.closed_forms import closed_forms
from train.reporting.records import WITHOUT_DIRECTION, only_counts_above_zero
from train.run import hosts
from train.run.loop import Metrics
from train.run.settings import EvaluationSettings


class Tally(NamedTuple):
    """The sums of one pass over a split, for each lane."""

    weight: Array
    correct: Array
    cross_entropy: Array
    full_batches: Array
    """Number of full batches of `metric_batch` samples, over which `mir` and `hdr` are summed."""
    mir: Array
    hdr: Array
    pairs: mirjax.PairMoments
    """Means over the pairs of samples within each full batch."""
    moments: mirjax.ClassMoments | None
    """None if the features themselves are kept."""


class Evaluator:
    """Evaluates states on one split, `networks` at a time; everything is compiled once.

    Features that fit in memory are kept, so that one pass is enough. Otherwise class moments are
    summed, and NC4, which needs the nearest class mean of each sample, takes a second pass.
    """

    def __init__(
        self,
        network: Network,
        split: Split | RecordSplit,
        num_classes: int,
        settings: EvaluationSettings,
        mesh: Mesh | None = None,
        *,
        networks: int = 1,
    ):
        self._network, self._split, self._classes = network, split, num_classes
        self._metric_batch = min(settings.metric_batch, len(split))
        metric_batches = math.ceil(min(settings.eval_batch, len(split)) / self._metric_batch)
        self._mesh, self._exact_side = mesh, settings.exact_side
        # Each device of a row gets whole batches of `metric_batch`.
        devices = 1 if mesh is None else mesh.shape[DATA]
        self._batch = devices * math.ceil(metric_batches / devices) * self._metric_batch
        self._width = network.width
        # float32 features of all networks that are evaluated at once.
        held = 4 * len(split) * self._width * networks
        self._held = held <= settings.memory_limit_mib * 2**20
        self._start = jax.jit(self._zeros, static_argnums=0)
        self._add = self._divided(
            self._accumulate, 3, lambda of_split: (BY_LANE, BY_LANE, of_split), donate_argnums=0
        )
        self._agreeing = self._divided(self._agreement, 2, lambda _: BY_LANE)
        self._head = jax.jit(lambda state: network.head(state.params, state.rest))
        self._of_moments = jax.jit(
            lambda m, head, nc4: (m.class_interplay(head), m.collapse(head, nc4=nc4), m.spectra())
        )
        self._of_features = jax.jit(self._from_features)

    def __call__(
        self,
        states: TrainState,
        splits: Sequence[Split] | None = None,
        *,
        lanes: int | None = None,
    ) -> list[Metrics]:
        """The metrics of each lane.

        Args:
            states: the stacked states of the lanes.
            splits: a split for each lane, all of the size of the first; if not given, all lanes are
                measured on the split of the evaluator.
            lanes: how many of the states to measure, the first; if not given, all.
        """
        # The optimizer's state would be copied for nothing.
        states = states._replace(opt_state=None)
        lanes = len(states.seed) if lanes is None else lanes
        by_lane = splits is not None
        if self._mesh is not None:
            states = place(padded_states(states, self._mesh), self._mesh, BY_LANE)
            splits = splits and padded(splits, self._mesh)
        # Metrics over the whole set need all features or moments; the rest is summed on the way.
        n = len(self._split)
        tally = self._placed(self._start(len(states.seed)), BY_LANE)
        held, labels, agreed = [], [], []
        for batch in self._batches(splits):
            tally, features, known = self._add[by_lane](
                tally, states, batch["image"], batch["label"], batch["weight"]
            )
            held.append(features)
            labels.append(known)
        # NC4 compares with the class means of the whole set, which only the first pass gives.
        if not self._held:
            for batch in self._batches(splits):
                agreed.append(
                    self._agreeing[by_lane](tally.moments, states, batch["image"], batch["weight"])
                )
        # Lane by lane, so that only one at a time needs memory for its decompositions. They are
        # divided over the processes, and each does its own on one of its devices.
        reports = {}
        for lane in owned(self._mesh, lanes):
            state, lane_tally = local_lane((states, tally), lane)
            head, bias = self._head(state)
            if self._held:
                # The last batch was filled up; its fillers are cut off.
                rows = jnp.concatenate([local_lane(x, lane) for x in held])[:n]
                of_lane = [local_lane(x, lane) if by_lane else x for x in labels]
                y = np.concatenate([np.asarray(x) for x in of_lane])[:n]
                whole = mirjax.dataset_interplay(rows, head, y, exact_side=self._exact_side)
                of_pairs = mirjax.dataset_debiased_interplay(rows, head, y)
                of_classes = self._of_features(rows, y, head, bias)
            else:
                whole = lane_tally.moments.interplay(head, exact_side=self._exact_side)
                of_pairs = lane_tally.moments.debiased_interplay(head)
                nc4 = sum(local_lane(x, lane) for x in agreed) / lane_tally.weight
                of_classes = self._of_moments(lane_tally.moments, head, nc4)
            reports[lane] = self._report(lane_tally, n, whole, of_pairs, *of_classes)
        return from_owners(reports)

    def _divided(
        self,
        function: Callable[..., Any],
        arrays: int,
        outputs: Callable[[PartitionSpec], Any],
        **options: Any,
    ) -> dict[bool, Callable[..., Any]]:
        """A function over lanes, of one split for all of them (False) and of a split for each.

        Behind two arguments with an entry for each lane it takes `arrays` of a split.
        """
        made: dict[bool, Callable[..., Any]] = {}
        for by_lane in (False, True):
            of_split = BY_LANE if by_lane else EVERYWHERE
            inputs = (BY_LANE, BY_LANE, *[of_split] * arrays)
            of_one = functools.partial(function, by_lane=by_lane)
            made[by_lane] = jax.jit(
                over_lanes(of_one, self._mesh, inputs, outputs(of_split)), **options
            )
        return made

    def _placed(self, tree: Any, spec: PartitionSpec) -> Any:
        return tree if self._mesh is None else place(tree, self._mesh, spec)

    def _batches(self, splits: Sequence[Split] | None) -> Iterator[Mapping[str, Any]]:
        if splits is not None:
            # The same split, as of lanes of one seed, is read once.
            distinct = list({id(split): split for split in splits}.values())
            where = [next(i for i, d in enumerate(distinct) if d is split) for split in splits]
            together = zip(*(batches(split, self._batch) for split in distinct), strict=True)
            for parts in together:
                stacked = {k: np.stack([parts[i][k] for i in where]) for k in parts[0]}
                yield self._placed(stacked, PartitionSpec(LANES, DATA))
            return
        if self._mesh is None or isinstance(self._split, Split) or not hosts.several():
            for batch in batches(self._split, self._batch):
                yield self._placed(batch, PartitionSpec(DATA))
            return
        # Read from disk, by each process what its devices take.
        rows = rows_here(self._mesh, DATA, self._batch)
        sharding = NamedSharding(self._mesh, PartitionSpec(DATA))

        def spread(values: np.ndarray) -> Array:
            def part(index: Any) -> np.ndarray:
                return values[np.searchsorted(rows, np.arange(self._batch)[index[0]])]

            whole = (self._batch, *values.shape[1:])
            return jax.make_array_from_callback(whole, sharding, part)

        for batch in batches(self._split, self._batch, rows=rows):
            yield {name: spread(values) for name, values in batch.items()}

    def _zeros(self, lanes: int) -> Tally:
        def one(_: Array) -> Tally:
            zero = jnp.zeros(())
            moments = mirjax.ClassMoments.zeros(self._classes, self._width)
            moments = None if self._held else moments
            pairs = mirjax.PairMoments.zeros()
            return Tally(zero, zero, zero, zero, zero, zero, pairs, moments)

        return jax.vmap(one)(jnp.arange(lanes))

    def _accumulate(
        self,
        tally: Tally,
        states: TrainState,
        images: Array,
        labels: Array,
        weights: Array,
        *,
        by_lane: bool,
    ) -> tuple[Tally, Array | None, Array]:
        def one(
            tally: Tally, state: TrainState, images: Array, labels: Array, weights: Array
        ) -> tuple[Tally, Array | None]:
            batched_labels, batched_weights = (
                x.reshape(-1, self._metric_batch) for x in (labels, weights)
            )
            # The last batch of a split is filled up; averages over batches leave it out.
            full = jnp.sum(batched_weights, axis=1) == self._metric_batch
            outputs = self._network.apply(state.params, state.rest, images, train=False)
            logits, features = outputs.logits, outputs.features
            batched = features.reshape(-1, self._metric_batch, self._width)
            # As published: the metrics of small batches, averaged, beside those of the whole set.
            heads = jnp.broadcast_to(outputs.head, (len(batched), *outputs.head.shape))
            of_batches = mirjax.interplay(batched, heads, batched_labels)
            whole_batches = jnp.where(full[:, None], batched_weights, 0.0)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            moments = tally.moments
            new = Tally(
                tally.weight + jnp.sum(weights),
                tally.correct + jnp.sum(weights * (jnp.argmax(logits, -1) == labels)),
                tally.cross_entropy + jnp.sum(weights * ce),
                tally.full_batches + jnp.sum(full),
                tally.mir + jnp.sum(jnp.where(full, of_batches.mir, 0.0)),
                tally.hdr + jnp.sum(jnp.where(full, of_batches.hdr, 0.0)),
                tally.pairs.update(batched, heads, batched_labels, whole_batches),
                None if moments is None else moments.update(features, labels, weights),
            )
            return new, features if self._held else None

        axis = 0 if by_lane else None
        new, features = jax.vmap(one, in_axes=(0, 0, axis, axis, axis))(
            tally, states, images, labels, weights
        )
        # Complete on each device of a row: what is decomposed is one lane on one device.
        features = None if features is None else constrain(features, self._mesh)
        return new, features, constrain(labels, self._mesh)

    def _agreement(
        self,
        moments: mirjax.ClassMoments,
        states: TrainState,
        images: Array,
        weights: Array,
        *,
        by_lane: bool,
    ) -> Array:
        def one(
            moments: mirjax.ClassMoments, state: TrainState, images: Array, weights: Array
        ) -> Array:
            features = self._network.apply(state.params, state.rest, images, train=False).features
            head, bias = self._network.head(state.params, state.rest)
            return moments.agreement(features, head, bias=bias, weights=weights)

        axis = 0 if by_lane else None
        return jax.vmap(one, in_axes=(0, 0, axis, axis))(moments, states, images, weights)

    def _report(
        self,
        tally: Tally,
        n: int,
        whole: mirjax.DatasetInterplay,
        of_pairs: mirjax.DebiasedInterplay,
        by_class: mirjax.Interplay,
        collapse: mirjax.NeuralCollapse,
        spectra: mirjax.spectra.Spectra,
    ) -> Metrics:
        values = {
            "accuracy": tally.correct / tally.weight,
            "loss": tally.cross_entropy / tally.weight,
            **{name: getattr(whole, name) for name in mirjax.Interplay._fields},
            "mir_lower": whole.lower.mir,
            "mir_upper": whole.upper.mir,
            "mir_standard_error": whole.standard_error.mir,
            "mir_batch": tally.mir / tally.full_batches,
            "hdr_batch": tally.hdr / tally.full_batches,
            **debiased_metrics(of_pairs),
            **debiased_metrics(tally.pairs.interplay(), "_batch"),
            "class_mir": by_class.mir,
            "class_hdr": by_class.hdr,
            **collapse._asdict(),
            **spectra_metrics(spectra),
            "n": n,
            WITHOUT_DIRECTION: n - whole.weight,
        }
        # One transfer for all values, and not one for each.
        logged = {name: float(value) for name, value in jax.device_get(values).items()}
        # A metric that is 0 at collapse is its own distance from it.
        distances = {
            f"{name}_distance": logged[name] - at_collapse
            for name, at_collapse in closed_forms(self._classes).items()
            if at_collapse and name in logged
        }
        return only_counts_above_zero(logged | distances)

    def _from_features(
        self, features: Array, labels: Array, head: Array, bias: Array
    ) -> tuple[mirjax.Interplay, mirjax.NeuralCollapse, mirjax.spectra.Spectra]:
        means, weight = mirjax.class_means(features, labels, num_classes=self._classes)
        # At the centre, a class without samples adds nothing to the kernel of the class means.
        centre = jnp.mean(features, axis=0)
        means = jnp.where(weight[:, None] > 0, means, centre)
        collapse = mirjax.neural_collapse(
            features, labels, head, num_classes=self._classes, bias=bias
        )
        spectra = mirjax.spectra.measure(features, labels, num_classes=self._classes)
        return mirjax.class_interplay(means, head, global_mean=centre), collapse, spectra


def debiased_metrics(found: mirjax.DebiasedInterplay, where: str = "") -> dict[str, Any]:
    """MIR and HDR of order 2 without the bias of the batch, with errors where these are known."""
    values: dict[str, Any] = {}
    for name in ("mir", "hdr"):
        values[f"{name}_debiased{where}"] = getattr(found, name)
        if found.standard_error is not None:
            error = getattr(found.standard_error, name)
            values[f"{name}_debiased{where}_standard_error"] = error
    return values


def spectra_metrics(found: mirjax.spectra.Spectra) -> dict[str, Any]:
    """The measures of the spectrum that are known, but not the spectrum itself."""
    values = found._replace(eigenvalues=None)._asdict()
    return {name: value for name, value in values.items() if value is not None}


class Extractor:
    """Gets features `[n, d]` and labels `[n]` of a whole split from a network; compiled once."""

    def __init__(self, network: Network, split: Split | RecordSplit, *, batch_size: int = 500):
        self._split, self._batch = split, min(batch_size, len(split))
        self._forward = jax.jit(
            lambda params, rest, images: network.apply(params, rest, images, train=False).features
        )

    def __call__(self, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """The features and labels, by the state of one lane."""
        rows, labels = [], []
        for batch in batches(self._split, self._batch):
            rows.append(np.asarray(self._forward(state.params, state.rest, batch["image"])))
            labels.append(batch["label"])
        n = len(self._split)
        return np.concatenate(rows)[:n], np.concatenate(labels)[:n]
