# %% [markdown]
# # A million rows
#
# MIR of a batch is not MIR of the data (see `quickstart`). The definition asks for the spectra of $n \times n$ matrices; of a million samples one such matrix is 4 TB. It is not needed. This notebook measures
# a million rows on a free CPU machine: at once, streamed, in two halves, estimated with an error, and spread over devices.

# %%
# Installs what is missing, and nothing that is there: JAX, 0.5.3 or newer, stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {"mirjax": MIRJAX, "matplotlib": "matplotlib"}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %% [markdown]
# On a CPU, JAX can be told to have several devices, which share the cores. That makes nothing faster, but shows that it works. This must come before JAX is used; on GPU and TPU it changes nothing, and the real
# devices are used.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mirjax
from mirjax import plot

jax.config.update("jax_num_cpu_devices", 8)
print(f"{jax.device_count()} devices: {jax.devices()[0].platform}")

# %% [markdown]
# ## The data
#
# A hundred classes, $d = 32$ features, made in chunks of 10,000 rows: the row of its class in the head, and noise. The same function makes the whole array, and later one chunk at a time.

# %%
N, D, CLASSES, CHUNK = 1_000_000, 32, 100, 10_000
head = jax.random.normal(jax.random.key(0), (CLASSES, D))


def chunk(i):
    """Features and labels of the rows `10,000 i` to `10,000 (i + 1)`."""
    labels = jnp.arange(CHUNK, dtype=jnp.int32) % CLASSES
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (CHUNK, D))
    return head[labels] + 0.6 * noise, labels


@jax.jit
def all_chunks():
    features, labels = jax.lax.map(chunk, jnp.arange(N // CHUNK))
    return features.reshape(N, D), labels.reshape(N)


def timed(function):
    """What a function gives, and its seconds, compilation included."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - start


features, labels = all_chunks()
print(f"features {features.shape}, {features.nbytes / 1e6:.0f} MB")
print(f"an n x n matrix: {4 * N**2 / 1e12:.0f} TB")

# %% [markdown]
# ## At once
#
# `dataset_interplay` gives the numbers of `interplay`. The joint matrix has rank $d \cdot \min(C, d)$ at most, whatever $n$ is: one matrix of that side is decomposed, and the result is exact. `lower` and `upper` are then as wide as
# the rounding.

# %%
exact, seconds = timed(lambda: mirjax.dataset_interplay(features, head, labels))
print(f"n = {exact.weight:,.0f}: MIR {exact.mir:.4f}, HDR {exact.hdr:.4f}, {exact.method}")
print(f"MIR in [{exact.lower.mir:.4f}, {exact.upper.mir:.4f}]")
print(f"side of the matrix: {D * min(CLASSES, D)}, time: {seconds:.1f} s")

# %% [markdown]
# To believe it, 1,000 of the rows, where the definition with its three $n \times n$ matrices is affordable:

# %%
few = features[:1000], head, labels[:1000]


@jax.jit
def dense(features, head, labels):
    return mirjax.kernel_interplay(mirjax.gram(features), mirjax.gram(head[labels]))


definition, ours = dense(*few), mirjax.dataset_interplay(*few)
for name in ("entropy1", "entropy2", "joint_entropy", "mir", "hdr"):
    print(f"{name:<14}definition {getattr(definition, name):.5f}  mirjax {getattr(ours, name):.5f}")
print(f"\nMIR of {len(few[0]):,} rows {ours.mir:.4f}, of all {N:,} {exact.mir:.4f}")

# %% [markdown]
# ## Streamed, and in two halves
#
# `ClassMoments` holds sums of a size that does not depend on $n$. Here it is the carry of a loop that makes each chunk, adds it and drops it: the features are never in memory. Two workers see one half each, and
# their sums are merged.


# %%
@jax.jit
def stream(first, last):
    empty = mirjax.ClassMoments.zeros(CLASSES, D)
    return jax.lax.fori_loop(first, last, lambda i, moments: moments.update(*chunk(i)), empty)


half = N // CHUNK // 2
(one, other), seconds = timed(lambda: (stream(0, half), stream(half, 2 * half)))
moments = one.merge(other)
streamed = moments.interplay(head)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(moments))
print(f"two streams: {seconds:.1f} s, {size / 1e6:.1f} MB of sums")
print(
    f"n = {one.sums.count.sum():,.0f} and {other.sums.count.sum():,.0f}, merged {streamed.weight:,.0f}"
)
print(f"MIR {streamed.mir:.5f} streamed, {exact.mir:.5f} at once")
collapse = jax.jit(mirjax.ClassMoments.collapse)(moments, head)
print(f"from the same sums: NC1 {collapse.nc1:.2f}, NC3 {collapse.nc3:.4f}")

# %% [markdown]
# ## Estimated, with an error
#
# Beyond a side of 4,096 a decomposition takes long, and `method="auto"` estimates: the top of the spectrum is split off, the rest is stochastic Lanczos quadrature on products with vectors.
# Two errors come with it. `standard_error` is one standard deviation of the random part. `lower` and `upper` hold without any probability, and are wide where the spectrum has a
# long tail. Here the estimate is asked for, to see it beside the exact value. `rank` is how many vectors are split off: more of them make the bounds narrower.

# %%
ranks, estimates = (32, 64, 128, 256), []
for rank in ranks:
    found, seconds = timed(lambda rank=rank: moments.interplay(head, method="lanczos", rank=rank))
    estimates.append(found)
    error = abs(found.mir - exact.mir)
    print(
        f"rank {rank:3}: MIR {found.mir:.4f} +- {found.standard_error.mir:.4f}, off by {error:.4f}, "
        f"in [{found.lower.mir:.3f}, {found.upper.mir:.3f}], {found.products} products, {seconds:.1f} s"
    )

ax = plt.figure(figsize=(6, 3.6), layout="constrained").subplots()
lower, upper = (np.array([getattr(e, side).mir for e in estimates]) for side in ("lower", "upper"))
look = {"colour": "C0", "style": ":"}
plot.curve(ranks, (lower + upper) / 2, (upper - lower) / 2, label="bounds", **look, ax=ax)
errors = [e.standard_error.mir for e in estimates]
means = [e.mir for e in estimates]
plot.curve(ranks, means, errors, label="estimate", colour="C1", marker="o", ax=ax)
plot.levels({"exact": exact.mir}, ax=ax)
ax.set_xscale("log", base=2)
ax.set_xlabel("rank that is split off")
ax.set_ylabel(f"MIR, n = {N:,}")
ax.legend()
plt.show()

# %% [markdown]
# The dotted line is the middle of the bounds. The estimate is far better than the bounds can promise. Quote the standard error for a value, the bounds where a statement must not fail.
#
# ### Tolerance
#
# With `tolerance` (relative to the joint entropy) products are spent until the standard error is below it, or `max_products` is reached. `converged` says which.

# %%
for options in ({"tolerance": 5e-5}, {"tolerance": 1e-6, "max_products": 1000}):
    found, seconds = timed(lambda o=options: moments.interplay(head, method="lanczos", **o))
    reached = found.standard_error.joint_entropy / found.joint_entropy
    asked = f"tolerance {options['tolerance']:.0e}: error {reached:.1e}"
    print(
        f"{asked}, {found.products:5} products, converged: {found.converged}, MIR {found.mir:.4f}"
    )

# %% [markdown]
# ## Over several devices
#
# If the rows lie on several devices they stay there, and only sums travel. `dataset_interplay` and `ClassMoments` find that out by themselves. Rows are cut into equal parts: pad with weight 0 where $n$ is not a multiple of the number of devices, or, as here, leave
# out the rest.

# %%
devices = jax.device_count()
mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
whole = N - N % devices
spread_features, spread_labels = jax.device_put((features[:whole], labels[:whole]), rows)
print(
    f"{len(spread_features.addressable_shards)} parts of {spread_features.addressable_shards[0].data.shape}"
)

spread, seconds = timed(lambda: mirjax.dataset_interplay(spread_features, head, spread_labels))
print(f"MIR {spread.mir:.5f} over {devices} devices, {exact.mir:.5f} on one")
print(f"HDR {spread.hdr:.5f} over {devices} devices, {exact.hdr:.5f} on one")

# %% [markdown]
# ## Over n
#
# Why all of them? The value depends on $n$, and only slowly comes to rest. What the definition needs in memory grows with $n^2$, the sums of `ClassMoments` do not grow.

# %%
sizes = (100, 1000, 10_000, 100_000, N)
found = [mirjax.dataset_interplay(features[:n], head, labels[:n]).mir for n in sizes[:-1]]
found.append(exact.mir)
for n, value in zip(sizes, found, strict=True):
    matrix = 4 * n**2 / 1e6
    print(
        f"n = {n:9,}: MIR {value:.4f}, an n x n matrix {matrix:13,.2f} MB, sums {size / 1e6:.2f} MB"
    )

ax = plt.figure(figsize=(6, 3.6), layout="constrained").subplots()
plot.curve(sizes, found, label="dataset_interplay", marker="o", ax=ax)
plot.levels({f"n = {N:,}": exact.mir}, ax=ax)
ax.set_xscale("log")
ax.set_xlabel("n")
ax.set_ylabel("MIR")
ax.legend()
plt.show()

# %% [markdown]
# ## Limits
#
# - `ClassMoments` holds $2 C d^2$ numbers. Where that is more than the $n d$ of the features, use `dataset_interplay`, with the rows over several devices.
# - What does not fit raises `MemoryError` before anything is allocated, with the numbers and with what would fit.
# - [Whole data sets](../docs/howto/scale.md) and [several devices and hosts](../docs/howto/devices.md) have the details, [the benchmarks](../benchmarks/README.md) larger sets.
