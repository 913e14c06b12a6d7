"""A process that may start no more threads, for real."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

needs_stack_limits = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems check the size of a thread's stack before they start one"
)


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
