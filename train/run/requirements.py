"""Whether the packages that `train` needs are there; asked before any of them is imported."""

import importlib.util
import sys
from typing import Any

INSTALL = """Run `make`, or `pip install -e ".[train]"`, in the folder of the clone."""

# What every run needs, if only at its end. What some commands or data need (jinja2, scikit-learn, Pillow, TFDS,
# grain) is asked for there: runs on arrays go without.
_NEEDED = (
    "jax",
    "jaxtyping",
    "numpy",
    "flax",
    "matplotlib",
    "optax",
    "orbax.checkpoint",
    "rich",
    "scipy",
    "tensorboardX",
    "tyro",
)


def missing() -> list[str]:
    """The modules that cannot be found."""
    return [name for name in _NEEDED if not _is_there(name)]


def require_all() -> None:
    """Ends the program with one line and status 2 if a module is missing."""
    if names := missing():
        print(
            f"error: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed for {sys.executable}. {INSTALL}",
            file=sys.stderr,
        )
        raise SystemExit(2)


def one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """For `sys.excepthook`: an interruption while modules are imported is told without a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
