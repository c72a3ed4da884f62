# %% [markdown]
# # Training dynamics
#
# A small network learns the digits of scikit-learn. While it does, this notebook draws accuracy, MIR, HDR and
# NC1, on training and test set, of batches of 64 and of whole sets. The control is the same network on the same
# images with shuffled labels: it can memorise them, and there is nothing to generalise.
#
# Notation: features `Z` are `[n, d]`, the head `W` is `[C, d]`, labels `y` are `[n]`. MIR and HDR compare the
# Gram matrix of the normalised features with that of the head rows `W[y]`
# (Song et al. 2024, [arXiv 2406.03999](https://arxiv.org/abs/2406.03999)).

# %%
# Installs what is missing, and nothing that is there: JAX, 0.5.3 or newer, stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {
    "mirjax": MIRJAX,
    "flax": "flax>=0.12.8",
    "optax": "optax",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "IPython": "ipython",
}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import display
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mirjax
from mirjax import plot

CLASSES, WIDTH, BATCH, SEEDS, STEPS = 10, 32, 64, 3, 4000

# %% [markdown]
# ## Data and network
#
# 1,797 images of 8 × 8 pixels, a fifth of them to test. For the control the labels are shuffled, those of
# the test set too.

# %%
images, digits = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = (
    jnp.asarray(part)
    for part in train_test_split(
        (images / 16).astype(np.float32), digits, test_size=0.2, random_state=0, stratify=digits
    )
)


class Network(nnx.Module):
    """64 pixels, a hidden layer of 256, features of `WIDTH`, a linear head."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 256, rngs=rngs)
        self.second = nnx.Linear(256, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        features = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(features), features


graph = nnx.graphdef(Network(rngs=nnx.Rngs(0)))
optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))


def cross_entropy(params, x, y):
    logits, _ = nnx.merge(graph, params)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


print(f"{len(train_x)} images to train on, {len(test_x)} to test, JAX on {jax.default_backend()}")

# %% [markdown]
# ## Lanes
#
# A lane is one network with its labels and its own draws. Three seeds with true labels and three with shuffled
# ones make six lanes, which `jax.vmap` trains at once. All steps between two evaluations are one call: the
# bounds of the loop are traced numbers, so evaluations may lie as far apart as we like without a new compilation.


# %%
def start(seed, random):
    key = jax.random.key(seed)
    params = nnx.state(Network(rngs=nnx.Rngs(key)), nnx.Param)
    # The same order for the true and the random labels of a seed.
    labels = [
        jnp.where(random, jax.random.permutation(jax.random.fold_in(key, 1), y), y)
        for y in (train_y, test_y)
    ]
    return {"key": key, "params": params, "opt": optimizer.init(params), "labels": labels}


def step(number, lane):
    key = jax.random.fold_in(lane["key"], number)
    rows = jax.random.randint(key, (BATCH,), 0, len(train_x))
    gradient = jax.grad(cross_entropy)(lane["params"], train_x[rows], lane["labels"][0][rows])
    updates, opt = optimizer.update(gradient, lane["opt"], lane["params"])
    return lane | {"params": optax.apply_updates(lane["params"], updates), "opt": opt}


@jax.jit
def train(lanes, first, last):
    return jax.lax.fori_loop(first, last, jax.vmap(step, in_axes=(None, 0)), lanes)


seeds = jnp.tile(jnp.arange(SEEDS), 2)
is_random = jnp.repeat(jnp.array([False, True]), SEEDS)
lanes = jax.vmap(start)(seeds, is_random)

# %% [markdown]
# ## Measurement
#
# `ClassMoments` holds the statistics of a whole set. From them follow MIR and HDR without an n × n matrix, the
# MIR of the class means, and NC1, the variance within classes over that between them. The batch values are the
# mean over disjoint batches of 64, as published; the debiased MIR, of order 2, does not depend on the batch.

# %%
PARTS = ("train", "test")


def of_moments(moments, head):
    whole = moments.interplay(head)
    return {
        "mir": whole.mir,
        "hdr": whole.hdr,
        "mir_debiased": moments.debiased_interplay(head).mir,
        "class_mir": moments.class_interplay(head).mir,
        "nc1": moments.collapse(head).nc1,
    }


@jax.jit
def measure(lanes):
    def one(lane):
        model = nnx.merge(graph, lane["params"])
        head = model.head.kernel[...].T
        accuracy, moments, batches, counts = [], [], [], []
        for x, y in zip((train_x, test_x), lane["labels"], strict=True):
            logits, features = model(x)
            accuracy.append(jnp.mean(jnp.argmax(logits, -1) == y))
            moments.append(mirjax.ClassMoments.zeros(CLASSES, WIDTH).update(features, y))
            counts.append(len(x) // BATCH)
            size = counts[-1] * BATCH
            batches.append((features[:size].reshape(-1, BATCH, WIDTH), y[:size].reshape(-1, BATCH)))
        # Both sets go through the same code, which is compiled once: that takes longer than to run it.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)
        found = jax.lax.map(lambda moments: of_moments(moments, head), stacked)
        z, y = (jnp.concatenate(leaves) for leaves in zip(*batches, strict=True))
        mir = mirjax.interplay(z, head, y).mir
        of_batches = jnp.stack([mir[: counts[0]].mean(), mir[counts[0] :].mean()])
        return found | {"accuracy": jnp.stack(accuracy), "mir_batch": of_batches}

    # [lanes, parts] for each name; one lane after the other, which needs less memory and no more time.
    return jax.lax.map(one, lanes)


# %% [markdown]
# ## Train, and watch
#
# The picture below is redrawn in place after each evaluation; the stored notebook keeps the last state. Bands
# are the mean ± standard deviation over the seeds. The dotted lines are the values at neural collapse for ten balanced classes,
# where the features of a class are one point and class means and head rows form a simplex.

# %%
PANELS = {
    "accuracy": "accuracy",
    "mir": "MIR, whole set",
    "mir_batch": f"MIR, batches of {BATCH}",
    "mir_debiased": "MIR debiased (order 2)",
    "hdr": "HDR, whole set",
    "class_mir": "MIR of class means and head",
    "nc1": "log10 of NC1",
}
LEVELS = {
    "mir": mirjax.theory.collapsed_mir(CLASSES),
    "mir_debiased": mirjax.theory.collapsed_mir(CLASSES, order=2),
    "class_mir": mirjax.theory.collapsed_mir(CLASSES),
    "hdr": 0.0,
}


def draw(axes, steps, records):
    for (name, title), ax in zip(PANELS.items(), axes.flat, strict=False):
        ax.clear()
        for group, colour in (("true", "tab:blue"), ("random", "tab:red")):
            rows = slice(0, SEEDS) if group == "true" else slice(SEEDS, None)
            for part, style in (("test", "-"), ("train", "--")):
                column = PARTS.index(part)
                values = np.array([record[name][rows, column] for record in records])
                if name == "nc1":  # over orders of magnitude a spread is one of logarithms
                    values = np.log10(values)
                # Step 0 has no place on a logarithmic axis: it is drawn at 1.
                plot.curve(
                    np.maximum(steps, 1),
                    values.mean(1),
                    values.std(1, ddof=1),
                    label=f"{group} labels, {part}",
                    colour=colour,
                    style=style,
                    ax=ax,
                )
        ax.set(title=title, xscale="log", xlim=(1, STEPS))
        if name in LEVELS:
            plot.levels({"at collapse": LEVELS[name]}, ax=ax)
            ax.legend(handles=ax.lines[-1:], fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    axes[0, 0].legend(fontsize=7)


evaluations = np.geomspace(2, STEPS, 12).round().astype(int)
figure, axes = plt.subplots(2, 4, figsize=(14, 5.6), dpi=80, layout="constrained")
axes[1, 3].set_visible(False)
plt.close(figure)  # else it is shown a second time at the end of the cell
steps, records = [0], [jax.device_get(measure(lanes))]
screen = display(figure, display_id=True)
for evaluation in evaluations:
    lanes = train(lanes, steps[-1], evaluation)
    steps.append(int(evaluation))
    records.append(jax.device_get(measure(lanes)))
    draw(axes, steps, records)
    screen.update(figure)

# %% [markdown]
# ## First, early and last step
#
# Mean ± standard deviation over the seeds, n = 360 test and 1,437 training images. `MIR, 64` is that of batches, and `MIR 2` the debiased one, of order 2.

# %%
HEADINGS = ("accuracy", "MIR", f"MIR, {BATCH}", "MIR 2", "HDR", "class MIR", "NC1")
print(" " * 34 + "".join(f"{heading:>17}" for heading in HEADINGS))
for i in (0, 4, -1):
    for group, rows in (("true", slice(0, SEEDS)), ("random", slice(SEEDS, None))):
        for column, part in enumerate(PARTS):
            values = [records[i][key][rows, column] for key in PANELS]
            cells = "".join(f"{v.mean():9.3f} ± {v.std(ddof=1):5.3f}" for v in values)
            print(f"step {steps[i]:5}, {group:>6} labels, {part:5}   {cells}")

# %% [markdown]
# ## The size of the batch
#
# The same features of the training set, cut into batches of 16 to 1,024: MIR of a small batch is above that of the
# set, for every network. Beside it the spectrum whose entropy enters HDR. One seed.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), dpi=80, layout="constrained")
untrained = jax.vmap(start)(seeds, is_random)
for name, colour, group, lane in (
    ("untrained", "tab:gray", untrained, 0),
    ("true labels", "tab:blue", lanes, 0),
    ("random labels", "tab:red", lanes, SEEDS),
):
    chosen = jax.tree.map(lambda leaf, lane=lane: leaf[lane], group)
    model = nnx.merge(graph, chosen["params"])
    features, head = model(train_x)[1], model.head.kernel[...].T
    bias = mirjax.batch_bias(
        features, head, chosen["labels"][0], batch_sizes=(16, 128, 1024), max_batches=16
    )
    plot.batch_bias(bias, label=name, colour=colour, ax=left)
    plot.spectrum(features, label=name, colour=colour, ax=right)
left.set(title="MIR over batch size, training set", ylabel="MIR", ylim=(0, 1.15))
right.set_title("Spectrum of the features, training set")
left.legend(fontsize=7, ncols=2, loc="upper right")
right.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Reading
#
# What these runs say (three seeds, one small network, one data set of 1,797 images):
#
# - With true labels MIR rises and HDR falls, as published. Nearly all of the rise of MIR happens in the first tens
#   of steps: at step 16 it is within 0.05 of its last value, and accuracy still gains more than 0.3. HDR first rises,
#   then falls, then creeps up again.
# - Random labels tell what training as such does. In batches of 64 MIR of the *test* set rises there from 0.27 to
#   0.38, at chance accuracy. Of the whole set it rises too, but stays below 0.1, far from 0.58 with true labels.
#   A rise of a batch value is no sign of generalisation.
# - HDR with random labels is *lower* in the end than with true ones (0.13 against 0.38, test set). It touches 0 near step
#   1,000 and comes back: HDR is the size of a difference, and there the entropy of the features overtakes that of the
#   head (effective rank 13.2 in the spectrum, where ten head rows have 10 at most). A low HDR is no sign of
#   generalisation either.
# - MIR of class means and head is above 0.9 before the first step, and moves away from its value at collapse with true
#   labels. Ten means in 32 dimensions are nearly in general position whatever they mean.
# - Neither network is at collapse: NC1 is 0.46 on the true training labels, and MIR 0.60, not 0.95.
# - MIR depends on n: the untrained network with random labels has 0.015 on 1,437 images and 0.058 on 360.
#   Compare values of equal n only.
#
# ## The real experiment
#
# In a clone of the repository:
#
#     python -m train.dynamics          # WideResNet-10-1 on 5,000 images of CIFAR-10, 2 CPU cores
#     python -m train.dynamics smoke    # digits, seconds
#     python -m train.dynamics paper    # WideResNet-28-2, 2^20 steps, as published; also paper-cifar100
#
# It logs the same of every layer, with NC1 to NC4. What it found is in
# [`results/`](../results/README.md), section `dynamics/`.
