"""Errors of entropies by decomposition and by products, in float32, against float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mirjax

SIDES = (64, 512, 2048)


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
    """Error in nats of each method, for every spectrum and side.

    The matrices are made in float64 and rounded; the reference is the float64 decomposition of the
    rounded matrix, so that the error is that of the method alone.
    """
    compiled = jax.jit(mirjax.matrix_entropy, static_argnames="method")
    found = []
    for side in sides:
        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(side, side)))[0]
        for name, spectrum in spectra(side).items():
            matrix = ((rotation * spectrum) @ rotation.T).astype(np.float32)
            matrix = np.tril(matrix) + np.tril(matrix, -1).T
            values = np.linalg.eigvalsh(matrix.astype(np.float64))
            values /= values.sum()
            # Null eigenvalues of the rounded matrix lie on both sides of 0: their terms cancel.
            exact = -np.sum(values * np.log(np.abs(values)))
            errors = {
                m: float(compiled(jnp.asarray(matrix), method=m)) - exact
                for m in ("eigh", "products")
            }
            found.append({"side": side, "spectrum": name, "entropy": exact, **errors})
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """As a Markdown table, one line a spectrum."""
    sides = sorted({row["side"] for row in rows})
    titles = [f"{m}, {side}" for side in sides for m in ("eigh", "products")]
    print("| spectrum | " + " | ".join(titles) + " |")
    print("|---" * (len(titles) + 1) + "|")
    for name in dict.fromkeys(row["spectrum"] for row in rows):
        own = {row["side"]: row for row in rows if row["spectrum"] == name}
        cells = [f"{own[side][m]:+.0e}" for side in sides for m in ("eigh", "products")]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for m in ("eigh", "products"):
        worst = max(rows, key=lambda row: abs(row[m]))
        print(f"\nlargest of {m}: {worst[m]:+.1e} ({worst['spectrum']}, side {worst['side']})")
