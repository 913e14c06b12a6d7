"""Ctrl-C that stops a run: the main thread waits where signals can reach it.

Python delivers KeyboardInterrupt only between bytecodes of the main thread, so a main thread inside
the runtime hears of it when the run is over. A long run is therefore done on another thread while the
main thread waits on a lock; on an interrupt it sets ``RunOptions.terminate``, which the runtime reads
between nodes, waits for the run to end, and lets the interrupt go on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine._lanes import Lane
from parallax.engine._mailbox import Mailbox
from parallax.machine import move_to_first_core

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Not one of the pool's lanes: it works in place of the main thread, which only waits meanwhile.
_substitute: Lane | None = None
_in_use = False


def run_interruptibly(call: Callable[[Any], T], run_options: Any = None) -> T:
    """Return ``call(run_options)``, in a way that Ctrl-C can stop.

    Only the main thread receives signals: in any other thread, and in a call from within such a
    call, ``call`` is simply called; so it is where no thread can be started. ``run_options`` None makes a RunOptions
    of its own for the call.
    """
    global _in_use, _substitute
    if _in_use or threading.current_thread() is not threading.main_thread():
        return call(run_options)
    is_new = _substitute is None
    if _substitute is None:
        try:
            _substitute = Lane(-1)
        except RuntimeError as refusal:
            logger.debug("Ctrl-C cannot stop this run: %s", refusal)
            return call(run_options)
    options = C.RunOptions() if run_options is None else run_options
    result: list[T] = []
    error: list[BaseException] = []
    done: Mailbox[bool] = Mailbox()

    def job(_: None) -> tuple[Mailbox[bool], ...]:
        if is_new:  # it begins on a core that seemed idle, which may be that of a pinned thread that slept
            move_to_first_core()
        try:
            result.append(call(options))
        except BaseException as caught:  # handed to the waiting thread, which raises it
            error.append(caught)
        done.place(True)
        return (done,)

    _in_use = True
    try:
        _substitute.mailbox.put((job, None))
        try:
            done.take(0)
        except BaseException:
            options.terminate = True
            try:
                done.take(0)
            finally:
                options.terminate = False
            raise
    finally:
        _in_use = False
    if error:
        raise error[0]
    return result[0]


def _forget_substitute_after_fork() -> None:
    global _in_use, _substitute
    _substitute = None
    _in_use = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_substitute_after_fork)
