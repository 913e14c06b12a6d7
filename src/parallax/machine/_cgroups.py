"""Where the control groups of this process are mounted, in every layout: v1, v2, hybrid, inside a container."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Sequence

Root = str | os.PathLike[str]
"""Where ``proc`` and ``sys`` are mounted. Paths are text here: to load `pathlib` takes longer than to read it all."""


class CgroupVersion(enum.Enum):
    """Decides the names and the syntax of a group's files."""

    V1 = 1
    V2 = 2


def cgroup_folders(root: Root, controller: str, v1_mounts: Sequence[str]) -> Iterator[tuple[str, CgroupVersion]]:
    """The folders whose limits bind this process: its own group's, innermost first, up to the root's.

    A parent's limit binds its children. Folders may not exist.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
        controller: its name in ``/proc/self/cgroup`` (v1).
        v1_mounts: where v1 mounts it, below ``/sys/fs/cgroup``.
    """
    membership = read_text(root, "proc/self/cgroup")
    if membership is None:
        return
    mount = os.path.join(root, "sys/fs/cgroup")
    for line in membership.splitlines():
        # "hierarchy:controllers:path"; v2 is hierarchy 0 with no controllers named.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            # "unified" is where the hybrid layout of systemd mounts v2.
            bases: tuple[str, ...] = (mount, os.path.join(mount, "unified"))
            version = CgroupVersion.V2
        elif controller in controllers.split(","):
            bases = tuple(os.path.join(mount, name) for name in v1_mounts)
            version = CgroupVersion.V1
        else:
            continue
        for base in bases:
            # Inside a container the path may be the host's and absent here; then only the
            # mount's own root, which is the container's group, exists and is read.
            for level in _levels(path):
                yield os.path.join(base, level), version


def _levels(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        yield "/".join(parts[:depth])


def read_text(*path: Root) -> str | None:
    """The text of the file at a path, given in parts; None where it cannot be read."""
    try:
        # Dozens are read when a session opens, of which most are not there: without Python's layers, in half the time.
        with open(os.path.join(*path), "rb", buffering=0) as file:
            return file.read().decode("ascii", errors="replace")
    except OSError:
        return None
