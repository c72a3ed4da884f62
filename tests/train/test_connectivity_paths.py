import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.connectivity import Statistics, barrier, interpolate
from train.data.batches import stream
from train.data.types import from_arrays
from train.engine.state import Network, initial_state
from train.run.lanes import lanes_of
from train.supervised import optimizer_of

POINTS = [0.0, 0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def pair():
    """Two small convolutional networks with batch statistics of their own, and their data."""
    from train.supervised import Supervised

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 8, 8, 1)).astype(np.uint8)
    data = from_arrays("noise", images, np.arange(48) % 3, images[:6], np.arange(6) % 3)
    settings = Supervised(model="conv", seeds=2, eval_batch=12)
    network = Network.of(settings, data)
    states = jax.jit(lambda: initial_state(network, optimizer_of(settings), lanes_of(settings)))()
    rest = jax.tree.map(
        lambda x: x + 0.1 + jnp.abs(jnp.sin(jnp.arange(x.size).reshape(x.shape))), states.rest
    )
    states = states._replace(rest=rest)
    one, two = (jax.tree.map(lambda x, i=i: x[i], states) for i in range(2))
    return settings, network, data, one, two


def test_the_ends_are_the_two_networks_bit_for_bit(pair):
    _, _, _, one, two = pair
    path = interpolate(one, two, POINTS)
    for place, end in ((0, one), (-1, two)):
        found = jax.tree.map(lambda x, p=place: x[p], (path.params, path.rest))
        jax.tree.map(np.testing.assert_array_equal, found, (end.params, end.rest))


def test_points_between_are_weighted_means(pair):
    _, _, _, one, two = pair
    path = interpolate(one, two, POINTS)
    for name in ("params", "rest"):
        jax.tree.map(
            lambda x, a, b: np.testing.assert_allclose(
                x[1], 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-7
            ),
            *(getattr(state, name) for state in (path, one, two)),
        )


@pytest.mark.parametrize("momentum", [0.9, 0.999])
def test_recomputed_statistics_are_means_over_batches(pair, momentum):
    settings, _, data, one, two = pair
    settings = dataclasses.replace(settings, batch_norm_momentum=momentum)
    network = Network.of(settings, data)
    path = interpolate(one, two, [0.5, 1.0])
    statistics = Statistics(
        network, data.train, momentum=momentum, batch_size=settings.eval_batch, batches=4
    )
    found = statistics(path)
    jax.tree.map(np.testing.assert_array_equal, found.params, path.params)
    # The first layer by hand, over the same four batches of twelve.
    model = nnx.merge(network.graphdef, two.params, two.rest)
    means, variances = [], []
    for batch in itertools.islice(stream(data.train, batch_size=12, seed=0), 4):
        maps = model.convs[0]((jnp.asarray(batch["image"]) / 255.0 - network.mean) / network.std)
        means.append(maps.mean((0, 1, 2)))
        variances.append(maps.var((0, 1, 2)))
    at_end = nnx.merge(network.graphdef, *jax.tree.map(lambda x: x[1], (found.params, found.rest)))
    norm = at_end.norms[0]
    np.testing.assert_allclose(norm.mean[...], np.mean(means, 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.var[...], np.mean(variances, 0), rtol=1e-3, atol=1e-5)


def test_the_barrier_is_the_height_above_the_line_between_the_ends():
    assert barrier([0, 0.5, 1], [1.0, 4.0, 2.0]) == pytest.approx(2.5)
    assert barrier([0, 0.5, 1], [1.0, 1.2, 2.0]) == 0
    assert barrier([0, 0.25, 1], [0.0, 1.0, 4.0]) == 0
