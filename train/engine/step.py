"""What all optimizer steps share: the terms of the loss, and the update of the state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import mirjax
from mirjax.losses import Side
from train.engine.optimizers import Optimizer
from train.engine.state import TrainState
from train.run.lanes import AUGMENT, Knobs, Lane, stream_key


class Terms(NamedTuple):
    """The loss of a batch and its terms; a term that no lane gives a weight is 0."""

    loss: Array
    cross_entropy: Array
    mutual_information: Array
    entropy_difference: Array
    more: dict[str, Array] | None = None
    """Other quantities that a step reports."""

    @classmethod
    def of(
        cls,
        cross_entropy: Array,
        information: tuple[Array, Array],
        knobs: Knobs,
        *,
        others: Array | float = 0.0,
    ) -> "Terms":
        """Of the loss `cross_entropy + others - mi_weight · MI + ed_weight · |H1 - H2|`."""
        mi, ed = information
        loss = cross_entropy + others - knobs.mi_weight * mi + knobs.ed_weight * ed
        return cls(loss, cross_entropy, mi, ed)

    def named(self) -> dict[str, Array]:
        """All terms by name."""
        named = self._asdict()
        more = named.pop("more") or {}
        return named | more


class TermForm(NamedTuple):
    """How the information terms measure entropy."""

    order: int = 1
    """Order of the Rényi entropies; the paper has 1."""
    debiased: bool = False
    """Whether the terms are those of the data in place of the batch; needs order 2."""


PUBLISHED = TermForm()


class UsedTerms(NamedTuple):
    """Which information terms some lane gives a weight; the others are not computed."""

    mutual_information: bool
    entropy_difference: bool

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> "UsedTerms":
        """The terms that these lanes use."""
        return cls(
            any(lane.knobs.mi_weight for lane in lanes), any(lane.knobs.ed_weight for lane in lanes)
        )


def information_terms(
    features: Array,
    head: Array,
    targets: Array,
    used: UsedTerms,
    *,
    weights: Array | None = None,
    groups: Array | None = None,
    stop_gradient: Side | None = None,
    form: TermForm = PUBLISHED,
) -> tuple[Array, Array]:
    """Mutual information and `|H1 - H2|` of features and their rows of the head, in nats.

    Args:
        features: `[n, d]`.
        head: `[num_classes, d]`.
        targets: labels `[n]`, or distributions over classes `[n, num_classes]`. The row of a sample
            is then the mean of all rows of the head, weighted by its distribution.
        used: the terms to compute; the others are 0. Of distributions both are computed together.
        weights: weights `[n]` of the samples.
        groups: integers `[n]`; of samples in one group, views of one image, debiased terms take no
            pairs.
        stop_gradient: the side that the terms do not train.
        form: how entropy is measured.
    """
    # Zeros instead of no terms: the shapes of a step do not depend on its terms.
    mi = ed = jnp.zeros(())
    if not any(used):
        return mi, ed
    if targets.ndim == 2 and form.debiased:
        # Soft rows are the rows of a head with a class for each sample.
        head = jnp.matmul(targets, head, precision="highest")
        if weights is not None:
            head = jnp.where(weights[:, None] == 0, 0.0, head)
        targets = jnp.arange(len(targets))
    if targets.ndim == 1:
        arrays = features, head, targets
        options: dict[str, Any] = {
            "weights": weights,
            "stop_gradient": stop_gradient,
            "method": "auto",
            **form._asdict(),
        }
        if form.debiased:
            options["groups"] = groups
        if used.mutual_information:
            mi = -mirjax.losses.mutual_information_loss(*arrays, **options)
        if used.entropy_difference:
            ed = mirjax.losses.entropy_difference_loss(*arrays, **options)
        return mi, ed
    # The losses of mirjax take labels alone; soft rows are made here.
    features = jax.lax.stop_gradient(features) if stop_gradient == "features" else features
    head = jax.lax.stop_gradient(head) if stop_gradient == "head" else head
    rows = jnp.matmul(targets, head, precision="highest")
    pair = mirjax.feature_interplay(
        features, rows, weights=weights, order=form.order, method="auto"
    )
    return pair.mutual_information, jnp.abs(pair.entropy1 - pair.entropy2)


def augmentation_key(state: TrainState) -> Array:
    """The key of a step's augmentation: by seed, step and, once it has branched off, copy."""
    copy = jnp.where(state.step < state.branch_step, 0, state.copy)
    return jax.random.fold_in(stream_key(state.seed, copy, AUGMENT), state.step)


def descend(state: TrainState, gradient: Any, optimizer: Optimizer) -> TrainState:
    """The state after an optimizer step with the knobs of its lane; masked weights stay 0."""
    updates, opt_state = optimizer(state.knobs).update(gradient, state.opt_state, state.params)
    params = masked(optax.apply_updates(state.params, updates), state.masks)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def masked(params: Any, masks: Any) -> Any:
    """The parameters with zeros where the masks are False; unchanged if there are no masks."""
    if masks is None:
        return params
    return jax.tree.map(lambda p, mask: jnp.where(mask, p, jnp.zeros_like(p)), params, masks)
