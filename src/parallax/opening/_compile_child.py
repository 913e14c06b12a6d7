"""The program of a child process that compiles one model into the cache of bundles, and ends with its parent.

`parallax.opening._compile_apart` starts it. Its arguments are a `ShareOrder` and the parent's process id; its standard
input is a pipe that the parent holds open. The last line that it prints is its answer, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from typing import Final

from parallax.opening._share_order import ShareOrder, compile_ordered

_NICENESS: Final = 5
"""A little below the callers of the session, whom the bundle is for. Where they keep all cores busy, compiling at a
niceness of 19 was measured to take at least twice as long."""
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_MOST_TOLD: Final = 8
"""Warnings that the answer holds at most."""


def main() -> None:
    """Compile what the arguments say, and print the answer."""
    if hasattr(os, "nice"):  # on Windows the parent starts this process with a lower priority
        os.nice(_NICENESS)
    _end_with_parent(int(sys.argv[2]))
    notes = _Notes()
    logging.getLogger("parallax").addHandler(notes)
    made = compile_ordered(ShareOrder.from_json(sys.argv[1]))
    answer = {"bundle": None if made is None else str(made), "said": notes.said[:_MOST_TOLD]}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _end_with_parent(parent: int) -> None:
    """End this process when its parent ends.

    Linux sends a signal at once. Elsewhere a thread sees the end of the pipe, but not while the runtime holds Python's
    lock.
    """
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    threading.Thread(target=_wait_for_end_of_parent, daemon=True).start()


def _wait_for_end_of_parent() -> None:
    # Not sys.stdin, whose lock this thread would hold when the interpreter ends.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


class _Notes(logging.Handler):
    """Collects warnings, which the parent writes to its own log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage()[:500])
