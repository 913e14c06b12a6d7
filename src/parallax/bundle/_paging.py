"""Pages of mapped files: which there are, and what the kernel is to do with them. Linux; elsewhere nothing of it.

Only read-only advice and the dropping of clean pages: what is dropped is read from the file again when it is
touched. So it must be known of a mapping that it is the one it is taken for, and that nobody wrote to it; see
`own_page_ranges`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import mmap
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = mmap.PAGESIZE

_MADV_RANDOM: Final = 1
_MADV_WILLNEED: Final = 3
_MADV_DONTNEED: Final = 4
_MADV_HUGEPAGE: Final = 14
_MADV_POPULATE_READ: Final = 22
"""From Linux 5.14: read and map all pages, wait for them."""
_CHUNK_BYTES: Final = 2 << 20
"""At most this much is mapped in one call, for whoever wants memory from the system waits for it."""
_LEAST_READ_AHEAD: Final = 128 << 10

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+\s*(.*)\n?")
_OCTAL = re.compile(r"\\(\d{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRange:
    """Whole pages of a file, mapped in this process."""

    path: str
    address: int
    offset: int
    length: int


def can_page() -> bool:
    """Whether this system has what this module needs."""
    return _madvise() is not None and os.path.exists("/proc/self/maps") and hasattr(os, "posix_fadvise")


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None, use_errno=True).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Nothing is mapped in an empty range: all that is asked is whether the kernel knows the advice.
    if found(0, 0, _MADV_POPULATE_READ) != 0:
        return None
    return found


def _advise(address: int, length: int, advice: int) -> None:
    call = _madvise()
    assert call is not None
    while call(address, length, advice) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))


# -- what the kernel is told ----------------------------------------------------------------------------------


def request(page_range: PageRange) -> None:
    """Have the pages read, one by one; does not wait for the disk. Raises: OSError."""
    step = _read_ahead_bytes(os.path.dirname(page_range.path))
    for start in range(0, page_range.length, step):
        _advise(page_range.address + start, min(step, page_range.length - start), _MADV_WILLNEED)


def prefer_large(page_range: PageRange) -> bool:
    """From now on have pages read in pieces of up to 2 MiB, ahead of where they are touched; False where it cannot be.

    Where the file system keeps such pieces (XFS, and ext4 from Linux 6.16 on), reading and dropping a file then take
    a small part of the processor time that single pages take.
    """
    try:
        _advise(page_range.address, page_range.length, _MADV_HUGEPAGE)
    except OSError:
        return False  # a kernel without huge pages
    return True


def prefer_single(page_range: PageRange) -> None:
    """From now on have only those pages read that are touched, none around them. Raises: OSError."""
    _advise(page_range.address, page_range.length, _MADV_RANDOM)


def fill(page_range: PageRange) -> None:
    """Have the pages read and mapped, and wait until they are. Raises: OSError if the file cannot be read."""
    for start in range(0, page_range.length, _CHUNK_BYTES):
        _advise(page_range.address + start, min(_CHUNK_BYTES, page_range.length - start), _MADV_POPULATE_READ)


def drop(page_ranges: Sequence[PageRange]) -> None:
    """Let go of the pages, also in the system's cache of files unless another process maps them. Raises: OSError."""
    for page_range in page_ranges:
        _advise(page_range.address, page_range.length, _MADV_DONTNEED)
    for path, offset, length in _file_ranges(page_ranges):
        # By name, lest every segment keep a file open. Should another file have taken its place, that one loses a
        # few pages of cache.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _file_ranges(page_ranges: Sequence[PageRange]) -> Iterator[tuple[str, int, int]]:
    """(path, offset, length), neighbours joined: a piece of the cache that lies in two ranges is left by both."""
    path, start, end = "", 0, 0
    for page_range in sorted(page_ranges, key=lambda page_range: (page_range.path, page_range.offset)):
        if page_range.path != path or page_range.offset > end:
            if end > start:
                yield path, start, end - start
            path, start, end = page_range.path, page_range.offset, page_range.offset
        end = max(end, page_range.offset + page_range.length)
    if end > start:
        yield path, start, end - start


def mapped_share(page_range: PageRange) -> float:
    """The share of its pages that this process has touched since it was mapped or dropped (as good as: the kernel
    maps up to 16 at once). 1.0 where the system does not tell. See "pagemap" in the kernel's documentation."""
    pages = page_range.length // PAGE_BYTES
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(page_range.address // PAGE_BYTES * 8)
            entries = file.read(pages * 8)
    except OSError:
        return 1.0
    if len(entries) < pages * 8:
        return 1.0
    return sum(int(entry >> 63) for (entry,) in struct.iter_unpack("=Q", entries)) / pages


@functools.cache
def _read_ahead_bytes(folder: str) -> int:
    """How much one request makes the kernel read: more is cut off silently."""
    try:
        device = os.stat(folder).st_dev
        text = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
        found = int(text) << 10
    except (OSError, ValueError):
        found = 0
    return max(_LEAST_READ_AHEAD, found) // PAGE_BYTES * PAGE_BYTES


# -- what is mapped -------------------------------------------------------------------------------------------

_own_lock = threading.Lock()


def _renew_lock() -> None:
    global _own_lock
    _own_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that holds it does not come along.
    os.register_at_fork(after_in_child=_renew_lock)


class OwnMappings:
    """What was mapped of some files while this was entered, by whoever entered it. Others who enter wait.

    A list of mappings tells no owner; but with one session opening these files at a time, what is new is its own.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        self._paths = frozenset(map(str, paths))
        self._before: list[PageRange] = []
        self._after: list[PageRange] = []

    def __enter__(self) -> OwnMappings:
        _own_lock.acquire()
        try:
            self._before = list(_mapped(self._paths))
        except BaseException:
            _own_lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._after = list(_mapped(self._paths))
        finally:
            _own_lock.release()

    def page_ranges(self) -> tuple[PageRange, ...] | None:
        """By address; None if there is doubt: something is mapped twice, or has been written to."""
        found = _without(self._after, self._before)
        by_place = sorted(found, key=lambda page_range: (page_range.path, page_range.offset))
        for one, other in itertools.pairwise(by_place):
            # Neighbours may share the page in which one ends and the other begins.
            if one.path == other.path and one.offset + one.length > other.offset + PAGE_BYTES:
                return None
        return tuple(found) if _are_clean(found) else None


def _mapped(paths: Collection[str]) -> Iterator[PageRange]:
    """Private mappings of these files, by address."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            match = _MAPPING.fullmatch(line)
            if match is None or not match[5] or not match[3].endswith("p"):
                continue
            path = _OCTAL.sub(lambda code: chr(int(code[1], 8)), match[5])
            if path in paths:
                start, end = int(match[1], 16), int(match[2], 16)
                yield PageRange(path=path, address=start, offset=int(match[4], 16), length=end - start)


def _without(page_ranges: Sequence[PageRange], others: Sequence[PageRange]) -> list[PageRange]:
    """The parts at addresses where ``others`` are not: the kernel joins mappings that happen to be neighbours."""
    left: list[PageRange] = []
    for page_range in page_ranges:
        position, end = page_range.address, page_range.address + page_range.length
        for other in others:
            if other.address >= end or other.address + other.length <= position:
                continue
            left.extend(_part(page_range, position, other.address))
            position = other.address + other.length
        left.extend(_part(page_range, position, end))
    return left


def _part(page_range: PageRange, start: int, end: int) -> Iterator[PageRange]:
    if start < end:
        offset = page_range.offset + start - page_range.address
        yield PageRange(path=page_range.path, address=start, offset=offset, length=end - start)


def _are_clean(page_ranges: Sequence[PageRange]) -> bool:
    """Whether no page of them was written to. False where the system does not tell."""
    spans = [(page_range.address, page_range.address + page_range.length) for page_range in page_ranges]
    current = (0, 0)
    told = 0
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                match = _MAPPING.fullmatch(line)
                if match is not None:
                    current = int(match[1], 16), int(match[2], 16)
                elif line.startswith(("Anonymous:", "Private_Dirty:")) and any(
                    current[0] < end and start < current[1] for start, end in spans
                ):
                    told += 1
                    if line.split()[1] != "0":
                        return False
    except OSError:
        return False
    return told > 0 or not spans
