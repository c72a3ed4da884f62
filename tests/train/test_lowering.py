"""Every step and evaluation of the commands is lowered for TPUs and NVIDIA GPUs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lowering import DECOMPOSITIONS, PLATFORMS, assert_runs_there, lowered
from train import grokking, semisupervised
from train.connectivity import Statistics, interpolate
from train.data.types import from_arrays
from train.engine.loader import loader_of
from train.engine.sharding import mesh_of
from train.engine.state import Network, initial_state
from train.engine.step import TermForm, UsedTerms
from train.engine.trainer import make_call
from train.evaluation.evaluator import Evaluator
from train.evaluation.layers import LayerEvaluator
from train.modular.measure import TableEvaluator
from train.modular.network import ModularNetwork
from train.run.lanes import lanes_of, take_lane
from train.ssl.algorithms import ALGORITHMS
from train.ssl.pool import PoolLoader, pool_of
from train.ssl.settings import Semisupervised
from train.supervised import make_step, optimizer_of

FORMS = {
    "plain": ({"mi_weight": 0.0, "ed_weight": 0.0}, TermForm()),
    "terms": ({}, TermForm()),
    "order 2": ({}, TermForm(2)),
    "debiased": ({}, TermForm(2, True)),
}
MODELS = ("mlp", "conv", "wrn-10-1")


def step_of(settings, data, form=TermForm()):  # noqa: B008
    """The call of a supervised run, and what it is called with."""
    lanes, mesh = lanes_of(settings), mesh_of(1, settings.batch_size)
    network, optimizer = Network.of(settings, data), optimizer_of(settings)
    step = make_step(network, optimizer, UsedTerms.of(lanes), form=form, augment=True)
    loader = loader_of(data.train, settings.batch_size, mesh)
    call = make_call(jax.vmap(step), loader, looped=True, mesh=mesh)
    return call, (initial_state(network, optimizer, lanes), *loader.example(lanes), 1)


def assert_decomposes_nothing(text, platform):
    """The terms of a step are products on an accelerator: what is left has a side of classes."""
    assert_runs_there(text, platform)
    assert not any(f"@{name}(" in text for name in DECOMPOSITIONS[platform])


@pytest.fixture
def images():
    """Images that are large enough to be cropped."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (40, 8, 8, 1)).astype(np.uint8), np.arange(40) % 3
    return from_arrays("noise", images, labels, images, labels)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("form", FORMS)
def test_supervised_steps(form, platform, images, settings):
    weights, shape = FORMS[form]
    call, arguments = step_of(dataclasses.replace(settings, **weights), images, shape)
    text = lowered(call, *arguments, platform=platform)
    assert_runs_there(text, platform)
    if form != "terms":
        assert_decomposes_nothing(text, platform)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("model", MODELS[1:])
def test_networks_in_half_precision(model, platform, images, settings):
    one = dataclasses.replace(settings, model=model, precision="bfloat16", mi_weight=0.0)
    call, arguments = step_of(dataclasses.replace(one, ed_weight=0.0), images)
    assert_decomposes_nothing(lowered(call, *arguments, platform=platform), platform)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_semisupervised_steps(name, platform, tiny, tmp_path):
    on = ("labelled", "weak") if ALGORITHMS[name].uses else ("labelled",)
    settings = Semisupervised(
        algorithm=name, information_on=on, labels=6, batch_size=6, unlabelled_ratio=2, steps=4, eval_every=4,
        mi_weight=0.1, order=2, debiased=True, out=tmp_path / "run",
    )  # fmt: skip
    pool, lanes, mesh = pool_of(settings, tiny, 6), lanes_of(settings), mesh_of(1, 6)
    _, step, states = semisupervised.start(settings, pool, lanes)
    loader = PoolLoader(pool, 6, settings.unlabelled_batch(), mesh)
    call = make_call(jax.vmap(step), loader, looped=True, mesh=mesh)
    text = lowered(call, states, *loader.example(lanes), 1, platform=platform)
    assert_decomposes_nothing(text, platform)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_grokking_steps_and_tables(platform, tmp_path):
    settings = grokking.PRESETS["smoke"]
    lanes = grokking.lanes_of_kinds(settings)[-2:]
    tasks = [grokking.task_of(settings, lane) for lane in lanes]
    network = ModularNetwork(settings.modulus, settings.width, settings.heads)
    optimizer = grokking.adamw_with_warmup(warmup_steps=10)
    states, mesh = initial_state(network, optimizer, lanes), mesh_of(1, 1)
    trainer = grokking.make_trainer(settings, network, optimizer, lanes, tasks, states, mesh)
    sources, indices = trainer._batches[0](0, 1)
    call = lowered(trainer._call, states, sources, indices, 1, platform=platform)
    assert_runs_there(call, platform)
    evaluate = TableEvaluator(network, lanes, tasks, tmp_path)
    pairs = np.stack([task.pairs for task in tasks])
    text = lowered(evaluate._forward, states.params, pairs, platform=platform)
    assert_decomposes_nothing(text, platform)
    assert_decomposes_nothing(
        lowered(evaluate._weights, states.params, platform=platform), platform
    )


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("held", [True, False])
def test_evaluations(held, platform, tiny, settings):
    settings = dataclasses.replace(settings, memory_limit_mib=100 * held)
    network, mesh = Network.of(settings, tiny), mesh_of(1, settings.batch_size)
    states = initial_state(network, optimizer_of(settings), lanes_of(settings))
    evaluate = Evaluator(network, tiny.test, tiny.num_classes, settings, mesh)
    assert evaluate._held == held
    tally = evaluate._start(len(states.seed))
    (batch, *_) = evaluate._batches(None)
    parts = batch["image"], batch["label"], batch["weight"]
    texts = [lowered(evaluate._add[False], tally, states, *parts, platform=platform)]
    state, of_lane = take_lane((states, tally), 0)
    head, bias = network.head(state.params, state.rest)
    if held:
        rows, labels = jnp.zeros((25, network.width)), tiny.test.labels
        arguments = rows, labels, head, bias
        texts.append(lowered(evaluate._of_features, *arguments, platform=platform))
    else:
        arguments = tally.moments, states, batch["image"], batch["weight"]
        texts.append(lowered(evaluate._agreeing[False], *arguments, platform=platform))
        arguments = of_lane.moments, head, jnp.zeros(())
        texts.append(lowered(evaluate._of_moments, *arguments, platform=platform))
    for text in texts:
        assert_runs_there(text, platform)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_layers_and_paths(platform, tiny, settings):
    settings = dataclasses.replace(settings, model="wrn-10-1")
    network = Network.of(settings, tiny)
    states = initial_state(network, optimizer_of(settings), lanes_of(settings))
    state = take_lane(states, 0)
    evaluate = LayerEvaluator(network, tiny.test, tiny.num_classes, settings)
    images, labels = jnp.asarray(tiny.test.images), jnp.asarray(tiny.test.labels)
    layers = network.layers(state.params, state.rest, images)
    features, head = next(iter(layers.values())), network.head(state.params, state.rest)[0]
    path = interpolate(state, state, [0.0, 0.5, 1.0])
    recompute = Statistics(network, tiny.train, momentum=0.9, batch_size=16, batches=2)
    total = jax.tree.map(jnp.zeros_like, path.rest)
    for function, arguments in (
        (evaluate._forward, (state, images)),
        (evaluate._mean_over_batches, (layers, head[labels])),
        (evaluate._nc1, (features, labels)),
        (evaluate._pairs, (features, head, labels)),
        (evaluate._spectra, (features, labels)),
        (lambda a, b: interpolate(a, b, [0.0, 0.5, 1.0]).params, (state, state)),
        (recompute._add, (total, path.params, total, images)),
    ):
        assert_runs_there(lowered(function, *arguments, platform=platform), platform)
