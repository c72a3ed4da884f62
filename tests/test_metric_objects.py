"""Metric objects of two habits on one state, wherever training loops put them."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirjax
from tests.simulated import printed_on_devices

nnx = pytest.importorskip("flax.nnx")
metrics = pytest.importorskip("mirjax.metrics")

C, D, N = 3, 8, 24


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(C, D)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(w), jnp.arange(N) % C


def batches(z, y, size=8):
    return [(z[i : i + size], y[i : i + size]) for i in range(0, len(z), size)]


def test_values_are_those_of_the_functions():
    z, w, y = drawn()
    metric = metrics.InterplayMetric(C, D)
    for rows, labels in batches(z, y):
        metric.update(features=rows, labels=labels, logits=None)
    values = metric.compute(w)
    assert all(type(value) is float for value in values.values())
    json.dumps(values)
    whole, pairs = mirjax.dataset_interplay(z, w, y), mirjax.dataset_debiased_interplay(z, w, y)
    collapse = mirjax.neural_collapse(z, y, w, num_classes=C)
    spectra = mirjax.spectra.measure(z, y, num_classes=C)
    for name in ("mir", "hdr", "mutual_information", "joint_entropy"):
        assert values[name] == pytest.approx(float(getattr(whole, name)), abs=2e-5)
    assert values["mir_debiased"] == pytest.approx(float(pairs.mir), abs=2e-5)
    assert values["nc1"] == pytest.approx(float(collapse.nc1), rel=1e-4)
    for name in ("rankme", "lidar", "nesum", "effective_rank"):
        assert values[name] == pytest.approx(float(getattr(spectra, name)), rel=1e-4)
    assert values["weight"] == N
    mask = np.arange(N) < 10
    metric.update(features=z, labels=y, mask=mask)
    assert metric.compute(w)["weight"] == N + 10
    with pytest.raises(ValueError, match="both given"):
        metric.update(features=z, labels=y, mask=mask, weights=mask)
    assert metric.compute(w, first=1)["alpha_req"] > 0
    metric.reset()
    assert metric.compute(w)["weight"] == 0


def test_compiled_scanned_and_beside_others():
    z, w, y = drawn()
    right = metrics.InterplayMetric(C, D)
    right.update(features=z, labels=y)
    metric = nnx.MultiMetric(interplay=metrics.InterplayMetric(C, D), loss=nnx.metrics.Average())

    @nnx.jit
    def step(metric, rows, labels):
        metric.update(features=rows, labels=labels, values=jnp.ones(3))

    for rows, labels in batches(z, y):
        step(metric, rows, labels)
    inner = metric.interplay
    assert inner.compute(w)["mir"] == pytest.approx(right.compute(w)["mir"], abs=1e-5)

    scanned = metrics.InterplayMetric(C, D)

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)
    def over_batches(metric, rows, labels):
        metric.update(features=rows, labels=labels)
        return metric

    scanned = over_batches(scanned, z.reshape(3, 8, D), y.reshape(3, 8))
    compiled = nnx.jit(lambda metric, head: metric.compute(head))(scanned, w)
    assert isinstance(compiled["mir"], jax.Array)
    assert float(compiled["mir"]) == pytest.approx(right.compute(w)["mir"], abs=1e-5)


def test_saved_and_restored_by_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    z, w, y = drawn()
    metric = metrics.InterplayMetric(C, D)
    metric.update(features=z, labels=y)
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "metric", nnx.state(metric))
    saver.wait_until_finished()
    other = metrics.InterplayMetric(C, D)
    nnx.update(other, saver.restore(tmp_path / "metric", nnx.state(other)))
    assert other.compute(w) == metric.compute(w)
    other.update(features=z, labels=y)
    assert other.compute(w)["weight"] == 2 * N


def test_four_methods_without_a_change_in_place():
    z, w, y = drawn()
    kind = metrics.StreamedInterplay.of(C, D)
    merged, parts = kind.empty(), []
    for rows, labels in batches(z, y):
        parts.append(kind.from_model_output(features=rows, labels=labels, head=w, loss=1.0))
        merged = merged.merge(parts[-1])
    right = metrics.summary(mirjax.ClassMoments.zeros(C, D).update(z, y), w)
    backwards = parts[2].merge(parts[0]).merge(parts[1]).merge(kind.empty())
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts).reduce()
    for metric in (merged, backwards, stacked):
        for name, value in metric.compute().items():
            assert value == pytest.approx(right[name], rel=1e-4, abs=1e-5), name
    mask = (np.arange(N) < 12).astype(np.float32)
    masked = kind.from_model_output(z, y, w, mask=mask)
    assert masked.compute()["weight"] == 12
    with pytest.raises(ValueError, match="both given"):
        kind.from_model_output(z, y, w, weights=mask, mask=mask)
    assert kind is metrics.StreamedInterplay.of(C, D)
    with pytest.raises(ValueError, match="pass its transpose"):
        kind.from_model_output(z, y, w.T)
    with pytest.raises(ValueError, match="cannot be merged"):
        kind.empty().merge(metrics.StreamedInterplay.of(C, D + 1).empty())
    with pytest.raises(TypeError, match=r"StreamedInterplay\.of"):
        metrics.StreamedInterplay.empty()


def test_in_a_collection_of_clu():
    clu = pytest.importorskip("clu.metrics")
    import flax

    z, w, y = drawn()
    kind = metrics.StreamedInterplay.of(C, D)

    @flax.struct.dataclass
    class Collected(clu.Collection):
        interplay: kind
        loss: clu.Average.from_output("loss")

    @jax.jit
    def step(collected, rows, labels):
        new = Collected.single_from_model_output(
            features=rows, labels=labels, head=w, loss=jnp.ones(8)
        )
        return collected.merge(new)

    collected = Collected.empty()
    for rows, labels in batches(z, y):
        collected = step(collected, rows, labels)
    # Their average divides numbers of two types.
    with jax.numpy_dtype_promotion("standard"):
        values = collected.compute()["interplay"]
    right = metrics.summary(mirjax.ClassMoments.zeros(C, D).update(z, y), w)
    assert values["mir"] == pytest.approx(right["mir"], abs=1e-5)


@pytest.mark.slow
def test_batches_cut_over_eight_devices():
    errors = json.loads(printed_on_devices("tests.metric_script", 8))
    assert set(errors) == {"nnx", "clu"}
    assert max(errors.values()) < 1e-4, errors


def test_without_second_moments():
    z, w, y = drawn()
    metric = metrics.InterplayMetric(C, D, second=False)
    metric.update(features=z, labels=y)
    values = metric.compute(w)
    assert "mir" not in values
    with pytest.raises(ValueError, match="second=False"):
        metric.compute(w, method="lanczos")
    assert values["entropy1"] == pytest.approx(float(mirjax.interplay(z, w, y).entropy1), abs=1e-5)


def test_the_library_does_not_import_flax():
    code = "import sys, mirjax, mirjax.plot; print('flax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
