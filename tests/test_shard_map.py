"""Everything traces inside `jax.shard_map`, with its check of what varies over devices."""

import json

import jax
import pytest

from tests.simulated import printed_on_devices

pytestmark = pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="this JAX has no jax.shard_map"
)


def test_every_function_and_gradient_is_traced_inside_shard_map():
    printed_on_devices("tests.shard_map_script", 2, "trace")


@pytest.mark.slow
def test_values_and_gradients_inside_shard_map():
    for name, (value, gradient) in json.loads(
        printed_on_devices("tests.shard_map_script", 8)
    ).items():
        assert value < 1e-4, name
        assert gradient < 1e-3, name
