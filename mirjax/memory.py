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
