"""Run models larger than memory: read the weights of the next segments while one runs, and drop those behind.

Left to itself, the kernel drops what was used longest ago, which in a cycle is what is needed next, and reads again
only when a kernel touches a page and has to wait. Here a thread reads ahead of the run, in its order, and keeps as much
as there is room for from one run to the next (`_window` decides what).
"""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from parallax.bundle._paging import (
    OwnMappings,
    PageRange,
    can_page,
    drop,
    fill,
    mapped_share,
    prefer_large,
    prefer_single,
    request,
)
from parallax.bundle._window import Act, Step, Window
from parallax.machine import free_memory_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

DENSE_SHARE = 0.5
"""Mapped weights of which the first run touched less than this are not read ahead: tables that rows are looked up in,
bodies that were not entered."""

SMALL_BYTES = 1 << 20
"""Smaller ones are read whole in any case."""

SPARE_SHARE = 16
"""One part in so many of what is free is left to the rest of the process."""


def weight_budget(held_bytes: int) -> int:
    """Bytes that weights may take now: what is free, less what the process's code takes and a little.

    Pages of files count as free, which mapped weights are, but so is code; without it nothing runs.

    Args:
        held_bytes: what weights take now.
    """
    free = free_memory_bytes()
    code = max(0, _mapped_file_bytes() - held_bytes)
    # Of code, only a part is used again and again; it is not to take all of the budget.
    return max(0, free - max(min(code, free // 2), free // SPARE_SHARE))


def _mapped_file_bytes() -> int:
    """Pages of files in this process's memory; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^RssFile:\s+(\d+) kB", status, re.MULTILINE)
    return 0 if found is None else int(found[1]) << 10


def open_streamed(paths: Sequence[Path], open_all: Callable[[], Sequence[T]]) -> tuple[Sequence[T], ReadAhead | None]:
    """What ``open_all`` opens, and who reads ahead for it; nobody, where the system cannot be told or all fits.

    Args:
        paths: per segment the file with its weights, absolute and without links. It may be missing.
        open_all: opens the segments, which map these files for as long as they live.
    """
    if not can_page():
        logger.info("this system has no way to read weights ahead of a run")
        return open_all(), None
    with OwnMappings(paths) as own:
        opened = open_all()
    page_ranges = own.page_ranges()
    if page_ranges is None:
        logger.warning("weights are not read ahead: it is not sure which mappings are theirs")
        return opened, None
    if sum(page_range.length for page_range in page_ranges) <= weight_budget(0):
        return opened, None
    by_path: dict[str, list[PageRange]] = {str(path): [] for path in paths}
    for page_range in page_ranges:
        by_path[page_range.path].append(page_range)
    return opened, ReadAhead([by_path[str(path)] for path in paths], budget=weight_budget, owners=opened)


class ReadAhead:
    """A `WeightPrefetcher` for segments whose weights are mapped.

    Args:
        page_ranges: of each segment, in the order they run in.
        budget: how many bytes the weights may take, given those that they take now; asked before every run, and
            during the first. See `weight_budget`.
        owners: whatever must live for the mappings to last. They are kept until the last advice was given.
    """

    def __init__(
        self, page_ranges: Sequence[Sequence[PageRange]], *, budget: Callable[[int], int], owners: Sequence[object]
    ) -> None:
        self._reader = _Reader(page_ranges, budget, owners)
        # The thread must not outlive this object, nor be kept alive by it.
        self._stop = weakref.finalize(self, self._reader.stop)

    def will_start(self, segment: int) -> None:
        """See `WeightPrefetcher`. Waits until the segment's weights are in memory."""
        self._reader.will_start(segment)

    def has_ended(self, segment: int) -> None:
        """See `WeightPrefetcher`."""
        self._reader.has_ended(segment)

    def close(self) -> None:
        """Stop; from then on every call returns at once."""
        self._stop()


class _Reader:
    """What the thread and the lanes share; everything below ``_changed`` is touched only while that is held."""

    def __init__(
        self, page_ranges: Sequence[Sequence[PageRange]], budget: Callable[[int], int], owners: Sequence[object]
    ) -> None:
        self._page_ranges = [tuple(found) for found in page_ranges]
        self._measure = budget
        self._process = os.getpid()
        self._owners: tuple[object, ...] = tuple(owners)
        self._changed = threading.Condition()
        self._window = Window([_size(found) for found in self._page_ranges], budget(0))
        self._unknown = set(range(len(page_ranges)))  # nobody has seen yet what they touch
        self._single: set[int] = (
            set()
        )  # of those that are known, the ones that are read page by page (the thread's own)
        self._ended: deque[int] = deque()  # of those, the ones whose first run is over
        self._stale = False  # the budget is to be asked for again
        self._last = -1
        self._over = False
        self._thread: threading.Thread | None = None

    def will_start(self, segment: int) -> None:
        if self._is_foreign():
            return
        with self._changed:
            if self._over:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="parallax-read-ahead", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # The runtime then reads weights page by page, as they are touched.
                    logger.warning("weights are not read ahead: no thread can be started (%s)", error)
                    self._over = True
                    self._owners = ()
                    return
                self._thread = thread
            self._stale = self._stale or segment <= self._last or segment in self._unknown
            self._last = segment
            self._window.start(segment)
            self._changed.notify_all()
            try:
                while not self._window.is_present(segment) and not self._over:
                    self._changed.wait()
            except BaseException:  # Ctrl-C: it will not run, so nobody will say that it has ended
                self._window.end(segment)
                raise

    def has_ended(self, segment: int) -> None:
        if self._is_foreign():
            return
        with self._changed:
            self._window.end(segment)
            if segment in self._unknown:
                self._unknown.discard(segment)
                self._ended.append(segment)
            self._changed.notify_all()

    def _is_foreign(self) -> bool:
        """Whether this is a forked child: it has no thread, and the lock may be held for good."""
        return self._process != os.getpid()

    def stop(self) -> None:
        """Returns once no more advice is given."""
        if self._is_foreign():
            return
        with self._changed:
            self._over = True
            self._changed.notify_all()
        thread = self._thread
        if thread is None:
            self._owners = ()
        elif thread is not threading.current_thread():
            thread.join()
        # Else the garbage collector chose this thread to call it from, perhaps in the middle of a piece of advice.

    def _work(self) -> None:
        try:
            while self._once():
                pass
        except Exception:  # a run must not fail for want of advice
            logger.warning("weights are not read ahead any more: reading or mapping them failed", exc_info=True)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._owners = ()

    def _once(self) -> bool:
        """Do one thing, or wait until there is one; False when it is over."""
        with self._changed:
            if self._over:
                return False
            stale, self._stale = self._stale, False
            ended = self._ended.popleft() if self._ended else None
            step = None
            if not stale and ended is None:
                step = self._window.next()
                if step is None:
                    self._changed.wait()
                    return True
                if step.act is Act.DROP:
                    # Noted before it is done: a run that comes to this segment meanwhile waits for it.
                    self._window.done(step)
        if stale:
            self._ask_budget()
        if ended is not None:
            self._learn(ended)
        if step is not None:
            self._do(step)
        return True

    def _do(self, step: Step) -> None:
        found = self._page_ranges[step.segment]
        if step.act is Act.DROP:
            drop(found)
            return
        if step.segment in self._unknown:
            # What was written or read lately is cached in pieces of up to 2 MiB, which are mapped whole when one byte
            # is touched. Asked for anew, pages come singly, and it shows which are touched.
            drop(found)
        for page_range in found:
            if step.segment in self._unknown or step.segment in self._single:
                request(page_range)
        for page_range in found:
            if step.segment not in self._unknown:
                fill(page_range)
        with self._changed:
            self._window.done(step)
            self._changed.notify_all()

    def _ask_budget(self) -> None:
        with self._changed:
            held = self._window.held_bytes
        budget = self._measure(held)
        with self._changed:
            self._window.set_budget(budget)

    def _learn(self, segment: int) -> None:
        """After its first run: what of a segment's weights was touched."""
        found = self._page_ranges[segment]
        dense, rest = [], []
        for page_range in found:
            share = 1.0 if page_range.length < SMALL_BYTES else mapped_share(page_range)
            if share >= DENSE_SHARE:
                dense.append(page_range)
                continue
            rest.append(page_range)
            if share > 0:
                # A table: each row that is looked up would have the kernel read megabytes around it, run after run.
                prefer_single(page_range)
        drop(rest)
        large = [prefer_large(page_range) for page_range in dense]
        if not all(large):
            self._single.add(segment)
        if rest:
            self._page_ranges[segment] = tuple(dense)
            with self._changed:
                self._window.resize(segment, _size(dense))


def _size(page_ranges: Sequence[PageRange]) -> int:
    return sum(page_range.length for page_range in page_ranges)
