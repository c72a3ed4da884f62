import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import mirjax
from train.engine.loader import BatchOrder, images_and_labels
from train.engine.state import Network, initial_state, optimizer
from train.engine.step import Terms, information_loss, make_step
from train.engine.trainer import make_call
from train.run.folder import RunError
from train.run.lanes import Knobs, Lane, lanes_of
from train.supervised import fit, train


def test_loss_is_the_sum_of_its_terms():
    key = jax.random.split(jax.random.key(0), 3)
    features, head = jax.random.normal(key[0], (12, 5)), jax.random.normal(key[1], (3, 5))
    logits, labels = features @ head.T, jnp.arange(12) % 3
    lane = Lane(0, Knobs(0.1, 0.0, smoothing=0.0, mi_weight=0.5, ed_weight=0.25))
    loss = jax.jit(information_loss([lane]))
    total, terms = loss(logits, features, head, labels, lane.knobs)
    result = jax.jit(mirjax.interplay)(features, head, labels)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    expected = ce - 0.5 * result.mutual_information + 0.25 * result.entropy_difference
    assert jnp.allclose(total, expected, atol=1e-5)
    assert jnp.allclose(jnp.stack(terms[1:]), jnp.stack([ce, *result[3:5]]), atol=1e-5)


def test_terms_of_weight_zero_are_not_computed():
    def head_gradient(mi_weight):
        lane = Lane(0, Knobs(0.1, 0.0, mi_weight=mi_weight))
        loss = information_loss([lane])
        features, labels = jnp.eye(4), jnp.arange(4) % 2
        jaxpr = jax.make_jaxpr(
            lambda head: loss(features @ head.T, features, head, labels, lane.knobs)
        )
        return "eigh" in str(jaxpr(jnp.ones((2, 4))))

    assert not head_gradient(0.0)
    assert head_gradient(0.1)


@pytest.mark.parametrize("stopped", ["features", "head"])
def test_stop_gradient_reaches_the_terms_only(stopped):
    features, labels = jax.random.normal(jax.random.key(0), (8, 4)), jnp.arange(8) % 3
    head = jax.random.normal(jax.random.key(1), (3, 4))

    def gradient(weight, stop):
        lane = Lane(0, Knobs(0.1, 0.0, mi_weight=weight))
        loss = information_loss([lane], stop)

        def of(features, head):
            return loss(features @ head.T, features, head, labels, lane.knobs)[0]

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
        lane = Lane(0, Knobs(0.1, 0.0, smoothing=smoothing))
        return information_loss([lane])(logits, logits, jnp.eye(4), labels, lane.knobs)[0]

    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.3)
    assert jnp.allclose(value(0.3), optax.softmax_cross_entropy(logits, smoothed).mean(), atol=1e-6)
    assert value(0.0) == optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_calls_of_any_length_compile_once(tiny, settings):
    lanes = lanes_of(dataclasses.replace(settings, seeds=2))
    network, transform = Network.of(settings, tiny), optimizer(settings)
    step = make_step(network, transform, information_loss(lanes))
    call = make_call(chex.assert_max_traces(step, n=1), images_and_labels, looped=True)
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


def test_a_term_that_is_not_finite_stops_the_run(tiny, settings):
    lanes = lanes_of(settings)
    plain = information_loss(lanes)

    def broken(*arguments):
        loss, terms = plain(*arguments)
        mi = jnp.nan * terms.mutual_information
        return loss + 0 * mi, Terms(loss + 0 * mi, terms.cross_entropy, mi, terms[3])

    with pytest.raises(
        RunError, match=r"non-finite at step 1 \(seed 0\): mutual_information is nan"
    ):
        train(settings, tiny, broken, lanes, quiet=True)


def test_bfloat16_is_a_setting(tiny, settings):
    def products_of(precision):
        own = dataclasses.replace(settings, precision=precision)
        network, lanes = Network.of(own, tiny), lanes_of(own)
        states = initial_state(network, optimizer(own), lanes)
        one = jax.tree.map(lambda x: x[0], states)
        step = make_step(network, optimizer(own), information_loss(lanes))
        images, labels = tiny.train.images[:8], tiny.train.labels[:8]
        after, terms = jax.jit(step)(one, images, labels)
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
        assert terms.loss.dtype == jnp.float32
        return str(jax.make_jaxpr(step)(one, images, labels)).count("bf16")

    assert products_of("float32") == 0
    assert products_of("bfloat16") > 0
