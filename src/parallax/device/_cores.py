"""How many cores this process may really use.

``os.cpu_count()`` counts what the machine has. A container, ``taskset`` or a service manager often
allows less, in two independent ways: an affinity mask (these cores only) and a CPU quota (this much
time per period, on any core). Widths are planned against the smaller of the two.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import psutil  # type: ignore[import-untyped]

_CONTROLLER_MOUNTS = ("cpu,cpuacct", "cpuacct,cpu", "cpu")
"""Where cgroup v1 mounts its CPU controller, below ``/sys/fs/cgroup``."""

_QuotaReader = Callable[[Path], float | None]


def available_cores(*, root: Path = Path("/")) -> int:
    """Cores this process may keep busy at once; at least 1.

    The smaller of the affinity mask and the cgroup CPU quota (v1, v2, every level up to the root,
    since a parent's quota binds its children). A fractional quota is rounded *down*: a thread too
    many is throttled for the rest of each period (usually up to 100 ms), which costs a latency-bound
    run more than the idle fraction of a core.

    The quota is some two dozen file reads away, so it is read at most once a second.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    cores = _affinity_cores()
    quota = _recent_quota(root, int(time.monotonic()))
    return cores if quota is None else max(1, min(cores, int(quota)))


@functools.lru_cache(maxsize=8)
def _recent_quota(root: Path, second: int) -> float | None:
    return _quota_cores(root)


def _affinity_cores() -> int:
    getaffinity = getattr(os, "sched_getaffinity", None)
    if getaffinity is not None:
        return len(getaffinity(0)) or 1
    try:
        # Windows and FreeBSD; on macOS, which has no affinity, the attribute is missing.
        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    except (AttributeError, psutil.Error):
        return os.cpu_count() or 1


def _quota_cores(root: Path) -> float | None:
    """The tightest quota in cores, or None where there is none (or no cgroups at all)."""
    quotas = [quota for folder, read in _quota_folders(root) if (quota := read(folder)) is not None]
    return min(quotas, default=None)


def _quota_folders(root: Path) -> Iterator[tuple[Path, _QuotaReader]]:
    membership = _read(root / "proc/self/cgroup")
    if membership is None:
        return
    mount = root / "sys/fs/cgroup"
    for line in membership.splitlines():
        # "hierarchy:controllers:path"; v2 is hierarchy 0 with no controllers named.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            # "unified" is where the hybrid layout of systemd mounts v2.
            bases: tuple[Path, ...] = (mount, mount / "unified")
            read = _read_v2
        elif "cpu" in controllers.split(","):
            bases = tuple(mount / name for name in _CONTROLLER_MOUNTS)
            read = _read_v1
        else:
            continue
        for base in bases:
            # Inside a container the path may be the host's and absent here; then only the
            # mount's own root, which is the container's group, exists and is read.
            for level in _levels(path):
                yield base / level, read


def _levels(path: str) -> Iterator[str]:
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield "/".join(parts[:depth])


def _read_v2(folder: Path) -> float | None:
    fields = (_read(folder / "cpu.max") or "").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return _ratio(fields[0], fields[1])


def _read_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None else _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
