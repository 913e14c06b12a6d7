"""How much memory this process may still take, and how much there is for it at all.

The machine's figures mislead in a container: the limit of a control group is what kills. Every group up
to the root is looked at, because a parent's limit binds its children, and its siblings use it up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from parallax.machine._cgroups import CgroupVersion, Root, cgroup_folders, read_text

_CONTROLLER_MOUNTS: Final = ("memory",)
_LIMITS: Final = {
    # memory.high does not kill, but throttles whoever exceeds it nearly to a halt.
    CgroupVersion.V2: (("memory.max", "memory.current"), ("memory.high", "memory.current")),
    # The second pair counts swap as well: it binds where there is none.
    CgroupVersion.V1: (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
}
"""Files with a limit, and with what counts against it."""
_FILE_PAGES: Final = {
    CgroupVersion.V2: ("inactive_file", "active_file"),
    CgroupVersion.V1: ("total_inactive_file", "total_active_file"),
}
"""Fields of ``memory.stat``: pages that are copies of what lies in files, the group's descendants' included."""
_NO_LIMIT: Final = 1 << 60
"""v1 writes "no limit" as the largest multiple of a page; nothing real comes near."""


def free_memory_bytes(*, root: Root = "/") -> int:
    """Return the bytes that this process can take now without swapping or being killed; at least 0. Some hundred
    microseconds.

    The smallest of what the machine has available and what each control group (v1, v2) around the process
    leaves: its limit less its usage. Pages of files do not count as used (mapped weights are such), because
    the kernel drops them on demand; that they must be read again then is not in this figure.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    free = _machine_bytes(root, "available", "SC_AVPHYS_PAGES")
    for group in _limited_groups(root):
        free = min(free, group.limit_bytes - group.used_bytes)
    return max(0, free)


def memory_limit_bytes(*, root: Root = "/") -> int:
    """Return the bytes that this process could take if nothing else ran: the machine's memory, or the tightest limit
    on it."""
    total = _machine_bytes(root, "total", "SC_PHYS_PAGES")
    return min([total, *(group.limit_bytes for group in _limited_groups(root))])


def _machine_bytes(root: Root, figure: str, pages: str) -> int:
    """A figure of the machine's memory; by a system call, which counts in pages, where ``/proc`` cannot be read."""
    told = _meminfo(root)
    if told is not None:
        return told[figure]
    import psutil  # takes longer to load than a bundle to open

    try:
        return int(getattr(psutil.virtual_memory(), figure))
    except OSError:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _meminfo(root: Root) -> dict[str, int] | None:
    """What Linux tells of the machine's memory, as psutil reads it there too. None where it tells nothing, or what
    cannot be, as some containers do: psutil knows what to make of that."""
    lines = (read_text(root, "proc/meminfo") or "").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    try:
        total, available = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return None
    return {"total": total, "available": available} if 0 < available <= total else None


def private_bytes(*, root: Root = "/") -> int | None:
    """Return the bytes in memory that this process shares with nobody: what it alone costs. Some milliseconds at most.

    On Linux its anonymous pages (``/proc/self/smaps_rollup``); mapped files, like the weights of a bundle, are not
    among them. Elsewhere the unique set size, which counts private pages of files as well. None where neither is told.

    Args:
        root: where ``proc`` is mounted.
    """
    for line in (read_text(root, "proc/self/smaps_rollup") or "").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    import psutil  # for other systems than Linux

    try:
        return int(psutil.Process().memory_full_info().uss)
    except (OSError, psutil.Error, AttributeError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    limit_bytes: int
    used_bytes: int


def _limited_groups(root: Root) -> Iterator[_Group]:
    for folder, version in cgroup_folders(root, "memory", _CONTROLLER_MOUNTS):
        droppable: int | None = None
        for limit_name, usage_name in _LIMITS[version]:
            limit = _number(folder, limit_name)
            if limit is None or limit >= _NO_LIMIT:
                continue
            if droppable is None:
                droppable = _file_pages(folder, version)
            yield _Group(limit_bytes=limit, used_bytes=max(0, (_number(folder, usage_name) or 0) - droppable))


def _file_pages(folder: str, version: CgroupVersion) -> int:
    lines = (read_text(folder, "memory.stat") or "").splitlines()
    fields = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(_parsed(fields.get(name)) or 0 for name in _FILE_PAGES[version])


def _number(folder: str, name: str) -> int | None:
    return _parsed(read_text(folder, name))


def _parsed(text: str | None) -> int | None:
    """A size, or None for "max" and for what is no number."""
    try:
        return None if text is None else max(0, int(text))
    except ValueError:
        return None
