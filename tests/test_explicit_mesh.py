"""The same numbers on explicit axes of a mesh, inside and outside of `jax.set_mesh`."""

import json

import jax
import pytest

from tests.simulated import printed_on_devices


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(jax.sharding, "auto_axes"), reason="this JAX cannot leave explicit axes"
)
def test_every_function_on_explicit_axes():
    errors = json.loads(printed_on_devices("tests.explicit_script", 2))
    assert len(errors) > 25
    for name, size in errors.items():
        assert size < 1e-3, (name, size)
