import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import mirjax
from train.engine.loader import BatchOrder, DeviceLoader
from train.engine.optimizers import sgd_for_few_labels, sgd_with_cosine
from train.engine.state import Network, initial_state
from train.engine.step import TermForm, Terms, UsedTerms, information_terms
from train.engine.trainer import make_call
from train.run.errors import RunError
from train.run.lanes import Knobs, Lane, lanes_of, take_lane
from train.supervised import describe, fit, make_step, optimizer_of, smoothed_cross_entropy


def terms_of(features, head, labels, lane, *, stop_gradient=None):
    """The terms of the supervised loss, of arrays."""
    ce = smoothed_cross_entropy(features @ head.T, labels, lane.knobs)
    used = UsedTerms.of([lane])
    information = information_terms(features, head, labels, used, stop_gradient=stop_gradient)
    return Terms.of(ce, information, lane.knobs)


def test_loss_is_the_sum_of_its_terms(tiny, settings):
    network, lanes = Network.of(settings, tiny), lanes_of(settings)
    state = take_lane(initial_state(network, optimizer_of(settings), lanes), 0)
    knobs = state.knobs._replace(smoothing=jnp.float32(0.2))
    images, labels = tiny.train.images[:12], tiny.train.labels[:12]
    step = jax.jit(make_step(network, optimizer_of(settings), UsedTerms.of(lanes)))
    _, terms = step(state._replace(knobs=knobs), images, labels)
    logits, features, head, _ = network.apply(state.params, state.rest, images, train=True)
    result = jax.jit(mirjax.interplay)(features, head, labels)
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.2)
    ce = optax.softmax_cross_entropy(logits, smoothed).mean()
    mi, ed = result.mutual_information, result.entropy_difference
    assert (settings.mi_weight, settings.ed_weight) == (0.2, 0.1)
    expected = [ce - 0.2 * mi + 0.1 * ed, ce, mi, ed]
    assert jnp.allclose(jnp.stack(jax.tree.leaves(terms)), jnp.stack(expected), atol=1e-5)
    assert list(terms.named()) == [
        "loss",
        "cross_entropy",
        "mutual_information",
        "entropy_difference",
    ]


def test_terms_of_weight_zero_are_not_computed():
    def decomposes(mi_weight):
        lane = Lane(0, Knobs(0.1, 0.0, mi_weight=mi_weight))
        features, labels = jnp.eye(4), jnp.arange(4) % 2
        jaxpr = jax.make_jaxpr(lambda head: terms_of(features, head, labels, lane))
        return "eigh" in str(jaxpr(jnp.ones((2, 4))))

    assert not decomposes(0.0)
    assert decomposes(0.1)


@pytest.mark.parametrize("stopped", ["features", "head"])
def test_stop_gradient_reaches_the_terms_only(stopped):
    features, labels = jax.random.normal(jax.random.key(0), (8, 4)), jnp.arange(8) % 3
    head = jax.random.normal(jax.random.key(1), (3, 4))

    def gradient(weight, stop):
        lane = Lane(0, Knobs(0.1, 0.0, mi_weight=weight))

        def of(features, head):
            return terms_of(features, head, labels, lane, stop_gradient=stop).loss

        gradients = jax.jit(jax.grad(of, (0, 1)))(features, head)
        return dict(zip(("features", "head"), gradients, strict=True))

    plain, full, half = gradient(0, None), gradient(0.5, None), gradient(0.5, stopped)
    other = {"features": "head", "head": "features"}[stopped]
    assert jnp.allclose(half[stopped], plain[stopped], atol=1e-6)
    assert jnp.allclose(half[other], full[other], atol=1e-6)
    assert not jnp.allclose(half[other], plain[other], atol=1e-3)


def test_smoothing_is_the_cross_entropy_against_smoothed_labels():
    logits, labels = jax.random.normal(jax.random.key(0), (12, 4)), jnp.arange(12) % 4

    def value(smoothing):
        return smoothed_cross_entropy(logits, labels, Knobs(0.1, 0.0, smoothing=smoothing))

    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.3)
    assert jnp.allclose(value(0.3), optax.softmax_cross_entropy(logits, smoothed).mean(), atol=1e-6)
    assert value(0.0) == optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_optimizer_is_sgd_of_the_lane_with_decay_on_kernels_alone(nesterov):
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
    build = sgd_for_few_labels if nesterov else sgd_with_cosine
    transform = build(steps=10, momentum=0.9)(Knobs(jnp.float32(0.5), jnp.float32(0.1)))
    state = transform.init(params)
    velocity = {"kernel": 0.0, "bias": 0.0}
    for k in range(3):
        gradient = {"kernel": jnp.full((2, 2), 0.2), "bias": jnp.full(2, 0.2)}
        updates, state = transform.update(gradient, state, params)
        cosine = 0.5 * (1 + math.cos(math.pi * k / 10))
        rate = 0.5 * (math.cos(7 * math.pi * k / 160) if nesterov else cosine)
        for name, decay in (("kernel", 0.1 * 3.0), ("bias", 0.0)):
            velocity[name] = 0.9 * velocity[name] + 0.2 + decay
            moved = 0.9 * velocity[name] + 0.2 + decay if nesterov else velocity[name]
            assert jnp.allclose(updates[name], -rate * moved, rtol=1e-5)


def test_calls_of_any_length_compile_once(tiny, settings):
    lanes = lanes_of(dataclasses.replace(settings, seeds=2))
    network, transform = Network.of(settings, tiny), optimizer_of(settings)
    step = make_step(network, transform, UsedTerms.of(lanes))
    call = make_call(jax.vmap(chex.assert_max_traces(step, n=1)), DeviceLoader, looped=True)
    states = initial_state(network, transform, lanes)
    images, labels = jnp.asarray(tiny.train.images), jnp.asarray(tiny.train.labels)
    indices = BatchOrder(lanes, 60, 16)(0, 3)
    for count in (3, 1, 2):
        states, progress = call(states, (images, labels), indices, count)
    assert list(states.step) == [6, 6]
    assert list(progress.bad_step) == [-1, -1]
    chex.assert_tree_all_finite(progress.total)


def test_a_seed_alone_gives_what_it_gives_among_others(tiny, settings):
    together = fit(dataclasses.replace(settings, seeds=3), tiny, quiet=True)
    alone = dataclasses.replace(settings, first_seed=2, out=settings.out.with_name("alone"))
    single = fit(alone, tiny, quiet=True)
    third = jax.tree.map(lambda x: x[2:], together.states)
    chex.assert_trees_all_close(single.states.params, third.params, rtol=1e-4, atol=1e-5)
    records = [r for r in together.records if r["seed"] == 2]
    for mine, theirs in zip(single.records, records, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["test_mir"] == pytest.approx(theirs["test_mir"], abs=1e-3)


def test_lanes_of_different_knobs_are_what_they_are_alone(tiny, settings):
    plain = dataclasses.replace(settings, mi_weight=0.0, ed_weight=0.0)
    swept = {"smoothing": (0.0, 0.2), "learning_rate": (0.03, 0.01)}
    together = fit(plain, tiny, lanes_of(plain, **swept), quiet=True)
    assert [lane.tags for lane in together.lanes] == [
        {"smoothing": s, "learning_rate": r} for s in (0.0, 0.2) for r in (0.03, 0.01)
    ]
    for place, tags in ((0, {}), (3, {"smoothing": 0.2, "learning_rate": 0.01})):
        own = dataclasses.replace(plain, out=settings.out.with_name(f"own{place}"), **tags)
        single = fit(own, tiny, quiet=True)
        mine = jax.tree.map(lambda x, i=place: x[i : i + 1], together.states.params)
        chex.assert_trees_all_close(single.states.params, mine, rtol=1e-4, atol=1e-5)
        expected = [r for r in together.records if r.items() >= together.lanes[place].tags.items()]
        assert single.records[-1]["test_loss"] == pytest.approx(expected[-1]["test_loss"], rel=1e-4)


def test_the_way_steps_are_called_does_not_matter(tiny, settings):
    two = dataclasses.replace(settings, seeds=2)
    first = fit(two, tiny, quiet=True)
    other = dataclasses.replace(
        two, lanes_per_call=1, steps_per_call=1, out=settings.out.with_name("loop")
    )
    second = fit(other, tiny, quiet=True)
    chex.assert_trees_all_close(first.states.params, second.states.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_debiased_terms(soft):
    keys = jax.random.split(jax.random.key(0), 3)
    features, head = (jax.random.normal(k, (n, 6)) for k, n in zip(keys, (12, 3), strict=False))
    labels, weights = jnp.arange(12) % 3, jnp.arange(12.0) % 4
    features = features + 2 * head[labels]
    targets = jax.nn.softmax(jax.random.normal(keys[2], (12, 3))) if soft else labels
    rows = targets @ head if soft else head[labels]
    for order, debiased in ((2, False), (2, True)):
        form, used = TermForm(order, debiased), UsedTerms(True, True)
        mi, ed = information_terms(features, head, targets, used, weights=weights, form=form)
        if debiased:
            expected = mirjax.debiased_feature_interplay(features, rows, weights=weights)
        else:
            expected = mirjax.feature_interplay(features, rows, weights=weights, order=2)
        assert mi == pytest.approx(float(expected.mutual_information), abs=1e-5)
        assert ed == pytest.approx(float(expected.entropy_difference), abs=1e-5)
    # Two views of one image make no pair.
    twice = [jnp.concatenate([x, x]) for x in (features, targets, weights)]
    places = jnp.tile(jnp.arange(12), 2)
    options = {"weights": twice[2], "groups": places, "form": TermForm(2, True)}
    found = information_terms(twice[0], head, twice[1], UsedTerms(True, True), **options)
    assert found[0] == pytest.approx(float(mi), abs=1e-5)


def test_a_training_step_with_debiased_terms_decomposes_nothing(tiny, settings):
    network, lanes = Network.of(settings, tiny), lanes_of(settings)
    state = take_lane(initial_state(network, optimizer_of(settings), lanes), 0)
    images, labels = tiny.train.images[:12], tiny.train.labels[:12]

    def program(form):
        step = make_step(network, optimizer_of(settings), UsedTerms(True, True), form=form)
        return jax.jit(step).lower(state, images, labels).compile().as_text()

    # Decompositions are calls of a library.
    assert "custom-call" not in program(TermForm(2, True))
    assert "custom-call" in program(TermForm())


def test_debiased_terms_need_order_two(settings):
    with pytest.raises(ValueError, match=r"debiased needs order 2 \(--order 2 --debiased\), got 1"):
        dataclasses.replace(settings, debiased=True)
    assert "debiased" in describe(dataclasses.replace(settings, order=2, debiased=True))


def test_a_term_that_is_not_finite_stops_the_run(tiny, settings, monkeypatch):
    def broken(*arguments, **options):
        mi, ed = information_terms(*arguments, **options)
        return jnp.nan * mi, ed

    monkeypatch.setattr("train.supervised.information_terms", broken)
    with pytest.raises(
        RunError, match=r"non-finite at step 1 \(seed 0\): mutual_information is nan"
    ):
        fit(settings, tiny, quiet=True)


def test_bfloat16_is_a_setting(tiny, settings):
    def products_of(precision):
        own = dataclasses.replace(settings, precision=precision)
        network, lanes = Network.of(own, tiny), lanes_of(own)
        states = initial_state(network, optimizer_of(own), lanes)
        one = jax.tree.map(lambda x: x[0], states)
        step = make_step(network, optimizer_of(own), UsedTerms.of(lanes))
        images, labels = tiny.train.images[:8], tiny.train.labels[:8]
        after, terms = jax.jit(step)(one, images, labels)
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
        assert terms.loss.dtype == jnp.float32
        return str(jax.make_jaxpr(step)(one, images, labels)).count("bf16")

    assert products_of("float32") == 0
    assert products_of("bfloat16") > 0
