"""How much memory a method needs on each device, and how much is available."""

from pathlib import Path

import jax

# Up to this side a decomposition fits into any memory.
_SURE = 2**13


def available() -> int:
    """The number of bytes that can still be allocated on the default device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    # A CPU has no such statistics: what the system can give to this process.
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    # Unknown, so there is no limit.
    return 2**63 - 1


def of_moments(classes: int, width: int, itemsize: int) -> int:
    """Bytes of class moments: the sums, their rounding errors, and the normalised sums."""
    return 3 * itemsize * classes * width * width


def of_matrix(side: int, itemsize: int) -> int:
    """Bytes of a decomposition: the matrix, its copies and the workspace of the solver."""
    return 5 * itemsize * side * side


def of_vectors(size: int, rank: int, itemsize: int) -> int:
    """Bytes of a subspace of `rank` vectors: the vectors, their image, and copies of both."""
    return 4 * itemsize * size * rank


def check(method: str, needs: dict[str, int], limit: int | None, what: str) -> None:
    """Raises an error if `needs[method]` exceeds `limit`.

    Args:
        method: the chosen method.
        needs: the bytes that each method needs.
        limit: the number of bytes that may be used; if None, what is available.
        what: a description of the sizes that determine the need, for the message.

    Raises:
        MemoryError: the message has the numbers, and the methods that would fit.
    """
    limit = available() if limit is None else limit
    if needs[method] <= limit:
        return
    others = [name for name, size in needs.items() if name != method and size <= limit]
    if others:
        advice = " or ".join(f"method={name!r} needs {gib(needs[name])}" for name in others)
    else:
        advice = "No method fits: take fewer samples, a smaller rank, or more devices"
    raise MemoryError(
        f"method={method!r} needs about {gib(needs[method])} per device for {what}, but only "
        f"{gib(limit)} are available. {advice}."
    )


def check_side(side: int, itemsize: int, what: str, instead: str) -> None:
    """Raises an error if a decomposition with this side needs more memory than there is.

    Args:
        side: of the matrix that would be decomposed.
        itemsize: bytes of one number.
        what: what has this side, for the message.
        instead: what serves in place of it.

    Raises:
        MemoryError: the message has the numbers.
    """
    # Small sides always fit, and asking the system takes time.
    if side <= _SURE:
        return
    need, limit = of_matrix(side, itemsize), available()
    if need > limit:
        raise MemoryError(
            f"{what} would be a matrix of side {side}, whose decomposition needs about "
            f"{gib(need)}; {gib(limit)} are available. Use {instead}."
        )


def gib(size: int) -> str:
    """A number of bytes, in KiB, MiB or GiB."""
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"
