import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.reference import pseudo_labels as reference
from train.ssl.algorithms import ALGORITHMS, Pseudo, Views, algorithm
from train.ssl.algorithms.flexmatch import last_of_each
from train.ssl.settings import Semisupervised

CLASSES, SAMPLES, POOL, STEPS = 4, 12, 20, 6
REFERENCES = {
    "supervised": reference.Supervised,
    "pseudo_label": reference.PseudoLabel,
    "uda": reference.UDA,
    "fixmatch": reference.FixMatch,
    "flexmatch": reference.FlexMatch,
    "softmatch": reference.SoftMatch,
    "freematch": reference.FreeMatch,
}
CASES = [
    *((name, {}) for name in REFERENCES),
    ("pseudo_label", {"threshold": 0.7, "ramp": 0.8}),
    ("uda", {"threshold": 0.6, "temperature": 1.5}),
    ("fixmatch", {"threshold": 0.7}),
    ("flexmatch", {"threshold": 0.8}),
    ("softmatch", {"statistics_momentum": 0.5, "sigmas": 3.0}),
    ("freematch", {"statistics_momentum": 0.5, "fairness_weight": 0.3}),
]
each_name = pytest.mark.parametrize("name", REFERENCES)
each_case = pytest.mark.parametrize(("name", "options"), CASES)


class Step(NamedTuple):
    """What a step gives, the thresholds after it, and the gradient of its loss in both logits."""

    state: Any
    pseudo: Pseudo
    thresholds: Any
    weak: Any
    strong: Any


@functools.cache
def compiled(name, **options):
    chosen = algorithm(name, **options)

    def step(state, views):
        def loss(weak, strong):
            after, pseudo = chosen.step(state, views._replace(weak=weak, strong=strong))
            return pseudo.loss + pseudo.penalty, (after, pseudo)

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        gradients, (after, pseudo) = gradient(views.weak, views.strong)
        return Step(after, pseudo, chosen.thresholds(after, views.weak.shape[-1]), *gradients)

    return jax.jit(step)


def views_of(name, weak, strong, places=range(SAMPLES), progress=0.0):
    """As a run gives them: those that the algorithm does not use are empty."""
    parts = {"weak": weak, "strong": strong}
    used = algorithm(name).uses
    parts = {key: np.float32(x if key in used else x[:0]) for key, x in parts.items()}
    return Views(**parts, places=np.array(places, np.int32), progress=np.float32(progress))


def random_views(name, seed=0):
    """Logits of which some are confident, and the first class is predicted more often."""
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        weak, strong = rng.normal([4.0, 0.5, 0.0, -1.0], 2.5, (2, SAMPLES, CLASSES))
        places = rng.permutation(POOL)[:SAMPLES]
        yield views_of(name, weak, strong, places, step / STEPS)


@functools.cache
def course(name, seed=0, **options):
    """Views and outcome of each step."""
    state, steps = algorithm(name, **options).init(CLASSES, POOL), []
    for views in random_views(name, seed):
        steps.append((views, compiled(name, **options)(state, views)))
        state = steps[-1][1].state
    return steps


@each_case
def test_steps_equal_the_published_equations(name, options):
    expected = REFERENCES[name](CLASSES, POOL, **options)
    passed = []
    for views, found in course(name, **options):
        learned = found.pseudo
        pairs = zip(learned, expected.step(views), strict=True)
        for field, (ours, theirs) in zip(learned._fields, pairs, strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6, err_msg=field)
        np.testing.assert_allclose(found.thresholds, expected.thresholds(), 1e-5)
        assert found.thresholds.shape == (CLASSES,)
        passed.extend(learned.weights)
    if (name, options) not in [("supervised", {}), ("softmatch", {}), ("freematch", {})]:
        assert 0.2 < np.mean(passed) < 0.95  # the last two begin at 1/4, where all pass


@each_case
def test_the_gradient_is_that_of_the_cross_entropy_in_one_of_the_views(name, options):
    for views, found in course(name, **options):
        weights, targets = np.float64(found.pseudo.weights), np.float64(found.pseudo.targets)
        if name == "pseudo_label":
            share = min(float(views.progress) / options.get("ramp", 0.4), 1)
            expected = share * reference.loss_gradient(views.weak, targets, weights)
            np.testing.assert_allclose(found.weak, expected, 1e-4, 1e-6)
        else:
            assert not found.weak.any()
        if name not in ("pseudo_label", "supervised", "freematch"):
            expected = reference.loss_gradient(views.strong, targets, weights)
            np.testing.assert_allclose(found.strong, expected, 1e-4, 1e-6)


@pytest.mark.parametrize("predicted", [CLASSES, 2])
def test_gradient_of_the_fairness_term(predicted):
    views, found = course("freematch", statistics_momentum=0.5, fairness_weight=0.3)[1]
    chosen = algorithm("freematch", statistics_momentum=0.5, fairness_weight=1.0)
    strong = np.random.default_rng(0).normal(size=(SAMPLES, CLASSES))
    strong -= 20.0 * (np.arange(CLASSES) >= predicted)
    with jax.enable_x64(True):  # here, not as a fixture: the course is in float32
        state, views = jax.tree.map(jnp.float64, (found.state, views))

        def penalty(logits):
            return chosen.step(state, views._replace(strong=logits))[1].penalty

        check_grads(jax.jit(penalty), (strong,), order=1, modes=["rev"])
        passing = np.array(jax.jit(chosen.step)(state, views)[1].weights) > 0
    assert len(set(strong[passing].argmax(axis=1))) == predicted
    assert passing.sum() < SAMPLES


@pytest.mark.parametrize("name", ["pseudo_label", "uda", "fixmatch", "flexmatch", "freematch"])
def test_no_sample_passes(name):
    state = algorithm(name).init(CLASSES, POOL)
    if name == "flexmatch":
        state = state._replace(selected=jnp.zeros_like(state.selected))
    if name == "freematch":
        state = state._replace(confidence=jnp.ones_like(state.confidence))
    strong = np.random.default_rng(0).normal(size=(SAMPLES, CLASSES))
    views = views_of(name, np.zeros((SAMPLES, CLASSES)), strong, progress=0.5)
    found = compiled(name)(state, views)
    assert not found.pseudo.weights.any()
    assert found.pseudo.loss == found.pseudo.penalty == 0
    assert not found.weak.any()
    assert not found.strong.any()
    chex.assert_tree_all_finite((found.state, found.thresholds))


@pytest.mark.parametrize("name", ["pseudo_label", "uda", "fixmatch", "flexmatch", "freematch"])
def test_a_confidence_equal_to_the_threshold_passes(name):
    options = {"statistics_momentum": 0.0} if name == "freematch" else {"threshold": 1 / CLASSES}
    chosen = algorithm(name, **options)
    state, logits = chosen.init(CLASSES, SAMPLES), np.zeros((SAMPLES, CLASSES))
    for _ in range(2):  # class 0 is fully learned after one step
        state, learned = chosen.step(state, views_of(name, logits, logits))
        assert learned.weights.all()
        assert chosen.thresholds(state, CLASSES)[0] == 1 / CLASSES


def test_classes_that_are_never_predicted():
    """Their shares in the histograms are 0, exactly."""
    options = {"statistics_momentum": 0.0, "fairness_weight": 1.0}
    views = next(random_views("freematch", seed=1))
    absent = np.float32([0, 0, 30, 30])
    expected = reference.FreeMatch(CLASSES, POOL, **options)
    state = algorithm("freematch", **options).init(CLASSES, POOL)
    for strong in views.strong, views.strong - absent:
        seen = views._replace(weak=views.weak - absent, strong=strong)
        found = compiled("freematch", **options)(state, seen)
        assert list(found.state.histogram[2:]) == [0, 0]
        for ours, theirs in zip(found.pseudo, expected.step(seen), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6)
        assert 0 < found.pseudo.weights.sum() < SAMPLES
        chex.assert_tree_all_finite(found.strong)


@each_name
def test_saturated_logits(name):
    state = algorithm(name).init(CLASSES, POOL)
    signs = np.random.default_rng(0).choice([-1e4, 0.0, 1e4], (3, 2, SAMPLES, CLASSES))
    one_class = np.broadcast_to([1e4, 0, 0, -1e4], (1, 2, SAMPLES, CLASSES))
    for step, (weak, strong) in enumerate([*one_class, *signs]):
        found = compiled(name)(state, views_of(name, weak, strong, progress=step / 4))
        chex.assert_tree_all_finite((found.state, found.pseudo, found.weak, found.strong))
        assert np.all((found.pseudo.weights >= 0) & (found.pseudo.weights <= 1))
        state = found.state


@each_name
def test_eager_and_mapped_over_lanes_as_compiled_alone(name):
    lanes = [course(name, seed=seed)[2] for seed in range(2)]
    states = [course(name, seed=seed)[1][1].state for seed in range(2)]
    step = algorithm(name).step
    eager = step(states[0], lanes[0][0])
    chex.assert_trees_all_close(eager, (lanes[0][1].state, lanes[0][1].pseudo), atol=1e-6)
    views = [lane[0] for lane in lanes]
    stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
    mapped = jax.jit(jax.vmap(step))(stack(*states), stack(*views))
    alone = stack(*((found.state, found.pseudo) for _, found in lanes))
    chex.assert_trees_all_close(mapped, alone, atol=1e-6)


@each_name
def test_steps_do_not_recompile(name):
    chosen = algorithm(name)
    start = state = chosen.init(CLASSES, POOL)
    step = jax.jit(chex.assert_max_traces(chosen.step, n=1))
    for views, _ in course(name)[:3]:
        state, learned = step(state, views)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, start)
        assert {x.dtype for x in learned} == {np.dtype("float32")}


def test_options_that_an_algorithm_lacks():
    with pytest.raises(ValueError, match=r"threshold .*freematch.*momentum, fairness_weight"):
        algorithm("freematch", threshold=0.9)
    with pytest.raises(ValueError, match=r"momentum .*supervised.*none"):
        algorithm("supervised", statistics_momentum=0.9)
    assert algorithm("freematch", threshold=None, statistics_momentum=0.9) == algorithm(
        "freematch", statistics_momentum=0.9
    )


def logits_of(rows):
    return np.log(np.array(rows, np.float32))


def test_flexmatch_by_hand():
    def rows(*predictions):
        """The confidence in a class, the rest shared by the others."""
        others = [[(1 - confidence) / 2] * 3 for _, confidence in predictions]
        for row, (label, confidence) in zip(others, predictions, strict=True):
            row[label] = confidence
        return logits_of(others)

    chosen = algorithm("flexmatch", threshold=0.8)
    step = jax.jit(chosen.step)
    state, strong, progress = chosen.init(3, 6), jnp.zeros((3, 3)), jnp.zeros(())
    np.testing.assert_array_equal(chosen.thresholds(state, 3), 0)
    steps = [
        ([0, 1, 2], rows((0, 0.9), (0, 0.9), (1, 0.5)), [1, 1, 1], [4 / 15, 0, 0]),
        # 0.5 is above 4/15, though not above the 4/5 that follow.
        ([2, 3, 0], rows((1, 0.9), (0, 0.9), (0, 0.5)), [1, 1, 1], [4 / 5, 4 / 25, 0]),
        # Sample 0 keeps class 0, sample 1 moves to class 1.
        ([0, 1, 5], rows((0, 0.7), (1, 0.9), (2, 0.9)), [0, 1, 1], [4 / 5, 4 / 5, 4 / 15]),
    ]
    for places, weak, weights, thresholds in steps:
        state, learned = step(state, Views(weak, strong, jnp.array(places), progress))
        assert list(learned.weights) == weights
        np.testing.assert_allclose(chosen.thresholds(state, 3), thresholds, 1e-6)


def test_freematch_by_hand():
    chosen = algorithm("freematch", statistics_momentum=0.5)
    step = jax.jit(chosen.step)
    state, places, progress = chosen.init(2, 2), jnp.arange(2), jnp.zeros(())
    first = logits_of([[0.9, 0.1], [0.7, 0.3]]), logits_of([[0.8, 0.2], [0.4, 0.6]])
    state, learned = step(state, Views(*first, places, progress))
    assert list(learned.weights) == [1, 1]
    np.testing.assert_allclose(chosen.thresholds(state, 2), [13 / 20, 7 / 20], 1e-6)
    # h̃ is (3/4, 1/4), and so p̃ / h̃ = (13/15, 7/5).
    fairness = (13 * np.log(3 / 5) + 21 * np.log(2 / 5)) / 34
    np.testing.assert_allclose(learned.penalty, 0.01 * fairness, 1e-5)
    second = logits_of([[0.66, 0.34], [0.2, 0.8]]), logits_of([[0.4, 0.6], [0.25, 0.75]])
    state, learned = step(state, Views(*second, places, progress))
    # τ = (13/20 + 73/100) / 2 = 69/100, p̃ = (54, 46) / 100.
    assert list(learned.weights) == [0, 1]
    np.testing.assert_allclose(chosen.thresholds(state, 2), [69 / 100, 529 / 900], 1e-6)
    # h̃ = (5/8, 3/8), and p̃ / h̃ = (0.864, 92/75); the sample that passes is not of class 0.
    share = 0.864 / (0.864 + 92 / 75)
    np.testing.assert_allclose(learned.penalty, 0.01 * share * np.log(1e-12), 1e-5)


def test_a_sample_that_comes_twice_keeps_its_confident_class():
    method = algorithm("flexmatch")
    sure, unsure = jnp.asarray([9.0, 0.0, 0.0]), jnp.zeros(3)
    for weak in (jnp.stack([sure, unsure]), jnp.stack([unsure, sure])):
        state, _ = method.step(method.init(3, 4), Views(weak, weak, jnp.asarray([2, 2]), 0.0))
        assert state.selected.tolist() == [-1, -1, 0, -1]
    other = jnp.asarray([0.0, 9.0, 0.0])
    weak, places = jnp.stack([sure, other, sure, unsure]), jnp.asarray([2, 2, 1, 2])
    state, _ = method.step(method.init(3, 4), Views(weak, weak, places, 0.0))
    assert state.selected.tolist() == [-1, 0, 1, -1]
    # A CPU writes in order: that nothing is written twice does not show above.
    assert last_of_each(jnp.asarray([2, 3, 2, 1, 3, 4]), 4).tolist() == [4, 4, 2, 1, 3, 4]


def test_a_single_sample_or_equal_ones_have_a_weight():
    for weak in (jnp.asarray([[2.0, 0.0, 0.0]]), jnp.zeros((4, 3))):
        method = algorithm("softmatch", statistics_momentum=0.0)
        places = jnp.arange(len(weak))
        _, pseudo = method.step(method.init(3, 4), Views(weak, weak, places, 0.0))
        assert pseudo.weights.tolist() == [1.0] * len(weak)


def test_a_new_algorithm_gets_options_alone_from_the_settings(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Falling(ALGORITHMS["fixmatch"]):
        steps: int = 5
        momentum: float = 0.5

    monkeypatch.setitem(ALGORITHMS, "falling", Falling)
    settings = Semisupervised(algorithm="falling", threshold=0.8, steps=30, eval_every=30)
    assert settings.method() == Falling(threshold=0.8, steps=5, momentum=0.5)
    assert Semisupervised(statistics_momentum=0.7).method().statistics_momentum == 0.7
