"""Checks that the packages that `train` needs are installed, before any of them is imported."""

import importlib.util
import sys
from types import TracebackType

INSTALL = """Run `make`, or `pip install -e ".[train]"`, in the folder of the clone."""

# What every run needs, if only at its end. Packages that only some commands or data need
# (scikit-learn, Pillow, TFDS, grain) are checked there, so that runs on arrays do without them.
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
    "typing_extensions",
    "tyro",
)


def missing() -> list[str]:
    """The modules that are not installed."""
    return [name for name in _NEEDED if not _is_there(name)]


def require_all() -> None:
    """Ends the program with one line and status 2 if a module is missing."""
    if names := missing():
        print(
            f"error: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed for "
            f"{sys.executable}. {INSTALL}",
            file=sys.stderr,
        )
        raise SystemExit(2)


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` that reports an interruption during the imports without a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_there(name: str) -> bool:
    # Not imported: that takes seconds, and a broken package should show its own error.
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
