"""A process that compiles one model into the cache of bundles, and ends with the process that started it.

Started by `parallax.opening._compile_apart`, with a `ShareOrder` and the parent's number as arguments, and the reading
end of a pipe that the parent holds open. The last line that it prints is its answer.
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
"""Below those who call the session, but not far: where they keep all cores busy, 19 was measured to take twice as long
and more, and they are what the bundle is for."""
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_MOST_TOLD: Final = 8


def main() -> None:
    """Do what the arguments say."""
    if hasattr(os, "nice"):  # elsewhere the parent says so when it starts this
        os.nice(_NICENESS)
    _end_with_parent(int(sys.argv[2]))
    notes = _Notes()
    logging.getLogger("parallax").addHandler(notes)
    made = compile_ordered(ShareOrder.from_json(sys.argv[1]))
    answer = {"bundle": None if made is None else str(made), "said": notes.said[:_MOST_TOLD]}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _end_with_parent(parent: int) -> None:
    """Two ways: the system's is at once; the pipe's end is seen when the runtime lets go of Python's lock."""
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
    """What is to be told of in the log of the parent."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage()[:500])
