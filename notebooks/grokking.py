# %% [markdown]
# # Grokking
#
# A small network learns addition modulo 23 from three quarters of all pairs. It memorises them first and generalises much later, if its
# weights decay. This notebook measures MIR and HDR of features and unembedding on the way, beside the weight norm and
# NC1, and trains two controls: the same network without weight decay, and one with random labels, where there
# is nothing to generalise.
#
# The network is two layers on the sum of two embeddings, far smaller than the one-layer transformer of the published
# experiment (modulus 113, [Nanda et al. 2023](https://arxiv.org/abs/2301.05217),
# [Song et al. 2024](https://arxiv.org/abs/2406.03999)), so that all of it takes seconds.

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

import mirjax
from mirjax import plot

# The late losses are small: products with the short mantissa of some accelerators would be noise.
jax.config.update("jax_default_matmul_precision", "highest")

MODULUS, WIDTH, HIDDEN, SEEDS, STEPS, LEARNING_RATE = 23, 32, 128, 3, 4000, 3e-3

# %% [markdown]
# ## Table and network

#
# The network adds the embeddings of both numbers, so that it cannot tell (a, b) from (b, a). Were both in the table, a test pair
# whose mirror image is trained on would be right for free. So each pair is in it once, with a ≤ b.

# %%
pairs = jnp.stack(jnp.triu_indices(MODULUS), axis=1)
sums = pairs.sum(axis=1) % MODULUS
TRAIN = int(0.75 * len(pairs))


class Network(nnx.Module):
    """Adds two embeddings; a hidden layer with ReLU; features; the unembedding is the head."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(MODULUS, WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.back = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, MODULUS, use_bias=False, rngs=rngs)

    def __call__(self, pairs):
        features = self.back(nnx.relu(self.hidden(self.embedding(pairs).sum(axis=1))))
        return self.head(features), features


graph = nnx.graphdef(Network(rngs=nnx.Rngs(0)))
adam = optax.scale_by_adam(b1=0.9, b2=0.98)


def cross_entropy(params, x, y):
    logits, _ = nnx.merge(graph, params)(x)
    right = jnp.arange(MODULUS) == y[:, None]
    own = jnp.sum(logits, axis=1, where=right)
    # log(1 + Σ_{j≠y} exp(l_j - l_y)). The usual form cancels at a loss below 1e-7, and Adam then follows rounding.
    others = jax.nn.logsumexp(logits, axis=1, where=~right)
    return jnp.mean(jax.nn.softplus(others - own))


print(
    f"{len(pairs)} pairs, {TRAIN} to train on, {len(pairs) - TRAIN} to test; JAX on {jax.default_backend()}"
)

# %% [markdown]
# ## Lanes
#
# Three kinds of three seeds are nine networks, trained side by side by `jax.vmap`. Steps are full-batch AdamW. All steps
# between two measurements are one call, whose bounds are traced numbers: nothing compiles again.

# %%
KINDS = {"decay 1": (1.0, False), "no decay": (0.0, False), "random labels": (1.0, True)}


def start(seed, decay, random):
    key = jax.random.key(seed)
    order = jax.random.permutation(jax.random.fold_in(key, 1), len(pairs))
    shuffled = jax.random.permutation(jax.random.fold_in(key, 2), sums)
    params = nnx.state(Network(rngs=nnx.Rngs(key)), nnx.Param)
    x, y = pairs[order], jnp.where(random, shuffled, sums)[order]
    return {"params": params, "adam": adam.init(params), "decay": decay, "x": x, "y": y}


def step(number, lane):
    params = lane["params"]
    gradient = jax.grad(cross_entropy)(params, lane["x"][:TRAIN], lane["y"][:TRAIN])
    updates, state = adam.update(gradient, lane["adam"])
    rate = LEARNING_RATE * jnp.minimum(1.0, (number + 1) / 10)
    decay = lane["decay"]
    params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
    return lane | {"params": params, "adam": state}


@jax.jit
def train(lanes, first, last):
    return jax.lax.fori_loop(first, last, jax.vmap(step, in_axes=(None, 0)), lanes)


@jax.jit
def measure(lanes):
    def one(lane):
        model = nnx.merge(graph, lane["params"])
        head = model.head.kernel[...].T
        found = {"norm": optax.tree.norm(lane["params"])}
        for part, rows in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, None))):
            x, y = lane["x"][rows], lane["y"][rows]
            logits, features = model(x)
            interplay = mirjax.interplay(features, head, y)
            collapse = mirjax.neural_collapse(features, y, head, num_classes=MODULUS)
            found[part] = {
                "accuracy": jnp.mean(jnp.argmax(logits, -1) == y),
                "mir": interplay.mir,
                "hdr": interplay.hdr,
                "nc1": collapse.nc1,
                "rank": jnp.exp(interplay.entropy1),
            }
        return found

    return jax.lax.map(one, lanes)


decays, randoms = (
    jnp.repeat(jnp.array(column), SEEDS) for column in zip(*KINDS.values(), strict=True)
)
seeds = jnp.tile(jnp.arange(SEEDS), len(KINDS))
lanes = jax.vmap(start)(seeds, decays, randoms)
steps, records = [0], [jax.device_get(measure(lanes))]
for number in np.unique(np.geomspace(2, STEPS, 28).round().astype(int)):
    lanes = train(lanes, steps[-1], number)
    steps.append(int(number))
    records.append(jax.device_get(measure(lanes)))
course = jax.tree.map(lambda *values: np.stack(values), *records)  # [measurements, lanes]

# %% [markdown]
# ## The course
#
# Mean ± standard deviation over three seeds, of all training pairs (dashed) and all test pairs (solid).

# %%
PANELS = {
    "accuracy": "accuracy",
    "mir": "MIR",
    "hdr": "HDR",
    "norm": "weight norm",
    "rank": "effective rank of the features",
    "nc1": "log10 of NC1",
}
COLOURS = ("tab:blue", "tab:orange", "tab:red")
figure, axes = plt.subplots(2, 3, figsize=(11, 5.8), dpi=80, layout="constrained")
for (name, title), ax in zip(PANELS.items(), axes.flat, strict=True):
    for i, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        for part, style in (("test", "-"), ("train", "--")):
            values = course["norm"] if name == "norm" else course[part][name]
            values = values[1:, i * SEEDS : (i + 1) * SEEDS]
            if name == "nc1":  # over orders of magnitude a spread is one of logarithms
                values = np.log10(values)
            plot.curve(
                steps[1:],
                values.mean(1),
                values.std(1, ddof=1),
                label=f"{kind}, {part}",
                colour=colour,
                style=style,
                ax=ax,
            )
            if name == "norm":
                break
    ax.set(title=title, xscale="log", xlim=(2, STEPS))
for ax in axes[-1]:
    ax.set_xlabel("step")
plot.levels({"at collapse": mirjax.theory.collapsed_mir(MODULUS)}, ax=axes[0, 1])
axes[0, 1].legend(handles=axes[0, 1].lines[-1:], fontsize=7)
axes[0, 0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Memorised, generalised, last
#
# Memorised: train accuracy is 0.99 or more for the first time. Generalised: test accuracy is 0.9 or more. Both among the
# steps that were measured. MIR, HDR and effective rank are those of the test pairs.

# %%
print(f"{'kind':14} seed  {'moment':11}  step  accuracy    MIR    HDR   rank   norm")
for lane in range(SEEDS * len(KINDS)):
    kind, seed = list(KINDS)[lane // SEEDS], lane % SEEDS
    moments = {
        "memorised": course["train"]["accuracy"][:, lane] >= 0.99,
        "generalised": course["test"]["accuracy"][:, lane] >= 0.9,
        "last": np.arange(len(steps)) == len(steps) - 1,
    }
    for moment, reached in moments.items():
        if not reached.any():
            print(f"{kind:14} {seed:4}  {moment:11} never")
            continue
        at = int(np.argmax(reached))
        accuracy, mir, hdr, rank = (
            course["test"][name][at, lane] for name in ("accuracy", "mir", "hdr", "rank")
        )
        norm = course["norm"][at, lane]
        print(
            f"{kind:14} {seed:4}  {moment:11} {steps[at]:5} {accuracy:9.3f} {mir:6.3f} {hdr:6.3f} {rank:6.2f} {norm:6.2f}"
        )

# %% [markdown]
# ## Before the test pairs are right
#
# Does anything tell in advance which network will generalise? Here are the last measured step at which test accuracy is
# below 0.1 in all seeds with decay, the first at which it is above 0.9 in all, and the last of all: the mean ± standard deviation over seeds,
# of the training pairs and of the test pairs.

# %%
main = course["test"]["accuracy"][:, :SEEDS]
before = int(np.argmax((main >= 0.1).any(axis=1) & (np.array(steps) > 100))) - 1
for at in (before, int(np.argmax((main >= 0.9).all(axis=1))), len(steps) - 1):
    print(f"step {steps[at]}, mean test accuracy with decay {main[at].mean():.3f}")
    for part in ("train", "test"):
        for i, kind in enumerate(KINDS):
            rows = slice(i * SEEDS, (i + 1) * SEEDS)
            text = f"  {part:5} {kind:14}"
            for name in ("mir", "hdr", "rank", "nc1"):
                values = course[part][name][at, rows]
                text += f"  {name} {values.mean():6.3f} ± {values.std(ddof=1):.3f}"
            print(text)

# %% [markdown]
# ## Reading
#
# What these runs say (one small network, three seeds; fraction, width, learning rate and decay were chosen so that it
# generalises within the time of a notebook):
#
# - With decay the network memorises at about step 80, with every test pair wrong, and generalises at about
#   step 1,300. Without decay it never does: all test pairs are still wrong after 4,000 steps. With
#   random labels it memorises at about step 100, and stays at chance (1/23 = 0.043).
# - MIR of the training pairs rises from memorisation to generalisation (0.59 there) and stays. In both controls it ends
#   below 0.4. The published curve falls at the transition; this one does not.
# - At step 421, where test accuracy is 0.01, MIR of the training pairs with decay is 0.455 already, against 0.361 and 0.343 in
#   the controls: here it announces what comes. The larger runs in `results/` looked for that and did not find it.
#   Nothing was fixed beforehand here, and three seeds of one network are no rule.
# - On the test pairs MIR of the three kinds differs less (0.53, 0.51, 0.47 at that step): n is 69 there, three to a class,
#   and MIR of so few is high whatever the network is. Do not compare it with that of the 207 training pairs.
# - HDR has its peak near step 20, before memorisation, in all three kinds. The published spike at
#   the transition is not seen, and its values after memorisation do not tell the kinds apart.
# - Weight norm does not fall before the transition; it falls after it, and with random labels too, where nothing generalises.
#   The effective rank of the training features falls from 17.0 (step 421) to 9.6 where the network generalises, and
#   changes by less than 1 in the controls.
# - Generalising is not collapse: NC1 of the training pairs *rises* with it (8.9 at step 421, 25.5 at step 1,297),
#   while it stays near 6 in the controls.
#
# ## The real experiment
#
# In a clone of the repository:
#
#     python -m train.grokking          # one-layer transformer, modulus 23, five seeds of six kinds: some 15 minutes on 2 cores
#     python -m train.grokking smoke    # modulus 7, seconds
#     python -m train.grokking paper    # modulus 113, as published
#
# It also measures Fourier components, every layer, and both losses switched on during memorisation. What it found is in
# [`results/`](../results/README.md), section `grokking/`. Its pairs are ordered, (a, b) beside (b, a).
