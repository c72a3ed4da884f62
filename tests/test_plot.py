import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import mirjax
from mirjax import plot


@pytest.fixture(scope="module")
def bias():
    head, labels = mirjax.theory.simplex_etf(4, 8), jnp.arange(64) % 4
    features = head[labels] + jax.random.normal(jax.random.key(0), (64, 8))
    return mirjax.batch_bias(features, head, labels, batch_sizes=(8, 16))


def test_functions_draw_on_what_they_are_given(bias):
    ax = Figure().subplots()
    features = jax.random.normal(jax.random.key(0), (20, 4))
    drawn = [
        plot.curve([1, 2], [0.1, 0.2], ax=ax),
        plot.levels({"a": 1.0}, ax=ax),
        plot.spectrum(features, ax=ax),
        plot.path([0, 1], [0.1, 0.2], ax=ax),
        plot.batch_bias(bias, ax=ax),
    ]
    assert all(found is ax for found in drawn)
    # Without axes each makes its own, and pyplot, which keeps figures, is not touched.
    assert plot.curve([1], [1.0]) is not plot.curve([1], [1.0])
    assert "matplotlib.pyplot" not in sys.modules


def test_the_band_is_mean_and_spread_in_the_colour_of_the_line():
    ax = plot.curve([0, 1], [1.0, 2.0], [0.5, 0.25], colour="C3", marker="o", style="--")
    (line,), (band,) = ax.lines, ax.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == 0.5
    assert edges[:, 1].max() == 2.25
    assert np.allclose(band.get_facecolor()[0][:3], np.asarray([0xD6, 0x27, 0x28]) / 255)
    assert (line.get_color(), line.get_marker(), line.get_linestyle()) == ("C3", "o", "--")
    # A second line gets another colour, and its band that colour.
    plot.curve([0, 1], [1.0, 2.0], [0.1, 0.1], ax=ax)
    assert not np.allclose(ax.collections[1].get_facecolor(), band.get_facecolor())


def test_the_spectrum_is_that_of_the_gram_matrix():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 3)).astype(np.float32) @ rng.normal(size=(3, 12))
    ax = plot.spectrum(features.astype(np.float32), label="rank 3")
    values = ax.lines[0].get_ydata()
    gram = np.asarray(mirjax.gram(features.astype(np.float32)), np.float64)
    expected = np.linalg.eigvalsh(gram / 30)[::-1][:3]
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    entropy = -np.sum(expected * np.log(expected))
    assert ax.lines[0].get_label() == f"rank 3, effective rank {np.exp(entropy):.1f}"
    with pytest.raises(ValueError, match="features"):
        plot.spectrum(np.zeros(3, np.float32))


def test_the_chord_of_a_path_joins_its_ends():
    ax = plot.path([0.0, 0.5, 1.0], [0.4, 1.3, 0.6], [0.1, 0.1, 0.1])
    curve, chord = ax.lines
    assert chord.get_xydata().tolist() == [[0.0, 0.4], [1.0, 0.6]]
    assert chord.get_color() == curve.get_color()
    # Where nothing is known there is nothing to connect.
    assert len(plot.path([], []).lines) == 1


@pytest.mark.parametrize("metric", ["mir", "hdr", "entropy1"])
def test_bias_shows_batches_and_the_whole(metric, bias):
    ax = plot.batch_bias(bias, metric=metric, label="trained")
    whole = float(getattr(bias.whole, metric))
    _, labels = ax.get_legend_handles_labels()
    assert sorted(labels) == ["trained, batches", f"trained, whole set: {whole:.3f}"]
    line = next(x for x in ax.lines if x.get_label().startswith("trained, whole"))
    assert line.get_ydata()[0] == pytest.approx(whole)


def test_the_line_through_a_spectrum_is_that_of_alpha_req():
    rng = np.random.default_rng(1)
    # Steep, of fewer samples than features: some eigenvalues are rounding.
    rows = (rng.normal(size=(60, 200)) * np.arange(1, 201.0) ** -3).astype(np.float32)
    values = mirjax.spectra.eigenvalues(rows)
    ax = plot.spectra({"steep": values, "half": values.astype(jnp.bfloat16), "none": 0 * values})
    alpha = float(mirjax.spectra.alpha_req(rows))
    labels = [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
    assert labels[0] == f"steep, α {alpha:.2f}"
    assert labels[-1] == "none"
    line, fitted = ax.lines[:2]
    drawn = np.log(np.asarray(fitted.get_xydata()))
    slope = (drawn[-1, 1] - drawn[0, 1]) / (drawn[-1, 0] - drawn[0, 0])
    assert slope == pytest.approx(-alpha, rel=1e-4)
    assert np.sum(line.get_ydata()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"eigenvalues of x must be \[k\]"):
        plot.spectra({"x": np.ones((2, 3))})


def test_layers_have_a_panel_for_each_measure():
    of_one = {"rank": [3.0, 5.0, 4.0], "MIR": [0.8, 0.6]}
    axes = plot.layers({"a": of_one, "b": {"rank": [1.0, 1.0, 2.0]}}, names=["x", "y", "z"])
    assert [ax.get_title() for ax in axes] == ["rank", "MIR"]
    assert [len(ax.lines) for ax in axes] == [2, 1]
    np.testing.assert_array_equal(axes[1].lines[0].get_xdata(), [0.5, 1.5])
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["x", "y", "z"]
    given = Figure().subplots(1, 3)
    assert list(plot.layers({"a": of_one}, axes=given)) == list(given[:2])
    with pytest.raises(ValueError, match="axes: 1 given for 2 measures"):
        plot.layers({"a": of_one}, axes=given[:1])
    with pytest.raises(ValueError, match="rank of b has 1 values for 3 layers"):
        plot.layers({"a": of_one, "b": {"rank": [1.0]}})


def test_lengths_that_differ():
    with pytest.raises(ValueError, match="mean has 2 values for 3 of x"):
        plot.curve([0, 1, 2], [0.0, 1.0])
    with pytest.raises(ValueError, match="spread has 1 values for 2 of x"):
        plot.curve([0, 1], [0.0, 1.0], [0.1])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mirjax\[plot\]'"):
        plot.curve([0], [1.0])
