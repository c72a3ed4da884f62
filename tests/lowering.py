"""Lowers functions for accelerators that are not here, and lists what is decomposed in them."""

import re

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

PLATFORMS = ("tpu", "cuda")
# Custom calls of decompositions, which these platforms have.
DECOMPOSITIONS = {
    "tpu": {"Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"},
    "cuda": {
        "cusolver_geqrf_ffi",
        "cusolver_gesvd_ffi",
        "cusolver_gesvdj_ffi",
        "cusolver_orgqr_ffi",
        "cusolver_syevd_ffi",
        "cusolver_syevj_ffi",
    },
}
_DECOMPOSES = ("eigh", "svd", "qr", "geqrf", "cholesky", "tridiagonal", "schur", "eig")


def lowered(function, *arguments, platform, **options):
    """The StableHLO text of a function for a platform, compiled for nothing."""
    jitted = function if hasattr(function, "lower") else jax.jit(function, **options)
    return jitted.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def assert_runs_there(text, platform):
    """That there is nothing that the platform lacks: LAPACK, the host, or float64 on a TPU."""
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert not {name for name in calls if "callback" in name or "lapack" in name}, calls
    # Annotations of shardings are no calls of anything.
    assert calls <= DECOMPOSITIONS[platform] | {"Sharding", "shape_assertion"}, calls
    assert not re.search(r"tensor<[\dx?]*f64>", text)


def decomposed(function, *arguments, platform="tpu"):
    """The decompositions of a function on a platform, `{(name, shape), ...}`, from its trace."""
    found = set()
    _walk(jax.make_jaxpr(function)(*arguments).jaxpr, platform, found)
    return found


def _walk(jaxpr, platform, found):
    # Which branch each platform takes, by the variable that says it.
    chosen = {}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "platform_index":
            platforms = equation.params["platforms"]
            # The branch of a platform that is not named is that without names.
            taken = next(
                (i for i, names in enumerate(platforms) if names is not None and platform in names),
                next((i for i, names in enumerate(platforms) if names is None), None),
            )
            chosen[equation.outvars[0]] = taken
            continue
        inputs = [v for v in equation.invars if not hasattr(v, "val")]
        known = next((chosen[v] for v in inputs if v in chosen), None)
        if name in ("clamp", "convert_element_type") and known is not None:
            chosen[equation.outvars[0]] = known
            continue
        if name in _DECOMPOSES:
            found.add((name, equation.invars[0].aval.shape))
        if name == "cond" and equation.invars[0] in chosen:
            _walk(equation.params["branches"][chosen[equation.invars[0]]].jaxpr, platform, found)
            continue
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr):
                    _walk(part.jaxpr, platform, found)
                elif isinstance(part, Jaxpr):
                    _walk(part, platform, found)
