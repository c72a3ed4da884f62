import dataclasses
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mirjax
from train.data.augment import crop_and_flip
from train.data.randaugment import strong
from train.engine.optimizers import sgd_for_few_labels
from train.engine.sharding import mesh_of
from train.engine.state import Network, initial_state
from train.engine.step import TermForm, UsedTerms, augmentation_key
from train.run.lanes import Knobs, lanes_of
from train.ssl.algorithms import Views, algorithm
from train.ssl.pool import PoolLoader, pool_of
from train.ssl.settings import Semisupervised
from train.ssl.step import Augmentation, TermPlacement, make_step

SETTINGS = Semisupervised(
    labels=6, batch_size=6, steps=8, eval_every=8, mi_weight=0.2, ed_weight=0.1, out=Path("unused")
)
# Without augmentation a step can be followed by hand.
NONE = Augmentation(0, False)


def few_labels_sgd(settings):
    return sgd_for_few_labels(steps=settings.steps, momentum=settings.momentum)


def start(tiny, settings, method):
    lanes, transform = lanes_of(settings), few_labels_sgd(settings)
    network = Network.of(settings, tiny)
    states = initial_state(network, transform, lanes)
    one = jax.tree.map(lambda x: x[0], states)
    one = one._replace(ema_params=one.params, algorithm_state=method.init(3, 60))
    return network, transform, lanes, one


def batch(tiny):
    images, labels = tiny.train.images, tiny.train.labels
    places = np.arange(20, 32)
    return images[:6], labels[:6], images[places], labels[places], places


def step_of(tiny, name="freematch", placement=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    method = algorithm(name)
    network, transform, lanes, state = start(tiny, settings, method)
    step = make_step(
        network,
        transform,
        method,
        UsedTerms.of(lanes),
        steps=8,
        augmentation=NONE,
        unlabelled_weight=0.7,
        ema_momentum=0.9,
        placement=placement or TermPlacement(),
    )
    return network, method, state, jax.jit(step)


@pytest.fixture(scope="module")
def freematch(tiny):
    return step_of(tiny)


def views(tiny, state):
    """The images of a step whose weak augmentation does nothing."""
    images, labels, unlabelled, _, places = batch(tiny)
    key = augmentation_key(state)
    keys = jax.random.split(jax.random.split(key, 4)[2], len(unlabelled))
    return images, labels, unlabelled, strong(unlabelled, keys), places


def outputs_of(network, state, *parts):
    """Of all images together, in training."""
    apply = jax.jit(network.apply, static_argnames="train")
    return apply(state.params, state.rest, jnp.concatenate(parts), train=True)


def test_the_loss_is_what_it_says(tiny, freematch):
    network, method, state, step = freematch
    _, terms = step(state, *batch(tiny))
    images, labels, weak, strongly, places = views(tiny, state)
    outputs = outputs_of(network, state, images, weak, strongly)
    logits, features = outputs.logits, outputs.features
    seen = Views(logits[6:18], logits[18:], jnp.asarray(places), state.step / 8)
    _, pseudo = jax.jit(method.step)(state.algorithm_state, seen)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits[:6], labels).mean()
    rows = jnp.concatenate([jnp.asarray(labels), jnp.argmax(logits[6:18], axis=-1)])
    weights = jnp.concatenate([jnp.ones(6), pseudo.weights])
    both = jax.jit(mirjax.interplay)(features[:18], outputs.head, rows, weights=weights)
    mi, ed = both.mutual_information, abs(both.entropy1 - both.entropy2)
    expected = ce + 0.7 * pseudo.loss + pseudo.penalty - 0.2 * mi + 0.1 * ed
    assert float(jnp.mean(pseudo.weights)) > 0
    assert terms.loss == pytest.approx(float(expected), abs=1e-5)
    assert terms.mutual_information == pytest.approx(float(mi), abs=1e-5)
    assert terms.more["coverage"] == pytest.approx(float(jnp.mean(pseudo.weights)))
    right = jnp.argmax(logits[6:18], axis=-1) == tiny.train.labels[places]
    assert terms.more["correct"] == pytest.approx(float(jnp.mean(right * pseudo.weights)))
    assert terms.more["known"] == terms.more["coverage"]


def test_labels_that_are_not_known_are_not_judged(tiny, freematch):
    _, _, state, step = freematch
    images, labels, unlabelled, truth, places = batch(tiny)
    after, terms = step(state, images, labels, unlabelled, np.full_like(truth, -1), places)
    expected, _ = step(state, *batch(tiny))
    assert terms.more["known"] == terms.more["correct"] == 0
    assert terms.more["coverage"] > 0
    # They are for the measurement alone.
    chex.assert_trees_all_equal(after, expected)


def test_the_average_follows_the_weights(tiny, freematch):
    _, _, state, step = freematch
    expected = state.ema_params
    for _ in range(3):
        state, _ = step(state, *batch(tiny))
        expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, expected, state.params)
    chex.assert_trees_all_close(state.ema_params, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.ema_params, state.params, rtol=1e-3)


def test_bfloat16_keeps_weights_and_statistics_in_float32(tiny, freematch):
    _, _, state, step = freematch
    _, _, _, halves = step_of(tiny, precision="bfloat16")
    _, exact = step(state, *batch(tiny))
    after, terms = halves(state, *batch(tiny))
    kept = after.params, after.ema_params, after.algorithm_state, after.opt_state
    floats = [x for x in jax.tree.leaves(kept) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert terms.loss != exact.loss
    assert terms.loss == pytest.approx(float(exact.loss), rel=0.05)


def test_batch_statistics_are_of_all_views_together(tiny):
    network, _, state, step = step_of(tiny, model="conv")
    after, _ = step(state, *batch(tiny))
    images, _, weak, strongly, _ = views(tiny, state)
    expected = network.apply(
        state.params, state.rest, jnp.concatenate([images, weak, strongly]), train=True
    ).rest
    chex.assert_trees_all_close(after.rest, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(after.rest, state.rest, rtol=1e-3)


def test_terms_on_views_that_there_are_not(tiny):
    with pytest.raises(ValueError, match=r"no views \['strong'\]"):
        step_of(tiny, "pseudo_label", TermPlacement(("weak", "strong")))


def test_the_published_schedule_with_nesterov_momentum():
    transform = few_labels_sgd(dataclasses.replace(SETTINGS, steps=100))(Knobs(1.0, 0.0))
    value, velocity = jnp.zeros(()), 0.0
    state = transform.init(value)
    for k in range(5):
        update, state = transform.update(jnp.ones(()), state, value)
        velocity = 0.9 * velocity + 1
        rate = math.cos(7 * math.pi * k / (16 * 100))
        assert float(update) == pytest.approx(-rate * (0.9 * velocity + 1), rel=1e-5)


def test_decay_spares_biases_and_norms(tiny):
    _, _, state, step = step_of(tiny, mi_weight=0.0, ed_weight=0.0)
    far = state._replace(knobs=state.knobs._replace(weight_decay=jnp.float32(10.0)))
    plain, decayed = (step(s, *batch(tiny))[0].params for s in (state, far))
    for before, after, start in zip(
        *(jax.tree.leaves(x) for x in (plain, decayed, state.params)), strict=True
    ):
        # Nesterov: the first update is (1 + momentum) times the gradient, at a rate of 0.03.
        moved = 0.03 * 1.9 * (10 - 5e-4) * start if start.ndim > 1 else 0.0
        np.testing.assert_allclose(before - after, moved, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("pseudo_label", "hard"), ("fixmatch", "soft"), ("flexmatch", "hard"), ("softmatch", "hard")],
)
def test_no_confident_sample_leaves_finite_gradients(name, rows, tiny):
    chosen = TermPlacement(("weak",), "passed", rows)
    _, _, state, step = step_of(tiny, name, chosen)
    # A head of zeros: all predictions are uniform.
    params = jax.tree.map(lambda p: jnp.zeros_like(p) if p.shape[-1:] == (3,) else p, state.params)
    state, terms = step(state._replace(params=params), *batch(tiny))
    chex.assert_tree_all_finite((state, terms))
    if name not in ("softmatch", "flexmatch"):
        assert terms.more["coverage"] == 0
        assert terms.more["unlabelled_loss"] == 0
        assert terms.mutual_information == 0


@pytest.mark.parametrize(
    "placement",
    [
        TermPlacement(("labelled", "weak", "strong"), "passed", "soft"),
        TermPlacement(("labelled", "weak"), "all", "soft", "features"),
        TermPlacement(("strong",), "all", "hard", "head"),
        TermPlacement(("labelled", "weak", "strong"), "all", form=TermForm(2, True)),
    ],
    ids=str,
)
def test_terms_are_on_the_chosen_samples_and_rows(placement, tiny):
    network, method, state, step = step_of(tiny, placement=placement)
    _, terms = step(state, *batch(tiny))
    images, labels, weak, strongly, places = views(tiny, state)
    outputs = outputs_of(network, state, images, weak, strongly)
    q = jax.nn.softmax(outputs.logits[6:18])
    seen = Views(outputs.logits[6:18], outputs.logits[18:], jnp.asarray(places), 0.0)
    passed = jax.jit(method.step)(state.algorithm_state, seen)[1].weights
    soft = q if placement.rows == "soft" else jax.nn.one_hot(jnp.argmax(q, -1), 3)
    weights = passed if placement.samples == "passed" else jnp.ones(12)
    known = {
        "labelled": (outputs.features[:6], jax.nn.one_hot(labels, 3), jnp.ones(6)),
        "weak": (outputs.features[6:18], soft, weights),
        "strong": (outputs.features[18:], soft, weights),
    }
    features, targets, weights = (
        jnp.concatenate(part) for part in zip(*(known[p] for p in placement.parts), strict=True)
    )
    rows = targets @ outputs.head
    if placement.form.debiased:
        # The weak and the strong view of an image make no pair.
        groups = jnp.concatenate([12 + jnp.arange(6), jnp.arange(12), jnp.arange(12)])
        both = jax.jit(mirjax.debiased_feature_interplay)(features, rows, groups=groups)
    else:
        both = jax.jit(mirjax.feature_interplay)(features, rows, weights=weights)
    assert terms.mutual_information == pytest.approx(float(both.mutual_information), abs=1e-4)
    ed = abs(float(both.entropy1 - both.entropy2))
    assert terms.entropy_difference == pytest.approx(ed, abs=1e-4)


def test_lanes_of_one_seed_see_the_same_batches_and_others_do_not(tiny):
    settings = dataclasses.replace(SETTINGS, seeds=2)
    lanes = [lane for lane in lanes_of(settings) for _ in range(2)]
    loader = PoolLoader(pool_of(settings, tiny, 6), 6, 12, mesh_of(1, 6))
    _, found = loader.batches(lanes)(0, 4)
    for name, size in (("labelled", 6), ("unlabelled", 12)):
        assert found[name].shape == (4, 4, size)
        assert np.array_equal(found[name][:, 0], found[name][:, 1])
        assert not np.array_equal(found[name][:, 0], found[name][:, 2])
    # Every epoch holds each labelled sample once, and five steps of 12 are the pool.
    labelled = pool_of(settings, tiny, 6).labelled[0]
    assert all(sorted(row) == labelled.tolist() for row in found["labelled"][:, 0])
    _, more = loader.batches(lanes)(0, 5)
    assert sorted(more["unlabelled"][:, 0].ravel().tolist()) == list(range(60))
    # From any step on the same batches come.
    _, later = loader.batches(lanes)(2, 2)
    assert np.array_equal(later["unlabelled"], found["unlabelled"][2:])


def test_weak_augmentation_flips_only_if_asked():
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    still = crop_and_flip(images, jax.random.key(0), pad=0, flip=False)
    assert jnp.array_equal(still, images)
    flipped = crop_and_flip(images, jax.random.key(0), pad=0)
    mirrored = np.all(np.asarray(flipped) == images[:, :, ::-1], axis=(1, 2, 3))
    assert 0 < mirrored.sum() < 20
