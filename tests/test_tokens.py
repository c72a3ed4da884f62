"""Hidden states under a mask: values prompt by prompt, and padding that does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from mirjax import tokens
from tests.reference import definition, pairs
from tests.tolerances import assert_interplay, assert_near

LAYERS, PROMPTS, TOKENS, WIDTH = 3, 7, 6, 4
LENGTHS = np.array([6, 3, 4, 5, 6, 3, 4])
measure = jax.jit(tokens.measure, static_argnames=("pooling", "normaliser"))


def padded(side, fill=0.0, dtype="float32"):
    """Hidden states and the mask, with the padding at one end."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(LAYERS, PROMPTS, TOKENS, WIDTH)) + 0.5
    mask = np.arange(TOKENS) < LENGTHS[:, None]
    hidden = np.where(mask[None, ..., None], rows, fill)
    if side == "left":
        for p, length in enumerate(LENGTHS):
            hidden[:, p] = np.roll(hidden[:, p], TOKENS - length, axis=1)
            mask[p] = np.roll(mask[p], TOKENS - length)
    return hidden.astype(dtype), mask


def prompts(layer):
    """The tokens of each prompt, without padding."""
    hidden, mask = padded("right", dtype="float64")
    return [hidden[layer, p][mask[p]] for p in range(PROMPTS)]


def angles(z):
    steps = np.diff(z, axis=0)
    steps = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return np.arccos(np.sum(steps[1:] * steps[:-1], axis=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_prompt_by_prompt(dtype, x64):
    hidden, mask = padded("right", dtype=dtype)
    found = {pooling: measure(hidden, mask, pooling=pooling) for pooling in ("mean", "last")}
    allowed = 1e-5 if dtype == "float32" else 1e-12
    for layer in range(LAYERS):
        entropies = [definition.feature_entropy(z, np.ones(len(z))) for z in prompts(layer)]
        mean = found["mean"]
        assert_near(mean.prompt_entropy[layer], np.mean(entropies), allowed)
        assert_near(mean.effective_rank[layer], np.mean(np.exp(entropies)), 4 * allowed)
        curvatures = [np.mean(angles(z)) for z in prompts(layer)]
        assert_near(mean.curvature[layer], np.mean(curvatures), allowed)
    for pooling, pool in (("mean", lambda z: z.mean(axis=0)), ("last", lambda z: z[-1])):
        rows = [np.stack([pool(z) for z in prompts(layer)]) for layer in range(LAYERS)]
        result = found[pooling]
        np.testing.assert_allclose(
            tokens.pool(hidden, mask, pooling=pooling), rows, rtol=1e-5, atol=1e-6
        )
        for layer in range(LAYERS):
            right = definition.feature_entropy(rows[layer], np.ones(PROMPTS))
            assert_near(result.dataset_entropy[layer], right, allowed)
        for layer in range(LAYERS - 1):
            both = rows[layer], rows[layer + 1]
            at_layer = jax.tree.map(lambda x, i=layer: x[i], (result.between, result.debiased))
            assert_interplay(at_layer[0], definition.feature_interplay(*both))
            assert_interplay(at_layer[1], pairs.interplay(*both, np.ones(PROMPTS)))
            assert result.standard_error.mir[layer] > 0


@pytest.mark.parametrize("fill", [1e30, np.nan, np.inf])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_at_either_end_does_not_matter(pooling, fill):
    right = measure(*padded("right"), pooling=pooling)
    for side in ("right", "left"):
        found = measure(*padded(side, fill), pooling=pooling)
        for value, known in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(value, known, rtol=1e-6, atol=1e-6)

    def total(hidden):
        found = tokens.measure(hidden, mask, pooling=pooling)
        return sum(jnp.sum(part) for part in jax.tree.leaves(found))

    hidden, mask = padded("left", fill)
    gradient = jax.jit(jax.grad(total))(hidden)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[:, ~mask] == 0)


def test_tokens_left_out_in_the_middle_drop_out_of_the_order():
    hidden, _ = padded("right")
    mask = np.array([[1, 0, 1, 1, 0, 1]] * PROMPTS, np.int32)
    found = tokens.curvature(hidden, mask)
    np.testing.assert_allclose(found, tokens.curvature(hidden[..., [0, 2, 3, 5], :]), rtol=1e-6)


def test_normalisers_are_those_that_are_named():
    hidden, mask = padded("right")
    plain = np.asarray(tokens.prompt_entropy(hidden, mask))
    logs = np.log(LENGTHS), np.log(WIDTH)
    divisors = {
        "log_tokens": logs[0],
        "log_width": logs[1],
        "log_rank": np.minimum(*logs),
        "log_tokens_log_width": logs[0] * logs[1],
        "tokens": LENGTHS,
    }
    assert set(divisors) == set(tokens.Normaliser.__args__)
    for name, divisor in divisors.items():
        found = tokens.prompt_entropy(hidden, mask, normaliser=name)
        np.testing.assert_allclose(found, plain / divisor, rtol=1e-6)
    found = measure(hidden, mask, normaliser="log_tokens")
    assert_near(found.prompt_entropy, np.mean(plain / logs[0], axis=1), 1e-6)


def test_prompts_without_tokens_do_not_count():
    hidden, mask = padded("right")
    right = measure(hidden, mask)
    more = np.concatenate([hidden, np.full_like(hidden[:, :2], np.nan)], axis=1)
    found = measure(more, np.concatenate([mask, np.zeros((2, TOKENS), bool)]))
    for value, known in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(value, known, rtol=1e-5, atol=1e-6)
    none = tokens.prompt_entropy(more, np.zeros((9, TOKENS), bool), normaliser="log_tokens")
    assert np.all(none == 0)


def test_degenerate_tokens():
    straight = np.arange(5.0, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    back = np.where(np.arange(5) % 2, 1.0, 0.0).astype(np.float32)[:, None] * np.ones((1, 3))
    hidden = np.stack([straight, back.astype(np.float32), 0 * straight + 2, straight])
    mask = np.array([[1] * 5, [1] * 5, [1] * 5, [1, 1, 0, 0, 0]])
    found = tokens.curvature(hidden, mask)
    np.testing.assert_allclose(found, [0, np.pi, np.nan, np.nan], atol=1e-6)
    assert np.all(np.isnan(tokens.curvature(hidden[:, :2])))
    assert_near(tokens.prompt_entropy(hidden, mask), 0.0, 1e-6)
    hidden[1, 3, 1] = np.nan
    assert np.isnan(tokens.curvature(hidden, mask)[1])
    assert np.isnan(tokens.prompt_entropy(hidden, mask)[1])
    one = mask * (np.arange(5) == 3)
    assert np.isnan(tokens.prompt_entropy(hidden, one, normaliser="log_tokens")[1])


def test_prompts_of_one_document_make_no_pair():
    hidden, mask = padded("right")
    twice = np.concatenate([hidden, hidden], axis=1), np.concatenate([mask, mask])
    groups = np.tile(np.arange(PROMPTS), 2)
    found = jax.jit(tokens.measure)(*twice, groups=groups)
    right = measure(hidden, mask)
    np.testing.assert_allclose(found.debiased, right.debiased, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(measure(*twice).debiased.mir - right.debiased.mir) > 1e-3)


def test_layers_of_a_tree_take_tokens_and_masks():
    hidden, mask = padded("left", np.nan)
    tree = {"first": hidden[0], "rest": [hidden[1], hidden[2]]}
    found = jax.jit(mirjax.layerwise(mirjax.feature_entropy, tokens=True))(tree, mask=mask)
    right = tokens.prompt_entropy(hidden, mask)
    np.testing.assert_allclose([found["first"], *found["rest"]], right, rtol=1e-5)
    layerwise = mirjax.layerwise(mirjax.effective_rank, tokens=True)
    with pytest.raises(ValueError, match=r"activations\['a'\] of shape .* expected a mask"):
        layerwise({"a": hidden}, mask=mask)
    with pytest.raises(ValueError, match="tokens=True"):
        mirjax.layerwise(mirjax.effective_rank)({"a": hidden[0]})
    rows = {"a": hidden[0, 0]}
    of_rows = mirjax.layerwise(mirjax.feature_entropy)(rows, mask=mask[0])
    assert_near(of_rows["a"], right[0, 0], 1e-6)


H, M = padded("right")
REFUSED = {
    "mask of floats": (
        lambda: tokens.curvature(H, M.astype(np.float32)),
        TypeError,
        "mask must be a Boolean or integer array",
    ),
    "mask of a layer": (
        lambda: tokens.pool(H, M[None]),
        ValueError,
        r"mask must be \[prompts, tokens\] = \(7, 6\)",
    ),
    "groups": (lambda: tokens.measure(H, M, groups=np.arange(4)), ValueError, "groups must be"),
    "mask of floats, of layers": (
        lambda: mirjax.layerwise(mirjax.effective_rank, tokens=True)(
            {"a": H[0]}, mask=M.astype(np.float32)
        ),
        TypeError,
        "mask must be a Boolean",
    ),
    "pooling": (
        lambda: tokens.pool(H, M, pooling="first"),
        ValueError,
        "pooling must be 'mean', 'last', got 'first'",
    ),
    "normaliser": (
        lambda: tokens.prompt_entropy(H, M, normaliser="log n"),
        ValueError,
        "normaliser must be",
    ),
    "one layer": (lambda: tokens.measure(H[:1], M), ValueError, "at least two layers"),
    "rows": (lambda: tokens.pool(H[0, 0]), ValueError, "hidden must have shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
