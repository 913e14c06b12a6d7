"""Real memory limits: a control group of our own, where the system lets us have one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """A control group with a limit. A process joins by writing its id to ``procs``."""

    folder: Path

    @property
    def procs(self) -> Path:
        return self.folder / "cgroup.procs"

    def most_bytes(self) -> int | None:
        """The most it ever held; None where the kernel does not say."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            with contextlib.suppress(OSError):
                return int((self.folder / name).read_text())
        return None


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group with this limit below the own one, or beside it; skips the test where none can be made."""
    refusals = []
    for parent, limits in _places():
        folder = parent / f"parallax-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError as error:
            refusals.append(str(error))
            continue
        try:
            if not (folder / limits[0]).exists():  # a plain folder, or a group without the memory controller
                raise FileNotFoundError(f"{folder} has no {limits[0]}")
            (folder / limits[0]).write_text(str(limit_bytes))
            for name in limits[1:]:
                with contextlib.suppress(OSError):  # kernels without accounting for swap do not have it
                    (folder / name).write_text(str(limit_bytes if "memsw" in name else 0))
        except OSError as error:
            refusals.append(str(error))
            folder.rmdir()
            continue
        try:
            yield MemoryGroup(folder=folder)
        finally:
            folder.rmdir()
        return
    pytest.skip(f"no control group can be made here: {'; '.join(refusals) or 'there are none'}")


def _places() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Groups that may let us make another below them, with the files that hold limits."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own = path.lstrip("/")
        if "memory" in controllers.split(","):
            limits: tuple[str, ...] = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            bases: tuple[Path, ...] = (_MOUNT / "memory",)
        elif not controllers:
            limits = ("memory.max", "memory.swap.max")
            bases = (_MOUNT, _MOUNT / "unified")
        else:
            continue
        for base in bases:
            # Of a container, the path may be the host's, and the mount's root the container's group.
            for place in dict.fromkeys((base / own, (base / own).parent, base)):
                if place.is_dir() and place.is_relative_to(base):
                    yield place, limits
