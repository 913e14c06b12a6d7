"""Where the control groups of this process are mounted, in every layout: v1, v2, hybrid, inside a container."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath


class CgroupVersion(enum.Enum):
    """Decides the names and the syntax of a group's files."""

    V1 = 1
    V2 = 2


def cgroup_folders(root: Path, controller: str, v1_mounts: Sequence[str]) -> Iterator[tuple[Path, CgroupVersion]]:
    """The folders whose limits bind this process: its own group's, innermost first, up to the root's.

    A parent's limit binds its children. Folders may not exist.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
        controller: its name in ``/proc/self/cgroup`` (v1).
        v1_mounts: where v1 mounts it, below ``/sys/fs/cgroup``.
    """
    membership = read_text(root / "proc/self/cgroup")
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
            version = CgroupVersion.V2
        elif controller in controllers.split(","):
            bases = tuple(mount / name for name in v1_mounts)
            version = CgroupVersion.V1
        else:
            continue
        for base in bases:
            # Inside a container the path may be the host's and absent here; then only the
            # mount's own root, which is the container's group, exists and is read.
            for level in _levels(path):
                yield base / level, version


def _levels(path: str) -> Iterator[str]:
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield "/".join(parts[:depth])


def read_text(path: Path) -> str | None:
    """A file's text, or None where it cannot be read."""
    try:
        # Dozens are read when a session opens, of which most are not there: without Python's layers, in half the time.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode("ascii", errors="replace")
    except OSError:
        return None
