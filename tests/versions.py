"""What the tests use of JAX that older versions have in another place."""

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # before 0.8
    from jax.experimental import enable_x64 as enable_x64
