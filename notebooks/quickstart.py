# %% [markdown]
# # Quickstart
#
# mirjax measures how much the features of a network and its classification head share. This notebook trains a
# small network on real digits in a few seconds, and shows what each number means, where neural collapse is, how to
# take gradients, how to mask samples, and why the value of a batch is not that of the data.
#
# It runs on a CPU, GPU or TPU. Nothing is downloaded but packages that are missing.

# %%
# Installs what is missing, and nothing that is there: JAX, 0.5.3 or newer, stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {"mirjax": MIRJAX, "matplotlib": "matplotlib", "sklearn": "scikit-learn"}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import mirjax
from mirjax import plot, theory

# %% [markdown]
# ## Real features
#
# 1,797 images of digits, 8 × 8 pixels, which come with scikit-learn. 1,437 of them are to train a network with two
# hidden layers, 360 to test it. The output of the second hidden layer are the *features* $Z$, one sample a row; the
# last matrix is the *head* $W$, one class a row. Any other library would do: mirjax sees arrays only.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.data[order] / 16, jnp.float32)
targets = jnp.asarray(digits.target[order], jnp.int32)
x, y, test_x, test_y = images[:1437], targets[:1437], images[1437:], targets[1437:]
CLASSES, WIDTH, BATCH = 10, 32, 128


def init(key):
    """Weights of 64 -> 128 -> 32 -> 10, at random."""
    sizes = (128, 64), (WIDTH, 128), (CLASSES, WIDTH)
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, s) * (2 / s[1]) ** 0.5 for k, s in zip(keys, sizes, strict=True)]


def features_of(weights, x):
    return jnp.tanh(jax.nn.relu(x @ weights[0].T) @ weights[1].T)


def cross_entropy(weights, x, y):
    logits = features_of(weights, x) @ weights[2].T
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def train_step(carry, key):
    """Stochastic gradient descent with momentum and a little weight decay."""
    weights, velocity = carry
    i = jax.random.choice(key, len(x), (BATCH,), replace=False)
    gradient = jax.grad(cross_entropy)(weights, x[i], y[i])
    velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + 1e-3 * w, velocity, gradient, weights)
    return (jax.tree.map(lambda w, v: w - 0.1 * v, weights, velocity), velocity), None


def accuracy(weights, x, y):
    return jnp.mean(jnp.argmax(features_of(weights, x) @ weights[2].T, axis=1) == y)


# %% [markdown]
# Every 150 steps the whole training set is measured, inside the compiled loop. The metrics are ordinary JAX functions.


# %%
def measure(weights):
    """Interplay and neural collapse of the training set, and the accuracy on the test set."""
    features, head = features_of(weights, x), weights[2]
    collapse = mirjax.neural_collapse(features, y, head, num_classes=CLASSES)
    return mirjax.interplay(features, head, y), collapse, accuracy(weights, test_x, test_y)


def round_of_steps(carry, keys):
    return jax.lax.scan(train_step, carry, keys)[0], measure(carry[0])


@jax.jit
def train(key):
    """Weights before and after, and what was measured on the way."""
    start = init(jax.random.fold_in(key, 1))
    keys = jax.random.split(jax.random.fold_in(key, 2), (20, 150))
    (end, _), found = jax.lax.scan(
        round_of_steps, (start, jax.tree.map(jnp.zeros_like, start)), keys
    )
    return start, end, found


untrained, trained, (history, collapse_history, accuracies) = train(jax.random.key(0))
steps = np.arange(20) * 150
print(f"test accuracy: {accuracy(untrained, test_x, test_y):.3f}", end=" -> ")
print(f"{accuracy(trained, test_x, test_y):.3f}")

# %% [markdown]
# ## Three lines
#
# Features, head, labels in; all numbers out.

# %%
features, head = features_of(trained, test_x), trained[-1]
result = jax.jit(mirjax.interplay)(features, head, test_y)
print(f"MIR {result.mir:.3f}, HDR {result.hdr:.3f}, n = {len(features)} test images")

# %% [markdown]
# ## What the numbers mean
#
# From the rows of length one $\hat z_i$ comes the Gram matrix $G(Z)$, $n \times n$, of the cosines $\hat z_i \cdot \hat z_j$ between samples.
# The spectrum of $G(Z) / n$ sums to one, so it has an entropy like a distribution has, in nats:
#
# $$H(Z) = -\sum_i \lambda_i \log \lambda_i$$
#
# It is 0 if all samples point the same way, and $\log k$ if they are spread evenly over $k$ directions: $\exp H$ is an *effective rank*.
# The head has the same for the rows of the labels, $G(W[y])$, and the entrywise product of the two has the joint entropy. Then
#
# $$\mathrm{MI} = H_1 + H_2 - H_{12}, \qquad \mathrm{MIR} = \frac{\mathrm{MI}}{\min(H_1, H_2)}, \qquad \mathrm{HDR} = \frac{|H_1 - H_2|}{\max(H_1, H_2)}.$$
#
# MIR says which share of the smaller entropy is common, from 0 to 1. HDR says how far the two entropies are apart, from 0 (equal) to 1.

# %%
for name, what in {
    "entropy1": "H of the features",
    "entropy2": "H of the head rows of the labels",
    "joint_entropy": "H of the entrywise product",
    "mutual_information": "entropy1 + entropy2 - joint_entropy",
    "entropy_difference": "distance of the two entropies",
    "mir": "mutual_information / the smaller entropy",
    "hdr": "entropy_difference / the larger entropy",
}.items():
    unit = "" if name in ("mir", "hdr") else " nats"
    print(f"{name:<20}{getattr(result, name):6.3f}{unit:<7}{what}")
print(f"\neffective rank of the features: {mirjax.effective_rank(features):.1f} of {WIDTH}")
print(f"exp(entropy1):                  {jnp.exp(result.entropy1):.1f}")

# %% [markdown]
# The Gram matrix itself, of 100 test images sorted by class, and the spectrum behind its entropy. Untrained, all rows point nearly the same way, and one eigenvalue
# holds most of the sum. Training makes blocks: samples of one class get the same direction. Then $C - 1 = 9$ directions share most of the sum, and what follows is small.

# %%
sorted_by_class = jnp.argsort(test_y[:100])
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for ax, weights, name in zip(axes, (untrained, trained), ("untrained", "trained"), strict=False):
    rows = features_of(weights, test_x[:100])
    picture = ax.imshow(
        mirjax.gram(rows[sorted_by_class]), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest"
    )
    ax.set_title(f"cosines, {name}")
    plot.spectrum(features_of(weights, test_x), label=name, ax=axes[2])
fig.colorbar(picture, ax=axes[:2])
axes[2].set_title(f"spectrum, n = {len(test_x)}")
axes[2].legend()
plt.show()

# %% [markdown]
# ## Where neural collapse is
#
# Trained far enough, the features of a class come together in their mean, and class means and head rows form the same simplex. There
# the numbers have a closed form that depends on the number of classes $C$ alone. HDR is 0. MIR is *not* 1:
#
# $$\mathrm{MIR} = \frac{1}{C-1} + \frac{(C-2) \log (C-2)}{(C-1) \log (C-1)}.$$

# %%
simplex = theory.simplex_etf(CLASSES, WIDTH)  # features and head at collapse
there = jax.jit(mirjax.interplay)(simplex[y], simplex, y)
print("              measured  closed form")
print(f"entropy       {there.entropy1:8.4f} {theory.collapsed_entropy(CLASSES):12.4f}")
closed = theory.collapsed_mutual_information(CLASSES)
print(f"MI            {there.mutual_information:8.4f} {closed:12.4f}")
print(f"MIR           {there.mir:8.4f} {theory.collapsed_mir(CLASSES):12.4f}")
print(f"HDR           {there.hdr:8.4f} {0:12.4f}")

# %% [markdown]
# The digits are not of exactly the same number in each class, which is the difference in the third decimal. Now the network above in training:

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
plot.curve(steps, history.mir, label="MIR", ax=left)
plot.curve(steps, history.hdr, label="HDR", ax=left)
plot.curve(steps, accuracies, label="test accuracy", style="--", ax=left)
plot.levels({"MIR at collapse": theory.collapsed_mir(CLASSES)}, ax=left)
plot.curve(steps, collapse_history.nc1, label="NC1: spread within classes", ax=right)
plot.curve(steps, collapse_history.nc3, label="NC3: head against class means", ax=right)
right.set_yscale("log")
for ax in (left, right):
    ax.set_xlabel("step")
    ax.legend(loc="center right")
left.set_title(f"training set, n = {len(x)}")
plt.show()
print(f"step 0 -> {steps[-1]}")
for name, of in (("MIR", history.mir), ("HDR", history.hdr)):
    print(f"{name} {of[0]:.3f} -> {of[-1]:.3f}")
for name, of in (("NC1", collapse_history.nc1), ("NC3", collapse_history.nc3)):
    print(f"{name} {of[0]:.3f} -> {of[-1]:.3f}")

# %% [markdown]
# The two entropies agree soon, so HDR is near 0, and accuracy is near 1, but MIR stays well below its value at collapse: it sees the spread that is left within the
# classes. To check that, take the spread away by hand: $z_i \leftarrow \mu_{y_i} + t\,(z_i - \mu_{y_i})$ with $t$ from 1 to 0. One `vmap` measures all values of
# $t$ at once.

# %%
features = features_of(trained, x)
means = jax.ops.segment_sum(features, y, CLASSES) / jnp.bincount(y, length=CLASSES)[:, None]


@jax.jit
@jax.vmap
def with_less_spread(t):
    return mirjax.interplay(means[y] + t * (features - means[y]), trained[-1], y)


remaining = jnp.linspace(1.0, 0.0, 11)
approach = with_less_spread(remaining)
ax = plt.figure(figsize=(6, 3.4), layout="constrained").subplots()
plot.curve(remaining, approach.mir, label="MIR", marker="o", ax=ax)
plot.curve(remaining, approach.hdr, label="HDR", marker="o", ax=ax)
plot.levels({"MIR at collapse": theory.collapsed_mir(CLASSES)}, ax=ax)
ax.invert_xaxis()
ax.set_xlabel("share t of the spread within classes")
ax.legend()
plt.show()
by_class = jax.jit(mirjax.class_interplay)(means, trained[-1])
print(f"MIR {approach.mir[0]:.3f} -> {approach.mir[-1]:.3f} without spread")
print(f"HDR {approach.hdr[0]:.3f} -> {approach.hdr[-1]:.3f}")
print(f"class_interplay, of the centred class means: MIR {by_class.mir:.3f}")

# %% [markdown]
# Most of the distance was spread within classes. What is left of it are the class means and the head, which are not quite one simplex (NC3 is not 0).
# `class_interplay` measures these alone: the centred class means against the head, $C \times C$.
#
# ## Gradients
#
# All of it can be differentiated, forward and reverse, at any rank. The plain way, eigenvalues and a logarithm, gives NaN where eigenvalues are equal or 0: for more samples
# than features, at collapse, for equal rows. mirjax has the exact derivative there, with nothing added to the matrix and nothing clipped.


# %%
def plain_mutual_information(features, head, y):
    """The definition as one would write it down."""

    def entropy(kernel):
        values = jnp.linalg.eigvalsh(kernel / len(kernel))
        return -jnp.sum(jnp.where(values > 0, values * jnp.log(values), 0.0))

    unit = [rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (features, head[y])]
    one, two = (rows @ rows.T for rows in unit)
    return entropy(one) + entropy(two) - entropy(one * two)


def loss(features, head, y):
    return -mirjax.losses.mutual_information_loss(features, head, y)


cases = {
    "trained features": features_of(trained, x[:64]),
    "at collapse": simplex[y[:64]],
    "all rows equal": jnp.ones((64, WIDTH)),
}
for name, rows in cases.items():
    for which, function in (("plain", plain_mutual_information), ("mirjax", loss)):
        value, slope = jax.jit(jax.value_and_grad(function))(rows, simplex, y[:64])
        share = jnp.mean(jnp.isfinite(slope))
        print(f"{name:<18}{which:<8}MI {value:z6.3f}   finite entries of the gradient: {share:.0%}")

# %% [markdown]
# As terms of a training loss they are `mirjax.losses.mutual_information_loss` (minus MI) and `mirjax.losses.entropy_difference_loss`. The notebook `your_own_loop` puts them into loops of
# three libraries.
#
# ## Masks
#
# Under `jit` every new shape is compiled anew. Keep one shape and give weights: what has weight 0 drops out exactly, whatever it holds, NaN and impossible labels included. Weights need not
# be 0 or 1.

# %%
compiled = 0


@jax.jit
def masked(features, y, weights):
    global compiled
    compiled += 1  # runs once for each shape
    return mirjax.interplay(features, trained[-1], y, weights=weights)


plain = jax.jit(mirjax.interplay)
rows = features_of(trained, test_x)
for kept in (360, 180, 60):
    real = jnp.arange(360) < kept
    padded = jnp.where(real[:, None], rows, jnp.nan), jnp.where(real, test_y, -1)
    inside = masked(*padded, real.astype(jnp.float32)).mir
    alone = plain(rows[:kept], trained[-1], test_y[:kept]).mir
    print(f"n = {kept:3}: MIR {inside:.4f} with weights, {alone:.4f} of the rows alone")
print(f"compiled {compiled} time(s)")

# %% [markdown]
# The values grow as the sets shrink, though the network is the same. That is the last point.
#
# ## A batch is not the set
#
# The joint entropy of $n$ samples is at most $\log n$. In a small batch it is too low, so MIR is too high, most of all for a network that has learned nothing.
# `batch_bias` measures by how much. It also shows the way out: `debiased_interplay` compares only different samples, and estimates MIR and HDR of the data, at order 2, from a batch of any
# size.

# %%
fig, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
biases = {}
for name, weights in (("untrained", untrained), ("trained", trained)):
    arrays = features_of(weights, images), weights[-1], targets
    biases[name] = mirjax.batch_bias(*arrays, batch_sizes=(16, 64, 256, 1024), max_batches=16)
    plot.batch_bias(biases[name], label=name, ax=axes[0])
    plot.batch_bias(biases[name], kind="debiased", label=name, ax=axes[1])
    plot.batch_bias(biases[name], metric="hdr", label=name, ax=axes[2])
for ax, name in zip(axes, ("MIR", "MIR debiased (order 2)", "HDR"), strict=True):
    ax.set_title(f"{name}, all n = {len(images)} digits")
    ax.legend(fontsize="small")
for ax in axes[:2]:
    ax.set_ylim(0.0, 1.0)
plt.show()
at = list(biases["trained"].batch_sizes).index(64)
for name, bias in biases.items():
    print(
        f"{name:<10}MIR {bias.mean.mir[at]:.3f} in batches of 64, {bias.whole.mir:.3f} of the set; "
        f"debiased {bias.debiased.mir[at]:.3f} and {bias.whole_debiased.mir:.3f}"
    )
single = mirjax.debiased_interplay(features_of(trained, images[:64]), trained[-1], targets[:64])
print(f"one batch of 64: debiased MIR {single.mir:.3f} ± {single.standard_error.mir:.3f}")

# %% [markdown]
# For the published order 1 there is no such estimate: report the value of the whole set, with its $n$. It need not be in one place: `ClassMoments` adds up batches of any size in any order, and gives the same number as
# `dataset_interplay` on all rows. The mean over batches does not.

# %%
moments = mirjax.ClassMoments.zeros(CLASSES, WIDTH)
of_batches = []
add = jax.jit(mirjax.ClassMoments.update)
for start in range(0, len(images), 599):  # 1,797 = 3 * 599
    rows, labels = features_of(trained, images[start : start + 599]), targets[start : start + 599]
    moments = add(moments, rows, labels)
    of_batches.append(plain(rows, trained[-1], labels).mir)

added = moments.interplay(trained[-1])
at_once = mirjax.dataset_interplay(features_of(trained, images), trained[-1], targets)
print(f"ClassMoments, 3 batches   MIR {added.mir:.4f}, HDR {added.hdr:.4f}, n = {added.weight:.0f}")
print(f"dataset_interplay         MIR {at_once.mir:.4f}, HDR {at_once.hdr:.4f}")
print(f"mean over the 3 batches   MIR {np.mean(of_batches):.4f}")

# %% [markdown]
# ## Where to go next
#
# - `your_own_loop`: metrics and losses in Flax NNX, Flax Linen and Equinox.
# - `large_scale`: a million rows, with bounds where the value is estimated.
# - [Which function](../docs/howto/which.md) for what you have, and [reading MIR](../docs/howto/reading.md) beside NC1 to NC4.
