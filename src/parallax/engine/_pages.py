"""Memory straight from the system, for arenas: whole pages of its own, which go back when nothing uses them."""

from __future__ import annotations

import mmap

import numpy as np


class PrivatePages:
    """Anonymous, private pages, zeroed and page-aligned; physical memory comes with the first write to each.

    Args:
        nbytes: at least this many bytes are reserved; 0 still gives one page.

    Raises: OSError, ValueError or OverflowError where the system refuses.
    """

    __slots__ = ("_bytes", "address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MAP_PRIVATE"):
            # Python's default is shared with children: one that runs on would write into its parent's tensors.
            pages = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            pages = mmap.mmap(-1, self.nbytes)
        self._bytes = np.frombuffer(pages, dtype=np.uint8)  # holds the mapping, which ends with its last holder
        self.address: int = self._bytes.ctypes.data

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.nbytes
