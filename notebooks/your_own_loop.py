# %% [markdown]
# # In your own loop: Flax NNX, Flax Linen, Equinox
#
# What mirjax needs are three arrays: the features that the head is applied to, the head with one class a row, and integer labels. So putting it into a loop takes
# few lines in any library. This notebook trains the same small network on digits in three loops, plain and with both losses. Lines that are there for mirjax are marked with `# <-`.
#
# 1. The network returns its features beside the logits.
# 2. The objective adds the two losses, and returns MIR and HDR to be logged.
# 3. The whole test set is measured with `ClassMoments`, batch by batch.

# %%
# Installs what is missing, and nothing that is there: JAX, 0.5.3 or newer, stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {
    "mirjax": MIRJAX,
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "optax": "optax",
    "flax": "flax",
    "equinox": "equinox",
}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import collections
import time

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import mirjax
from mirjax import losses, plot, theory

# %% [markdown]
# ## What all loops share
#
# The digits of scikit-learn, 1,437 to train and 360 to test, in batches of 128. The last batch of the test set is padded, with weight 0: so all batches have one shape, and
# nothing is compiled twice. The coefficients of the two losses are an *argument* of the step, so that the loop without the losses is the same compiled step
# with both at 0.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.data[order] / 16).astype(np.float32)
labels = digits.target[order].astype(np.int32)
train_x, train_y, test_x, test_y = images[:1437], labels[:1437], images[1437:], labels[1437:]
INPUTS, HIDDEN, WIDTH, CLASSES = 64, 128, 32, 10
BATCH, EPOCHS = 128, 15

PLAIN = jnp.array([0.0, 0.0])
WITH_LOSSES = jnp.array([0.3, 0.3])  # of the mutual information, of the entropy difference
optimizer = optax.adamw(2e-3, weight_decay=1e-4)
traces = collections.Counter()  # how often each step was compiled


def training_batches(epoch):
    """Full batches in an order that depends on the epoch."""
    chosen = np.random.default_rng(epoch).permutation(len(train_y))
    for start in range(0, len(chosen) - BATCH + 1, BATCH):
        i = chosen[start : start + BATCH]
        yield train_x[i], train_y[i]


def test_batches():
    """All of the test set in batches of one shape: images, labels, weights."""
    for start in range(0, len(test_y), BATCH):
        x, y = test_x[start : start + BATCH], test_y[start : start + BATCH]
        rest = BATCH - len(y)
        yield (
            np.pad(x, ((0, rest), (0, 0))),
            np.pad(y, (0, rest)),
            np.pad(np.ones(len(y), np.float32), (0, rest)),
        )


# %% [markdown]
# The cross-entropy with the two losses, and what is to be logged. `mutual_information_loss` is *minus* the mutual information: added to the loss, MI rises. The head has one class a row; the kernels of Flax
# are the transpose of that, the weight of Equinox is not. (`found.mutual_information` and `found.entropy_difference` are the same two terms, and take one decomposition less. The losses can
# stop the gradient of one side, with `stop_gradient=`.)


# %%
def total_loss(logits, features, head, y, coefficients):
    """The loss of a batch, and its metrics."""
    ce = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    mi = losses.mutual_information_loss(features, head, y)  # <-
    ed = losses.entropy_difference_loss(features, head, y)  # <-
    found = mirjax.interplay(features, head, y)  # <-
    total = ce + coefficients[0] * mi + coefficients[1] * ed  # <-
    return total, {"CE": ce, "MIR": found.mir, "HDR": found.hdr}


# %% [markdown]
# The whole test set: `ClassMoments` adds up the batches, and its `interplay` is that of all 360 images, not a mean over batches. `forward` gives logits and features of a batch.

# %%
add = jax.jit(mirjax.ClassMoments.update)


def evaluate(forward, head):
    """Accuracy, MIR and HDR of the whole test set."""
    moments, correct = mirjax.ClassMoments.zeros(CLASSES, WIDTH), 0.0
    for x, y, weights in test_batches():
        logits, features = forward(x)
        moments = add(moments, features, y, weights)
        correct += jnp.sum(weights * (jnp.argmax(logits, axis=1) == y))
    whole = moments.interplay(head)
    return {
        "accuracy": float(correct) / len(test_y),
        "MIR": float(whole.mir),
        "HDR": float(whole.hdr),
        "n": int(whole.weight),
    }


# %% [markdown]
# ## Flax NNX


# %%
class NNXNetwork(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        features = nnx.tanh(self.second(nnx.relu(self.first(x))))
        return self.head(features), features  # <- the features too


@nnx.jit
def nnx_step(model, state, x, y, coefficients):
    traces["Flax NNX"] += 1

    def objective(model):
        logits, features = model(x)
        head = model.head.kernel[...].T  # <- one class a row
        return total_loss(logits, features, head, y, coefficients)

    (_, metrics), gradient = nnx.value_and_grad(objective, has_aux=True)(model)
    state.update(model, gradient)
    return metrics


nnx_forward = nnx.jit(lambda model, x: model(x))


def train_nnx(coefficients):
    model = NNXNetwork(rngs=nnx.Rngs(0))
    state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    for epoch in range(EPOCHS):
        for x, y in training_batches(epoch):
            metrics = nnx_step(model, state, x, y, coefficients)
        yield metrics, evaluate(lambda x: nnx_forward(model, x), model.head.kernel[...].T)


# %% [markdown]
# ## Flax Linen


# %%
class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        features = nn.tanh(nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(x))))
        return nn.Dense(CLASSES, name="head")(features), features  # <- the features too


linen = LinenNetwork()


@jax.jit
def linen_step(params, state, x, y, coefficients):
    traces["Flax Linen"] += 1

    def objective(params):
        logits, features = linen.apply(params, x)
        head = params["params"]["head"]["kernel"].T  # <- one class a row
        return total_loss(logits, features, head, y, coefficients)

    (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, metrics


linen_forward = jax.jit(linen.apply)


def train_linen(coefficients):
    params = linen.init(jax.random.key(0), jnp.zeros((1, INPUTS)))
    state = optimizer.init(params)
    for epoch in range(EPOCHS):
        for x, y in training_batches(epoch):
            params, state, metrics = linen_step(params, state, x, y, coefficients)
        head = params["params"]["head"]["kernel"].T
        yield metrics, evaluate(lambda x, params=params: linen_forward(params, x), head)


# %% [markdown]
# ## Equinox
#
# A network of Equinox is a function of one sample. The metrics need the batch, so they stand outside of the `vmap`.


# %%
class EquinoxNetwork(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(INPUTS, HIDDEN, key=keys[0])
        self.second = eqx.nn.Linear(HIDDEN, WIDTH, key=keys[1])
        self.head = eqx.nn.Linear(WIDTH, CLASSES, key=keys[2])

    def __call__(self, x):
        features = jnp.tanh(self.second(jax.nn.relu(self.first(x))))
        return self.head(features), features  # <- the features too


@eqx.filter_jit
def equinox_step(model, state, x, y, coefficients):
    traces["Equinox"] += 1

    def objective(model):
        logits, features = jax.vmap(model)(x)
        return total_loss(logits, features, model.head.weight, y, coefficients)  # <- no transpose

    (_, metrics), gradient = eqx.filter_value_and_grad(objective, has_aux=True)(model)
    updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, metrics


equinox_forward = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))


def train_equinox(coefficients):
    model = EquinoxNetwork(jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    for epoch in range(EPOCHS):
        for x, y in training_batches(epoch):
            model, state, metrics = equinox_step(model, state, x, y, coefficients)
        yield metrics, evaluate(lambda x, model=model: equinox_forward(model, x), model.head.weight)


# %% [markdown]
# ## Six runs
#
# Each loop gives the metrics of the last batch of an epoch, and those of the whole test set.

# %%
loops = {"Flax NNX": train_nnx, "Flax Linen": train_linen, "Equinox": train_equinox}
runs = {}
for name, train in loops.items():
    for kind, coefficients in (("plain", PLAIN), ("both losses", WITH_LOSSES)):
        start = time.perf_counter()
        runs[name, kind] = list(train(coefficients))
        print(f"{name}, {kind}: {EPOCHS} epochs in {time.perf_counter() - start:.1f} s")
steps = EPOCHS * sum(1 for _ in training_batches(0))
print(
    f"\n{2 * steps} steps each, compiled:",
    ", ".join(f"{name} {k} time" for name, k in traces.items()),
)
assert all(k == 1 for k in traces.values())

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for colour, name in enumerate(loops):
    for kind, style in (("plain", ":"), ("both losses", "-")):
        tests = [test for _, test in runs[name, kind]]
        for ax, metric in zip(axes, ("MIR", "HDR"), strict=True):
            look = {"label": f"{name}, {kind}", "colour": f"C{colour}", "style": style}
            plot.curve(range(1, 1 + EPOCHS), [test[metric] for test in tests], ax=ax, **look)
plot.levels({"at collapse": theory.collapsed_mir(CLASSES)}, ax=axes[0])
for ax, metric in zip(axes, ("MIR", "HDR"), strict=True):
    ax.set_title(f"{metric} of the test set, n = {len(test_y)}")
    ax.set_xlabel("epoch")
    ax.set_xticks(range(0, 1 + EPOCHS, 5))
axes[1].legend(fontsize="small")
axes[0].legend(*([part[-1]] for part in axes[0].get_legend_handles_labels()))
plt.show()

# %% [markdown]
# The table: the last epoch, one run each. The libraries start from weights of their own, so the rows of one kind differ by what another seed would change too.

# %%
print(f"{'':<26}{'accuracy':>9}{'MIR':>7}{'HDR':>7}{'n':>5}   MIR of the last batch (n = {BATCH})")
for (name, kind), run in runs.items():
    batch, test = run[-1]
    print(
        f"{name + ', ' + kind:<26}{test['accuracy']:9.3f}{test['MIR']:7.3f}{test['HDR']:7.3f}{test['n']:5}"
        f"{batch['MIR']:11.3f}"
    )
print(f"{'at neural collapse':<26}{'':9}{theory.collapsed_mir(CLASSES):7.3f}{0:7.3f}")

# %% [markdown]
# With the losses MIR of the test set is higher in all three libraries, and HDR is small from the first epochs on; at the end it is small without them too, if larger (0.02 to 0.04 against 0.01). Whether that is good for accuracy is
# another question, which one run cannot answer; see [the results](../results/README.md) over several seeds. MIR of a batch is above that of the set, in every row.
#
# To use it in a loop of your own, copy the marked lines. [In a training loop](../docs/howto/training.md) has masks, pseudo-labels, precision and several seeds.
