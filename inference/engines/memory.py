"""What memory this process may have, and what it has asked for. Linux tells; elsewhere it is 0."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

KIB = 1024


def allowed(root: Path = Path("/")) -> int:
    """Bytes: the machine's, or what the container may have if that is less; 0: not known."""
    return min([*_of_machine(root), *_of_groups(root)], default=0)


def asked_for() -> int:
    """Bytes of addresses: a cache that is not filled yet counts whole."""
    return next(_told(Path("/proc/self/status"), "VmSize:"), 0)


def _of_machine(root: Path) -> Iterator[int]:
    return _told(root / "proc/meminfo", "MemTotal:")


def _told(path: Path, name: str) -> Iterator[int]:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                yield int(line.split()[1]) * KIB


def _of_groups(root: Path) -> Iterator[int]:
    """The limits of this process's group and of those around it, in both versions of groups."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(errors="replace").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                top = root / "sys/fs/cgroup" / kinds
                yield from _limits(top, top / path.lstrip("/"), name)


def _limits(top: Path, group: Path, name: str) -> Iterator[int]:
    """In a container the path may be the host's: then only the top is there."""
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # "max"
            yield int((folder / name).read_text())
        if folder == top:
            return
