"""Digests of files, and which of them need not be computed again.

A digest over hundreds of megabytes takes longer than opening a bundle should. So a file's digest is checked when this
user first opens it on this machine, and its *signature* (device, inode, size, times of modification and
of status change) is remembered; while that stays the same, so has the content. Every ordinary write moves the
status-change time, which no program can set back. What writes below the file system (a failing disk) does not
show: ``verify="full"`` is for that. On Windows the last of the times is that of creation, so there a writer
who restores the modification time goes unnoticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from parallax._hashing import new_sha256
from parallax.profile import Cache

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, modification and status-change time in ns."""

SMALL_BYTES = 1 << 20
"""Files up to this size are read and checked each time: that takes less than a millisecond."""

# A file written within a tick of its file system's clock after it was read would keep its signature. So a signature
# counts only if the file had been left alone for longer than a tick when reading began.
_TICK_NS = 100_000_000
_COARSE_TICK_NS = 2_100_000_000
"""Of file systems that keep whole seconds (or, as FAT, even ones)."""


_PIECE_BYTES = 1 << 16
"""What is read at once: hashed while in the CPU's cache, in memory of few pages that are new."""


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hex; reads it in pieces. Raises: OSError."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        digest = new_sha256(os.fstat(file.fileno()).st_size)
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return str(digest.hexdigest())


def signature(path: str | os.PathLike[str]) -> Signature:
    """Raises: OSError."""
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def settled(found: Signature, now_ns: int) -> bool:
    """Whether a write after ``now_ns`` (on the clock of ``time.time_ns``) is sure to change this signature."""
    tick = _COARSE_TICK_NS if found[3] % 1_000_000_000 == 0 else _TICK_NS
    return max(found[3], found[4]) + tick <= now_ns


def wait_until_settled(paths: Mapping[str, str | os.PathLike[str]]) -> None:
    """Sleep until the signatures of just-written files count: a tick of the file system's clock."""
    for path in paths.values():
        found = signature(path)
        if found[2] <= SMALL_BYTES:
            continue
        # Bounded: a clock that was set back would have us wait for hours.
        for _ in range(25):
            if settled(found, time.time_ns()):
                break
            time.sleep(_TICK_NS / 1e9)


class CheckedFiles:
    """Which files' digests were found right, by whom opens them on this machine; kept in the user's cache.

    Args:
        owner: under what the files are remembered, a bundle's or model's path.
    """

    def __init__(self, owner: str, cache_dir: str | os.PathLike[str] | None) -> None:
        self._cache = Cache(cache_dir)
        self._key = f"checked-files-1|{owner}"

    def load(self) -> dict[str, tuple[Signature, str]]:
        """Name -> signature and digest, as `store` was given them; empty if nothing usable is there."""
        stored = self._cache.load(self._key)
        found: dict[str, tuple[Signature, str]] = {}
        for name, entry in (stored or {}).items():
            if isinstance(entry, list) and len(entry) == 6 and all(type(part) is int for part in entry[:5]):
                device, inode, size, modified, changed, digest = entry
                found[name] = ((device, inode, size, modified, changed), str(digest))
        return found

    def store(self, files: Mapping[str, tuple[Signature, str]]) -> None:
        """Remember these and forget all others of this owner."""
        self._cache.store(self._key, {name: [*found, digest] for name, (found, digest) in files.items()})
