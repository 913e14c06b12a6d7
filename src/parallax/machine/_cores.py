"""How many cores this process may really use.

``os.cpu_count()`` counts what the machine has. A container, ``taskset`` or a service manager often
allows less, in two independent ways: an affinity mask (these cores only) and a CPU quota (this much
time per period, on any core). Widths are planned against the smaller of the two.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable

from parallax.machine._cgroups import CgroupVersion, Root, cgroup_folders, read_text

_CONTROLLER_MOUNTS = ("cpu,cpuacct", "cpuacct,cpu", "cpu")
"""Where cgroup v1 mounts its CPU controller, below ``/sys/fs/cgroup``."""


def available_cores(*, root: Root = "/") -> int:
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
    quota = _recent_quota(os.fspath(root), int(time.monotonic()))
    return cores if quota is None else max(1, min(cores, int(quota)))


@functools.lru_cache(maxsize=8)
def _recent_quota(root: str, second: int) -> float | None:
    return _quota_cores(root)


def _find_current_core() -> Callable[[], int] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        found = ctypes.PyDLL(None).sched_getcpu  # quicker than letting go of the GIL for it
    except (AttributeError, OSError):
        return None
    return found if found() >= 0 else None


current_core = _find_current_core()
"""The number of the core that the calling thread is on; None where the system cannot tell, or a thread not be moved."""


def move_to_first_core() -> bool:
    """Move the calling thread to the first core, free to go elsewhere from there; whether it could be moved.

    ONNX Runtime pins the threads of its default pool to all cores but the first. A caller that happens to sit on
    another one shares it with such a thread until the scheduler notices: some ten milliseconds in which both take
    twice as long, and a small model is opened in that time. Takes some ten microseconds, or until the first core is
    free, and next to nothing for a thread that is there. Linux only; a thread that may not use the first core, or no
    other, stays where it is.
    """
    getaffinity = getattr(os, "sched_getaffinity", None)
    if getaffinity is None:
        return False
    allowed = getaffinity(0)
    if 0 not in allowed or len(allowed) == 1:
        return False
    if current_core is not None and current_core() == 0:
        return True
    try:
        os.sched_setaffinity(0, {0})
        os.sched_setaffinity(0, allowed)
    except OSError:  # a sandbox may forbid it
        return False
    return True


def _affinity_cores() -> int:
    getaffinity = getattr(os, "sched_getaffinity", None)
    if getaffinity is not None:
        return len(getaffinity(0)) or 1
    import psutil  # for other systems than Linux

    try:
        # Windows and FreeBSD; on macOS, which has no affinity, the attribute is missing.
        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    except (AttributeError, OSError, psutil.Error):
        return os.cpu_count() or 1


def _quota_cores(root: Root) -> float | None:
    """The tightest quota in cores, or None where there is none (or no cgroups at all)."""
    quotas = [
        quota
        for folder, version in cgroup_folders(root, "cpu", _CONTROLLER_MOUNTS)
        if (quota := _read_v2(folder) if version is CgroupVersion.V2 else _read_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _read_v2(folder: str) -> float | None:
    fields = (read_text(folder, "cpu.max") or "").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return _ratio(fields[0], fields[1])


def _read_v1(folder: str) -> float | None:
    quota, period = (read_text(folder, name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return None if quota is None or period is None else _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None
