"""How much memory this process may still take."""

from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int | None:
    """What the host has left, or the container if that is less; None where the system does not say."""
    found = []
    with suppress(OSError, StopIteration, ValueError, IndexError):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    # A group without a limit says "max", which is no number. Pages of files count as used, but give way.
    with suppress(OSError, ValueError, KeyError):
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        figures = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(figures["file"]))
    return max(0, min(found)) if found else None
