"""How much memory a method needs on each device, and how much there is."""

from pathlib import Path

import jax


def available() -> int:
    """Bytes that can still be allocated on the default device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return 2**63 - 1


def of_moments(classes: int, width: int, itemsize: int) -> int:
    """Bytes of class moments: as accumulated, what rounding took, and as divided."""
    return 3 * itemsize * classes * width * width


def of_matrix(side: int, itemsize: int) -> int:
    """Bytes of a decomposition: the matrix, its copies and the solver's own."""
    return 5 * itemsize * side * side


def of_vectors(size: int, rank: int, itemsize: int) -> int:
    """Bytes of a subspace of `rank` vectors: the vectors, their image, and copies of both."""
    return 5 * itemsize * size * rank


def check(method: str, needs: dict[str, int], limit: int | None, what: str) -> None:
    """Raises where `needs[method]` bytes exceed `limit` (what is available, if None).

    Args:
        method: the one that was asked for.
        needs: bytes of each method.
        limit: bytes.
        what: the sizes that decide, in words.

    Raises:
        MemoryError: with the numbers, and the methods that would fit.
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
        f"method={method!r} needs about {gib(needs[method])} a device for {what}, and "
        f"{gib(limit)} are there. {advice}."
    )


def gib(size: int) -> str:
    """A size in words."""
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"
