"""Memory that was freed but not handed back: what allocators keep for later."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def trim_heap() -> bool:
    """Hand free pages of the C library's heap back to the system; whether the library can be asked to.

    Worth its milliseconds after work that allocated much and freed it again, like opening a session. glibc
    only: others hand pages back by themselves, or cannot be told.
    """
    trim = _malloc_trim()
    if trim is None:
        return False
    trim(0)
    return True


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    # musl has none.
    found: Callable[[int], int] | None = getattr(library, "malloc_trim", None)
    return found
