"""The network as a pure function, and the state that a training step carries."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from train.models import builder
from train.settings import Settings


class Outputs(NamedTuple):
    """What a forward pass gives."""

    logits: Array
    features: Array
    head: Array
    """`[num_classes, d]`, one class a row."""
    rest: Any
    """The state that is not trained (batch statistics), updated in training."""


class TrainState(NamedTuple):
    """Everything that a step changes, of one seed; stacked along a first axis for several."""

    seed: Array
    step: Array
    params: Any
    rest: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Network:
    """A Flax model taken apart, and the normalisation of its input."""

    graphdef: Any
    build: Any
    width: int
    """Of the features."""
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, settings: Settings, data: Any) -> "Network":
        """The network that the settings name, for images like those of `data`."""
        build = builder(
            settings.model,
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            batch_norm_momentum=settings.batch_norm_momentum,
        )
        abstract: Any = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        graphdef, _, _ = nnx.split(abstract, nnx.Param, ...)
        return cls(
            graphdef,
            build,
            abstract.head.in_features,
            np.asarray(data.mean, np.float32),
            np.asarray(data.std, np.float32),
        )

    def init(self, key: Array) -> tuple[Any, Any]:
        """Initial `(params, rest)`."""
        _, params, rest = nnx.split(self.build(nnx.Rngs(key)), nnx.Param, ...)
        return params, rest

    def apply(self, params: Any, rest: Any, images: Array, *, train: bool) -> Outputs:
        """Forward pass on uint8 images `[n, h, w, c]`."""
        x = (images.astype(jnp.float32) / 255 - self.mean) / self.std
        # copy=True: batch norm writes its statistics, which must not touch the arguments.
        model = nnx.merge(self.graphdef, params, rest, copy=True)
        logits, features = model(x, train=train)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return Outputs(logits, features, model.head.kernel[...].T, rest)

    def head(self, params: Any, rest: Any) -> tuple[Array, Array]:
        """Weights `[num_classes, d]` and bias `[num_classes]` of the last layer."""
        model = nnx.merge(self.graphdef, params, rest, copy=True)
        return model.head.kernel[...].T, model.head.bias[...]


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """SGD with momentum, cosine decay to 0, weight decay on kernels."""
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.chain(
        optax.add_decayed_weights(
            settings.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
        optax.sgd(schedule, momentum=settings.momentum),
    )


def initial_state(
    network: Network, transform: optax.GradientTransformation, seeds: Array
) -> TrainState:
    """States of all `seeds`, stacked. Each depends on its own seed alone."""

    def one(seed: Array) -> TrainState:
        params, rest = network.init(jax.random.fold_in(jax.random.key(seed), 0))
        return TrainState(seed, jnp.zeros((), jnp.int32), params, rest, transform.init(params))

    return jax.jit(jax.vmap(one))(seeds)
