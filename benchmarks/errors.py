"""Errors of entropies by decomposition and by products, in float32, against float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mirjax
from mirjax._linalg.spectrum import EntropyMethod

SIDES = (64, 256, 512, 2048)
METHODS: tuple[EntropyMethod, ...] = ("eigh", "products")


def spectra(side: int) -> dict[str, np.ndarray]:
    """Spectra of trace 1 from initialisation to collapse; what lies below stands for within-class noise."""
    rng = np.random.default_rng(0)
    classes = np.arange(side) < 9
    made: dict[str, np.ndarray] = {
        "initialisation, full rank": np.linalg.svd(rng.normal(size=(side, 2 * side)))[1] ** 2,
        "initialisation, half the rank": np.pad(
            np.linalg.svd(rng.normal(size=(side, side // 2)))[1] ** 2, (0, side - side // 2)
        ),
        "training, power law": np.arange(1, side + 1) ** -1.0,
        "training, steep power law": np.arange(1, side + 1) ** -2.0,
    }
    for noise in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        made[f"near collapse of 10 classes, noise {noise:.0e}"] = classes / 9 + noise / side
    made["collapse of 10 classes"] = 1.0 * classes
    for noise in (1e-2, 1e-4, 1e-5):
        made[f"near rank one, noise {noise:.0e}"] = (np.arange(side) == 0) + noise / side
    made["rank one"] = 1.0 * (np.arange(side) == 0)
    return {name: values / values.sum() for name, values in made.items()}


def table(sides=SIDES) -> list[dict[str, Any]]:
    """Error of each method's value in nats and of its gradient, for every spectrum and side.

    The matrices are made in float64 and rounded; the reference is the float64 decomposition of the rounded
    matrix, so that the error is that of the method alone. Both come of one compiled call, as in a training step.
    A gradient counts as a factor `F` of the matrix sees it, `gradient F`, in units of the largest entry of `F`.
    """
    compiled = {
        method: jax.jit(jax.value_and_grad(functools.partial(mirjax.matrix_entropy, method=method)))
        for method in METHODS
    }
    measured = []
    for side in sides:
        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(side, side)))[0]
        for name, spectrum in spectra(side).items():
            matrix = ((rotation * spectrum) @ rotation.T).astype(np.float32)
            matrix = np.tril(matrix) + np.tril(matrix, -1).T
            values, vectors = np.linalg.eigh(matrix.astype(np.float64))
            values /= values.sum()
            # Null eigenvalues of the rounded matrix lie on both sides of 0: their terms cancel.
            exact = -np.sum(values * np.log(np.abs(values)))
            # What rounding has made of null eigenvalues has no logarithm to compare with.
            kept = values > side * np.finfo(np.float32).eps * values[-1]
            factor = vectors * np.sqrt(np.where(kept, values, 0.0))
            # What moves no trace: `-log A` less its mean.
            slope = factor * (-np.log(np.where(kept, values, 1.0)) - exact)
            row: dict[str, Any] = {"side": side, "spectrum": name, "entropy": exact}
            for method, call in compiled.items():
                value, gradient = jax.device_get(call(jnp.asarray(matrix)))
                off = np.abs(gradient.astype(np.float64) @ factor - slope)
                row[method] = float(value) - exact
                row[f"{method} gradient"] = float(np.max(off) / np.max(np.abs(factor)))
            measured.append(row)
    return measured


def show(rows: list[dict[str, Any]]) -> None:
    """As Markdown tables, one line a spectrum: of values and of gradients."""
    for of in ("", " gradient"):
        _show(rows, [method + of for method in METHODS])


def _show(rows: list[dict[str, Any]], columns: list[str]) -> None:
    sides = sorted({row["side"] for row in rows})
    titles = [f"{column}, {side}" for side in sides for column in columns]
    print("\n| spectrum | " + " | ".join(titles) + " |")
    print("|---" * (len(titles) + 1) + "|")
    for name in dict.fromkeys(row["spectrum"] for row in rows):
        by_side = {row["side"]: row for row in rows if row["spectrum"] == name}
        cells = [f"{by_side[side][column]:+.0e}" for side in sides for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for column in columns:
        worst = max(rows, key=lambda row: abs(row[column]))
        print(f"\nlargest of {column}: {worst[column]:+.1e} ({worst['spectrum']}, {worst['side']})")
