# %% [markdown]
# # Few labels
#
# Of 1,437 digits 40 have a label, four of each class. This notebook trains a small network with them alone, with FixMatch, with
# FreeMatch, and with FreeMatch and each of the two information terms: MI, which raises the mutual information of
# features and head rows, and ED, which lowers the difference of their entropies. Besides test accuracy it looks at how
# many pseudo-labels count, how many of those are right, and MIR of the images whose labels are hidden.

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
}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mirjax
from mirjax import plot

CLASSES, WIDTH, SEEDS, STEPS = 10, 32, 3, 1000
LABELS, LABELLED, UNLABELLED = 40, 16, 32  # labels in all; labelled and unlabelled images of a step
MOMENTUM = 0.99  # of the moving averages: of the weights, and of the statistics of FreeMatch

# %% [markdown]
# ## Data
#
# The labelled images are drawn anew for each seed. All 1,437 images are the pool of unlabelled ones. 360 other images are
# the test set.

# %%
images, digits = load_digits(return_X_y=True)
pool_x, test_x, pool_y, test_y = (
    jnp.asarray(part)
    for part in train_test_split(
        (images / 16).astype(np.float32), digits, test_size=0.2, random_state=0, stratify=digits
    )
)


def balanced(seed):
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(np.asarray(pool_y) == c) for c in range(CLASSES)]
    return np.concatenate([generator.choice(rows, LABELS // CLASSES, False) for rows in of_class])


labelled = jnp.asarray(np.stack([balanced(seed) for seed in range(SEEDS)]))
print(f"{len(pool_x)} images, {LABELS} with a label; {len(test_x)} to test")

# %% [markdown]
# ## Two views of an image
#
# The weak view is a shift by a pixel at most. The strong one is a shift, another contrast, noise, and a square of two
# pixels set to 0. Both run on the device, by a key an image. The strength was chosen after a look: with a shift by two
# pixels and a square of three, mean and spread of FreeMatch over five seeds were 0.70 and 0.33: where its first
# pseudo-labels are wrong it may not recover.


# %%
def shifted(key, image, most):
    padded = jnp.pad(image.reshape(8, 8), most)
    return jax.lax.dynamic_slice(padded, jax.random.randint(key, (2,), 0, 2 * most + 1), (8, 8))


def weak(key, image):
    return shifted(key, image, 1).ravel()


def strong(key, image):
    keys = jax.random.split(key, 4)
    image = shifted(keys[0], image, 1) * jax.random.uniform(keys[1], minval=0.6, maxval=1.4)
    image += 0.15 * jax.random.normal(keys[2], (8, 8))
    corner = jax.random.randint(keys[3], (2,), 0, 7)
    return jax.lax.dynamic_update_slice(image, jnp.zeros((2, 2)), corner).ravel()


figure, axes = plt.subplots(3, 8, figsize=(8, 3), dpi=80, layout="constrained")
keys = jax.random.split(jax.random.key(0), 8)
rows = {
    "image": pool_x[:8],
    "weak": jax.vmap(weak)(keys, pool_x[:8]),
    "strong": jax.vmap(strong)(keys, pool_x[:8]),
}
for line, (name, views) in zip(axes, rows.items(), strict=True):
    for ax, view in zip(line, views, strict=True):
        ax.imshow(view.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## The algorithms
#
# FixMatch: where the network is confident on the weak view (probability 0.95 or more), its prediction is the label of the
# strong view.
#
# FreeMatch ([Wang et al. 2023](https://arxiv.org/abs/2205.07246)) has a threshold for each class, τ(c) = p̃(c) / max p̃ · τ. τ is the moving average of the
# confidence, p̃ that of the probabilities. A small term keeps the classes among the predictions in balance.
#
# The terms are on the labelled images and on those unlabelled ones that pass, as weights: the shapes stay the same
# whether many pass or none. The row of the head is that of the label or of the pseudo-label.


# %%
class Network(nnx.Module):
    """64 pixels, a hidden layer of 256, features of `WIDTH`, a linear head."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 256, rngs=rngs)
        self.second = nnx.Linear(256, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        features = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(features), features


def new_statistics():
    share = jnp.ones(CLASSES) / CLASSES
    return {"confidence": share[0], "average": share, "histogram": share}


def thresholds(statistics, fixed):
    own = statistics["average"] / statistics["average"].max() * statistics["confidence"]
    return jnp.where(fixed, 0.95, own)


def pseudo_labels(weak_logits, statistics, fixed):
    """Labels, and which of them count (1 or 0), without a gradient; the statistics after this step."""
    q = jax.nn.softmax(jax.lax.stop_gradient(weak_logits))
    labels, confidence = q.argmax(axis=1), q.max(axis=1)
    histogram = jax.nn.one_hot(labels, CLASSES).mean(axis=0)
    new = {"confidence": confidence.mean(), "average": q.mean(axis=0), "histogram": histogram}
    statistics = optax.incremental_update(new, statistics, 1 - MOMENTUM)
    passed = confidence >= thresholds(statistics, fixed)[labels]
    return labels, passed.astype(jnp.float32), statistics


def fairness(strong_logits, passed, statistics):
    """FreeMatch's minus cross-entropy between two shares of classes, each divided by its histogram."""
    q = jax.nn.softmax(strong_logits)
    count = jnp.maximum(passed.sum(), 1.0)
    mean = passed @ q / count
    histogram = passed @ jax.nn.one_hot(q.argmax(axis=1), CLASSES) / count

    def share(x, counts):
        x = jnp.where(counts > 0, x / jnp.where(counts > 0, counts, 1.0), 0.0)
        return x / jnp.maximum(x.sum(), 1e-12)

    reference = share(statistics["average"], statistics["histogram"])
    return jnp.sum(reference * jnp.log(share(mean, histogram) + 1e-12)) * (passed.sum() > 0)


def loss(params, lane, x, y, weak_x, strong_x):
    logits, features = nnx.merge(graph, params)(jnp.concatenate([x, weak_x, strong_x]))
    head = nnx.merge(graph, params).head.kernel[...].T
    of_labelled, of_weak, of_strong = jnp.split(logits, [LABELLED, LABELLED + UNLABELLED])
    pseudo, passed, statistics = pseudo_labels(of_weak, lane["statistics"], lane["fixed"])
    entropy = optax.softmax_cross_entropy_with_integer_labels
    unlabelled = jnp.mean(passed * entropy(of_strong, pseudo))
    fair = jnp.where(lane["fixed"], 0.0, 0.01 * fairness(of_strong, passed, statistics))
    # The terms: on labelled and weak views, by weight. `mirjax.losses` has both as functions; one interplay is
    # half the work.
    weights = jnp.concatenate([jnp.ones(LABELLED), passed])
    chosen = features[: LABELLED + UNLABELLED]
    terms = mirjax.interplay(chosen, head, jnp.concatenate([y, pseudo]), weights=weights)
    total = (
        entropy(of_labelled, y).mean()
        + lane["unlabelled"] * (unlabelled + fair)
        - lane["mi"] * terms.mutual_information
        + lane["ed"] * terms.entropy_difference
    )
    return total, (statistics, pseudo, passed)


# %% [markdown]
# ## One step
#
# Five ways of training, three seeds of each, side by side: what differs between them are numbers. What is evaluated is
# the moving average of the weights.

# %%
KINDS = {  # weight of the unlabelled loss, fixed threshold, weights of MI and ED
    "supervised": (0.0, False, 0.0, 0.0),
    "FixMatch": (1.0, True, 0.0, 0.0),
    "FreeMatch": (1.0, False, 0.0, 0.0),
    "FreeMatch + 0.1 MI": (1.0, False, 0.1, 0.0),
    "FreeMatch + 0.1 ED": (1.0, False, 0.0, 0.1),
}
graph = nnx.graphdef(Network(rngs=nnx.Rngs(0)))
optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.sgd(
        lambda number: 0.03 * jnp.cos(7 * math.pi * number / (16 * STEPS)),
        momentum=0.9,
        nesterov=True,
    ),
)


def start(seed, unlabelled, fixed, mi, ed):
    params = nnx.state(Network(rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param)
    return {
        "params": params,
        "average": params,
        "opt": optimizer.init(params),
        "statistics": new_statistics(),
        "tally": jnp.zeros(3),  # unlabelled images, those that passed, those of them that are right
        "labelled": labelled[seed],
        "key": jax.random.key(100 + seed),
        "unlabelled": unlabelled,
        "fixed": fixed,
        "mi": mi,
        "ed": ed,
    }


def step(number, lane):
    keys = jax.random.split(jax.random.fold_in(lane["key"], number), 5)
    rows = jax.random.choice(keys[0], lane["labelled"], (LABELLED,), replace=False)
    others = jax.random.choice(keys[1], len(pool_x), (UNLABELLED,))
    x = jax.vmap(weak)(jax.random.split(keys[2], LABELLED), pool_x[rows])
    weak_x = jax.vmap(weak)(jax.random.split(keys[3], UNLABELLED), pool_x[others])
    strong_x = jax.vmap(strong)(jax.random.split(keys[4], UNLABELLED), pool_x[others])
    gradient, (statistics, pseudo, passed) = jax.grad(loss, has_aux=True)(
        lane["params"], lane, x, pool_y[rows], weak_x, strong_x
    )
    updates, opt = optimizer.update(gradient, lane["opt"], lane["params"])
    params = optax.apply_updates(lane["params"], updates)
    hidden = (others[:, None] != lane["labelled"]).all(axis=1)  # measured only where the label is
    right = passed * (pseudo == pool_y[others])
    tally = lane["tally"] + jnp.array([hidden.sum(), passed @ hidden, right @ hidden])
    return lane | {
        "params": params,
        "average": optax.incremental_update(params, lane["average"], 1 - MOMENTUM),
        "opt": opt,
        "statistics": statistics,
        "tally": tally,
    }


@jax.jit
def train(lanes, first, last):
    lanes = lanes | {"tally": jnp.zeros_like(lanes["tally"])}
    return jax.lax.fori_loop(first, last, jax.vmap(step, in_axes=(None, 0)), lanes)


@jax.jit
def measure(lanes):
    hidden_of = jnp.ones(len(pool_x))

    def one(lane):
        model = nnx.merge(graph, lane["average"])
        head = model.head.kernel[...].T
        logits, features = model(pool_x)
        predicted = jnp.argmax(logits, -1)
        weights = hidden_of.at[lane["labelled"]].set(0.0)

        def against(y):  # MIR and HDR of the images whose label is hidden, n = 1,397
            moments = mirjax.ClassMoments.zeros(CLASSES, WIDTH).update(features, y, weights)
            whole = moments.interplay(head)
            return whole.mir, whole.hdr

        mir, hdr = jax.lax.map(against, jnp.stack([pool_y, predicted]))
        return {
            "accuracy": jnp.mean(jnp.argmax(model(test_x)[0], -1) == test_y),
            "coverage": lane["tally"][1] / jnp.maximum(lane["tally"][0], 1),
            "right": lane["tally"][2] / jnp.maximum(lane["tally"][1], 1),
            "mir": mir[0],
            "hdr": hdr[0],
            "mir_pseudo": mir[1],
        }

    return jax.lax.map(one, lanes)


knobs = [jnp.repeat(jnp.array(column), SEEDS) for column in zip(*KINDS.values(), strict=True)]
lanes = jax.vmap(start)(jnp.tile(jnp.arange(SEEDS), len(KINDS)), *knobs)
steps, records = [0], [jax.device_get(measure(lanes))]
for number in range(100, STEPS + 1, 100):
    lanes = train(lanes, steps[-1], number)
    steps.append(number)
    records.append(jax.device_get(measure(lanes)))
course = {name: np.stack([record[name] for record in records]) for name in records[0]}

# %% [markdown]
# ## The course
#
# Mean ± standard deviation over three seeds. Coverage and the share of right pseudo-labels are those of the last 100 steps,
# MIR and HDR those of all 1,397 images whose labels are hidden from the training, by their true labels.

# %%
PANELS = {
    "accuracy": "test accuracy",
    "coverage": "coverage of pseudo-labels",
    "right": "right among those that count",
    "mir": "MIR, hidden labels",
    "hdr": "HDR, hidden labels",
    "mir_pseudo": "MIR by predicted labels",
}
COLOURS = ("tab:gray", "tab:green", "tab:blue", "tab:red", "tab:orange")
figure, axes = plt.subplots(2, 3, figsize=(11, 5.8), dpi=80, layout="constrained")
for (name, title), ax in zip(PANELS.items(), axes.flat, strict=True):
    for i, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        if name in ("coverage", "right") and kind == "supervised":
            continue  # its pseudo-labels are not used
        values = course[name][1:, i * SEEDS : (i + 1) * SEEDS]
        plot.curve(
            steps[1:], values.mean(1), values.std(1, ddof=1), label=kind, colour=colour, ax=ax
        )
    ax.set_title(title)
for ax in axes[-1]:
    ax.set_xlabel("step")
axes[0, 0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## The last step
#
# The gain over FreeMatch is paired: each seed has the same labelled images, first weights and draws in all rows. Half the 95 %
# interval of three differences is 4.30 standard errors (Student's t with two degrees of freedom). Coverage in the row of supervised
# training is what FreeMatch would let pass: nothing is learned of it.

# %%
last = {name: values[-1].reshape(len(KINDS), SEEDS) for name, values in course.items()}
reference = list(KINDS).index("FreeMatch")
print(
    f"{'mean ± std over seeds':20}" + "".join(f"{name:>16}" for name in PANELS) + "   gain, points"
)
for i, kind in enumerate(KINDS):
    cells = "".join(f"{last[n][i].mean():8.3f} ± {last[n][i].std(ddof=1):.3f}" for n in PANELS)
    gain = 100 * (last["accuracy"][i] - last["accuracy"][reference])
    half = 4.303 * gain.std(ddof=1) / math.sqrt(SEEDS)
    text = f"{gain.mean():+9.1f} ± {half:.1f}" if i != reference else ""
    print(f"{kind:20}{cells}{text}")

# %% [markdown]
# ## Reading
#
# What these runs say (digits, an MLP, 1,000 steps, three seeds; a point of accuracy is 3.6 test images):
#
# - Unlabelled images help here: FreeMatch has 0.901 and FixMatch 0.883, against 0.826 with the 40 labels alone. For FreeMatch
#   the interval of the gain excludes 0.
# - Coverage and right pseudo-labels pull against each other: FixMatch uses fewer (0.65 against 0.83), and more of its
#   pseudo-labels are right (0.976 against 0.961).
# - FreeMatch lets nearly everything pass at first, and is behind at step 100, with few of its pseudo-labels right.
# - The two terms gain 1.2 points each, with intervals of ± 4.0 and ± 5.4: three seeds cannot tell that from nothing. In
#   the longer list of `results/`, with the same data and other augmentation, 53 of 60 mean gains are below 0.
# - They move what they name: MI takes MIR from 0.53 to 0.60, ED takes HDR from 0.34 to 0.13. ED takes MIR down to
#   0.47. Accuracy is the same in both: neither number alone says how well a network does.
# - MIR by predicted labels is what can be measured without hidden ones. It is a little higher than MIR by true labels
#   (0.547 against 0.528), since the predictions agree with the features even where they are wrong.
#
# ## The real experiment
#
# In a clone of the repository:
#
#     python -m train.few_labels                                # CIFAR-10, several algorithms, with and without the terms, paired
#     python -m train.semisupervised --algorithm freematch --labels 40
#     python -m train.placement                                 # on which samples the terms are applied, and their weights
#
# The presets are `small` (2 CPU cores), `smoke` (digits, seconds) and, of the first two, `paper` (WideResNet-28-2, 2^20 steps). What they found is in
# [`results/`](../results/README.md), section `semisupervised/`; how it is done is in [Semi-supervised learning](../docs/semisupervised.md).
