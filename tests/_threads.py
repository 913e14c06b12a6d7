"""Threads in tests: several that do the same, and a process that may start no more, for real."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

needs_stack_limits = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems check the size of a thread's stack before they start one"
)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Call ``work`` with 0 to ``count`` - 1, each in a thread of its own. Raises the first error of any."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def no_new_threads() -> Iterator[None]:
    """A stack larger than the address space: the system refuses to start any Python thread."""
    before = threading.stack_size(1 << 47)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=lambda: None).start()
        yield
    finally:
        threading.stack_size(before)
