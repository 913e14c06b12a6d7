"""Whether others could have written what lies in a cache: what is read there decides what is run.

As ssh does with its keys: files and the folders above them must belong to this user or to root, and nobody else may
write to them. In a folder with the sticky bit (/tmp) others can add, but neither remove nor rename. Below a folder that
others cannot enter, it does not matter what they could write. Where there are no user ids (Windows), all is trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

PathLike = str | os.PathLike[str]


def why_distrusted(path: PathLike) -> str | None:
    """Why somebody else may have put there what lies at ``path``; None if nobody can have, or nothing is there.

    Some microseconds for each folder above it.
    """
    return why_any_distrusted([path])


def why_any_distrusted(paths: Iterable[PathLike]) -> str | None:
    """Likewise of several paths: of the first of which it is so."""
    if not hasattr(os, "geteuid"):
        return None
    judged: dict[str, bool] = {}
    for path in paths:
        # The last part as it is: a link in place of an entry is not the entry.
        above, name = os.path.split(os.fspath(path).rstrip("/") or "/")
        whole = os.path.join(os.path.realpath(above), name)
        can_enter = True
        for part in (*_above(whole), whole):
            if part in judged:
                can_enter = judged[part]
                continue
            try:
                found = os.lstat(part)
            except FileNotFoundError:
                break
            except OSError as error:
                return f"{part} cannot be looked at ({error.strerror or error})"
            complaint = _complaint(found, can_enter, is_above=part != whole)
            if complaint is not None:
                return f"{part} {complaint}"
            can_enter = can_enter and bool(found.st_mode & (stat.S_IXGRP | stat.S_IXOTH))
            judged[part] = can_enter
    return None


def _above(path: str) -> list[str]:
    """The folders above an absolute path, the root first."""
    names = path.split("/")[1:-1]
    return ["/", *("/" + "/".join(names[:count]) for count in range(1, len(names) + 1))]


def _complaint(found: os.stat_result, can_enter: bool, *, is_above: bool) -> str | None:
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to another user ({found.st_uid})"
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    may_be_shared = is_above and found.st_mode & stat.S_ISVTX
    if can_enter and not may_be_shared and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by others (chmod go-w)"
    return None
