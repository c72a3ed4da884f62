"""The network as pure functions, and the state that a training step uses and changes."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from train.data.types import ImageData
from train.engine.optimizers import Optimizer
from train.models import builder
from train.run.lanes import INIT, Knobs, Lane, stream_key
from train.run.settings import ImageSettings


class Outputs(NamedTuple):
    """The results of a forward pass."""

    logits: Array
    features: Array
    head: Array
    """Weights of the last layer `[num_classes, d]`, one class per row."""
    rest: Any
    """The state that is not trained (batch statistics), which a pass in training updates."""


class TrainState(NamedTuple):
    """Everything that a step of one lane uses and changes; lanes are stacked along axis 0."""

    seed: Array
    copy: Array
    branch_step: Array
    knobs: Knobs
    step: Array
    params: Any
    rest: Any
    opt_state: Any
    masks: Any = None
    """Booleans like `params`, False for weights that are held at zero. None without masks."""
    ema_params: Any = None
    """Exponential moving average of `params`. None if there is none."""
    algorithm_state: Any = None
    """The state of a semi-supervised algorithm. None if there is none."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A Flax model as pure functions of its parameters, and the normalisation of its images."""

    graphdef: nnx.GraphDef
    build: Callable[[nnx.Rngs], nnx.Module]
    width: int
    """Width of the features."""
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, settings: ImageSettings, data: ImageData) -> "Network":
        """The network that the settings name, for images like those of `data`."""
        build = builder(
            settings.model,
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            batch_norm_momentum=settings.batch_norm_momentum,
            dtype=jnp.dtype(settings.precision),
        )
        # The structure alone: no weights are made.
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
        model = self._model(params, rest)
        logits, features = model(self._normalised(images), train=train)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return Outputs(logits, features, model.head.kernel[...].T, rest)

    def layers(self, params: Any, rest: Any, images: Array) -> OrderedDict[str, Array]:
        """Activations `[n, d]` of every layer in evaluation, with maps averaged over their
        positions.

        The order is that of the network, even through `jax.jit`, which sorts a plain dictionary.
        """
        activations = self._model(params, rest).activations(self._normalised(images), train=False)
        return OrderedDict(
            (name, jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1))))
            for name, x in activations.items()
        )

    def head(self, params: Any, rest: Any) -> tuple[Array, Array]:
        """Weights `[num_classes, d]` and bias `[num_classes]` of the last layer."""
        model = self._model(params, rest)
        return model.head.kernel[...].T, model.head.bias[...]

    def _model(self, params: Any, rest: Any) -> Any:
        # A copy, since batch norm writes its statistics, which must not reach the arguments.
        return nnx.merge(self.graphdef, params, rest, copy=True)

    def _normalised(self, images: Array) -> Array:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.std


class Initialised(Protocol):
    """A network that can make its initial `(params, rest)`."""

    def init(self, key: Array) -> tuple[Any, Any]: ...


def initial_state(network: Initialised, optimizer: Optimizer, lanes: Sequence[Lane]) -> TrainState:
    """Initial states of all lanes, stacked. The weights of a lane depend on its seed alone."""

    def one(seed: Array, copy: Array, branch_step: Array, knobs: Knobs) -> TrainState:
        # Copy 0 for all: copies of a seed start from the same weights.
        params, rest = network.init(stream_key(seed, jnp.zeros_like(copy), INIT))
        step = jnp.zeros((), jnp.int32)
        opt_state = optimizer(knobs).init(params)
        return TrainState(seed, copy, branch_step, knobs, step, params, rest, opt_state)

    names = ("seed", "copy", "branch_step")
    integers = [jnp.asarray([getattr(lane, name) for lane in lanes]) for name in names]
    knobs = Knobs(
        *(jnp.asarray(v, jnp.float32) for v in zip(*(x.knobs for x in lanes), strict=True))
    )
    return jax.jit(jax.vmap(one))(*integers, knobs)
