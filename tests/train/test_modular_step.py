import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mirjax
from train.engine.optimizers import adamw_with_warmup
from train.engine.sharding import mesh_of
from train.engine.state import TrainState
from train.engine.step import UsedTerms
from train.engine.trainer import Trainer
from train.modular.network import ModularTransformer
from train.modular.step import TableLoader, make_step, precise_cross_entropy
from train.modular.task import Task
from train.run.lanes import Knobs, Lane

GAPS = [0.0, 1.0, 10.0, 18.0, 30.0, 80.0, -50.0]


def in_float64(logits, labels):
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    others = np.exp(logits - own).sum(1) - 1
    return np.log1p(others)


@pytest.mark.parametrize("gap", GAPS)
def test_small_losses_keep_their_digits(gap):
    logits = np.zeros((3, 5), np.float32)
    labels = np.array([0, 2, 4])
    logits[np.arange(3), labels] = gap
    loss = precise_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    expected = np.log1p(4 * np.exp(-np.float64(gap)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    usual = jax.nn.logsumexp(jnp.asarray(logits), axis=1) - logits[np.arange(3), labels]
    if gap in (18.0, 30.0):  # what this form is for
        assert abs(float(usual[0]) / expected - 1) > 0.01


@pytest.mark.parametrize("gap", GAPS)
def test_gradients_keep_their_digits_too(gap):
    logits = jnp.zeros((1, 5)).at[0, 2].set(gap)
    labels = jnp.array([2])
    gradient = jax.grad(lambda x: precise_cross_entropy(x, labels)[0])(logits)[0]
    small = np.exp(-np.float64(gap))
    each = small / (1 + 4 * small)
    np.testing.assert_allclose(gradient, [each, each, -4 * each, each, each], rtol=1e-4, atol=1e-38)


def test_random_logits():
    logits = 5 * jax.random.normal(jax.random.key(0), (50, 7))
    labels = np.arange(50) % 7
    loss = precise_cross_entropy(logits, jnp.asarray(labels))
    np.testing.assert_allclose(loss, in_float64(logits, labels), rtol=1e-4)


def linear(params, inputs):
    return inputs @ params["w"] + params["b"], inputs, params["w"].T


def trained(knobs, window, steps=(7, 23), *, count=1):
    """The last of so many lanes, which all begin alike, and the terms of the first."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 6)).astype(np.float32)
    labels = rng.integers(0, 4, 20)
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.ones(4)}
    lanes = [Lane(seed, knobs) for seed in range(count)]
    mesh, optimizer = mesh_of(1, 1), adamw_with_warmup(warmup_steps=10)
    zero, values = jnp.zeros((), jnp.int32), Knobs(*(jnp.asarray(v, jnp.float32) for v in knobs))
    opt_state = optimizer(values).init(params)
    state = TrainState(zero, zero, zero, values, zero, params, (), opt_state)
    trainer = Trainer(
        make_step(
            linear, optimizer, UsedTerms.of(lanes), information_steps=window, information_batch=50
        ),
        TableLoader(
            [(lane, Task(inputs, labels, 20, np.arange(len(inputs)))) for lane in lanes], mesh
        ),
        lanes,
        jax.tree.map(lambda x: jnp.stack([x] * count), state),
        mesh,
        steps_per_call=4,
    )
    terms = [trainer.advance(step)[0] for step in steps]
    after = jax.tree.map(lambda x: x[-1], trainer.all_states().params)
    return params, inputs, labels, after, terms


# One lane is not computed by `vmap`.
@pytest.mark.parametrize("count", [1, 2])
def test_steps_are_those_of_adamw_with_a_warm_up_and_decay_on_all(count):
    params, inputs, labels, after, _ = trained(Knobs(0.01, 0.5), (0, 0), count=count)
    schedule = lambda count: 0.01 * jnp.minimum((count + 1) / 10, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.5)
    state = adamw.init(params)

    def loss(p):
        logits = inputs @ p["w"] + p["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    for _ in range(23):
        updates, state = adamw.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after, params)


def test_the_terms_are_on_from_the_first_step_of_the_window_to_before_the_last():
    # Means over steps 0 to 2, 3 to 6, 7 to 9: the window is 3 to 6.
    *_, terms = trained(Knobs(0.01, 0.0, mi_weight=0.1), (3, 7), (3, 7, 10))
    found = [t["step_mutual_information"] for t in terms]
    assert found[0] == found[2] == 0 < found[1]
    *_, partly = trained(Knobs(0.01, 0.0, mi_weight=0.1), (3, 5), (3, 7, 10))
    assert 0 < partly[1]["step_mutual_information"] < 0.7 * found[1]


def test_mutual_information_is_raised_and_the_difference_lowered():
    def last(knobs):
        *_, after, _ = trained(knobs, (0, 200), (200,))
        rng = np.random.default_rng(0)
        inputs = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
        labels = jnp.asarray(rng.integers(0, 4, 20))
        _, features, head = linear(after, inputs)
        return mirjax.interplay(features, head, labels)

    plain = last(Knobs(0.01, 0.0))
    assert (
        last(Knobs(0.01, 0.0, mi_weight=1.0)).mutual_information > plain.mutual_information + 0.01
    )
    assert (
        last(Knobs(0.01, 0.0, ed_weight=1.0)).entropy_difference < plain.entropy_difference - 0.01
    )


def test_gradients_of_a_network_with_a_tiny_loss_are_those_of_float64(x64):
    model = ModularTransformer(7, 16, 4, rngs=nnx.Rngs(0))
    pairs = jnp.asarray(np.stack(np.divmod(np.arange(49), 7), axis=1).astype(np.int32))
    graphdef, params = nnx.split(model)
    logits = model(pairs)[0]
    labels = jnp.argmax(logits, axis=1)
    ordered = jnp.sort(logits, axis=1)
    # Sharp enough for losses of about 1e-8.
    scale = float(18 / jnp.median(ordered[:, -1] - ordered[:, -2]))
    losses = precise_cross_entropy(scale * logits, labels)
    keep = jnp.flatnonzero((losses < 1e-6) & (losses > 1e-12))
    assert len(keep) > 3

    def gradient(dtype, loss):
        def mean(p):
            return jnp.mean(loss(scale * nnx.merge(graphdef, p)(pairs)[0], labels)[keep])

        found = jax.jit(jax.grad(mean))(jax.tree.map(lambda x: x.astype(dtype), params))
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(found)])

    usual = optax.softmax_cross_entropy_with_integer_labels
    exact = gradient(jnp.float64, usual)
    ours, theirs = (gradient(jnp.float32, f) for f in (precise_cross_entropy, usual))

    def error(found):
        return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))

    assert error(ours) < 1e-3
    assert error(theirs) > 3e-3
