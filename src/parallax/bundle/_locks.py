"""Lock files that the system releases when their owner dies, however it dies."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


# A link would have us lock, or make, a file elsewhere; opening a pipe would wait for its other end.
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class LockFile:
    """A file held locked by this process, and removed when it is released. Made by `try_lock`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file and let go of it."""
        if sys.platform == "win32":  # where an open file cannot be removed
            os.close(self._descriptor)
            self.path.unlink(missing_ok=True)
        else:  # the other way round, so that nobody locks a file that is about to vanish
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)


def try_lock(path: Path, *, create: bool) -> LockFile | None:
    """Lock ``path`` without waiting.

    Returns: None if another process holds it, or (without ``create``) there is nothing that this process could lock:
        no file, another user's, a folder, a link.
    Raises: OSError if it cannot be created.
    """
    while True:
        try:
            descriptor = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o600)
        except OSError as error:
            if create and not isinstance(error, PermissionError):
                raise
            return None  # a PermissionError may also (Windows) be of a file that is being removed
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _try_lock(descriptor):
            os.close(descriptor)
            return None
        # Between opening and locking, an owner may have removed the file: then this lock protects nothing.
        if _is_still(path, descriptor):
            return LockFile(path, descriptor)
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
