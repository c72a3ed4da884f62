import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mirjax
from train.loop import RunError, train
from train.state import Network, initial_state, optimizer
from train.step import BatchOrder, Terms, information_loss, make_call, make_step


def test_loss_is_the_sum_of_its_terms():
    key = jax.random.split(jax.random.key(0), 3)
    features, head = jax.random.normal(key[0], (12, 5)), jax.random.normal(key[1], (3, 5))
    logits, labels = features @ head.T, jnp.arange(12) % 3
    total, terms = information_loss(0.5, 0.25)(logits, features, head, labels)
    result = mirjax.interplay(features, head, labels)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    expected = ce - 0.5 * result.mutual_information + 0.25 * result.entropy_difference
    assert jnp.allclose(total, expected, atol=1e-5)
    assert jnp.allclose(jnp.stack(terms[1:]), jnp.stack([ce, *result[3:5]]), atol=1e-5)


def test_terms_of_weight_zero_are_not_computed():
    def head_gradient(mi_weight):
        loss = information_loss(mi_weight, 0.0)
        features, labels = jnp.eye(4), jnp.arange(4) % 2
        jaxpr = jax.make_jaxpr(lambda head: loss(features @ head.T, features, head, labels))
        return "eigh" in str(jaxpr(jnp.ones((2, 4))))

    assert not head_gradient(0.0)
    assert head_gradient(0.1)


@pytest.mark.parametrize("stopped", ["features", "head"])
def test_stop_gradient_reaches_the_terms_only(stopped):
    features, labels = jax.random.normal(jax.random.key(0), (8, 4)), jnp.arange(8) % 3
    head = jax.random.normal(jax.random.key(1), (3, 4))

    def gradient(weight, stop):
        loss = information_loss(weight, 0.0, stop)

        def of(features, head):
            return loss(features @ head.T, features, head, labels)[0]

        return dict(zip(("features", "head"), jax.grad(of, (0, 1))(features, head), strict=True))

    plain, full, half = gradient(0, None), gradient(0.5, None), gradient(0.5, stopped)
    other = {"features": "head", "head": "features"}[stopped]
    assert jnp.allclose(half[stopped], plain[stopped], atol=1e-6)
    assert jnp.allclose(half[other], full[other], atol=1e-6)
    assert not jnp.allclose(half[other], plain[other], atol=1e-3)


def test_batch_order_is_a_permutation_an_epoch_and_depends_on_the_seed_alone():
    seeds = np.array([0, 1])
    order = BatchOrder(seeds, samples=10, batch_size=5)
    steps = order(0, 4)
    assert steps.shape == (4, 2, 5)
    for seed in range(2):
        assert sorted(steps[:2, seed].ravel()) == list(range(10))
        assert sorted(steps[2:, seed].ravel()) == list(range(10))
    assert not np.array_equal(steps[:2, 0], steps[:2, 1])
    assert not np.array_equal(steps[:2, 0], steps[2:, 0])
    assert np.array_equal(BatchOrder(seeds[1:], 10, 5)(3, 1)[0, 0], steps[3, 1])


def test_batch_larger_than_the_split():
    with pytest.raises(ValueError, match=r"batch_size 11 is larger.*10 samples"):
        BatchOrder(np.array([0]), samples=10, batch_size=11)


def test_calls_of_any_length_compile_once(tiny, settings):
    network, transform = Network.of(settings, tiny), optimizer(settings)
    step = make_step(network, transform, information_loss(0.1, 0.1))
    call = make_call(chex.assert_max_traces(step, n=1), looped=True)
    states = initial_state(network, transform, jnp.arange(2))
    images, labels = jnp.asarray(tiny.train.images), jnp.asarray(tiny.train.labels)
    indices = BatchOrder(np.arange(2), 60, 16)(0, 3)
    for count in (3, 1, 2):
        states, progress = call(states, images, labels, indices, count)
    assert list(states.step) == [6, 6]
    assert list(progress.bad_step) == [-1, -1]
    chex.assert_tree_all_finite(progress.total)


def test_a_seed_alone_gives_what_it_gives_among_others(tiny, settings):
    loss = information_loss(0.3, 0.3)
    together = train(dataclasses.replace(settings, seeds=3), tiny, loss, quiet=True)
    alone = dataclasses.replace(settings, first_seed=2, out=settings.out.with_name("alone"))
    single = train(alone, tiny, loss, quiet=True)
    third = jax.tree.map(lambda x: x[2:], together.states)
    chex.assert_trees_all_close(single.states.params, third.params, rtol=1e-4, atol=1e-5)
    records = [r for r in together.records if r["seed"] == 2]
    for mine, theirs in zip(single.records, records, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["test_mir"] == pytest.approx(theirs["test_mir"], abs=1e-3)


def test_the_way_steps_are_called_does_not_matter(tiny, settings):
    loss = information_loss(0.3, 0.0)
    two = dataclasses.replace(settings, seeds=2)
    first = train(two, tiny, loss, quiet=True)
    other = dataclasses.replace(
        two, seed_mapping="loop", steps_per_call=1, out=settings.out.with_name("loop")
    )
    second = train(other, tiny, loss, quiet=True)
    chex.assert_trees_all_close(first.states.params, second.states.params, rtol=1e-4, atol=1e-5)


def test_a_term_that_is_not_finite_stops_the_run(tiny, settings):
    plain = information_loss(0.1, 0.0)

    def broken(logits, features, head, labels):
        loss, terms = plain(logits, features, head, labels)
        # Weights have moved a little after a few steps.
        mi = jnp.where(jnp.abs(terms.cross_entropy) < limit, jnp.nan, terms.mutual_information)
        return loss + 0 * mi, Terms(loss + 0 * mi, terms.cross_entropy, mi, terms[3])

    limit = 1e9
    with pytest.raises(
        RunError, match=r"non-finite at step 1 \(seed 0\): mutual_information is nan"
    ):
        train(settings, tiny, broken, quiet=True)
