"""Runs that are usually short, and may last: called where they are, unless they last.

To have Ctrl-C stop a run, `run_interruptibly` hands it to another thread, which takes some ten microseconds each way.
How long a model with a loop runs depends on data, so every run of it may be one to stop. Here it is called directly,
while a thread that wakes up twenty times a second looks whether a run has lasted longer than it may. Such a run is told
to terminate, and the caller does it again in the way that can be stopped: a run has no effects but its outputs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from onnxruntime.capi import onnxruntime_pybind11_state as C

T = TypeVar("T")

LIMIT_S: Final = 0.1
_PERIOD_S: Final = 0.05
_IDLE_S: Final = 2.0
"""Without a run for so long, the watching thread sleeps until it is woken, which the next run takes the time to do."""


class RunLastsError(Exception):
    """A watched run lasted longer than it may and was ended; it left nothing behind."""


class _Run:
    __slots__ = ("begin_s", "lasted", "options")

    def __init__(self) -> None:
        self.begin_s = time.monotonic()
        self.lasted = False
        self.options = C.RunOptions()


class _Watcher:
    """The thread that watches the main thread's run. It has a run's own options, so that it never ends another's."""

    def __init__(self) -> None:
        self.run: _Run | None = None
        self.is_asleep = True
        self._wake = threading.Event()
        threading.Thread(target=self._watch, name="parallax-watch", daemon=True).start()

    def wake(self) -> None:
        self.is_asleep = False
        self._wake.set()

    def _watch(self) -> None:
        last_s = time.monotonic()
        while True:
            if self.is_asleep:
                self._wake.wait()
                last_s = time.monotonic()
            self._wake.clear()
            time.sleep(_PERIOD_S)
            run, now_s = self.run, time.monotonic()
            if run is not None:
                last_s = now_s
                if now_s - run.begin_s > LIMIT_S:
                    run.lasted = True
                    run.options.terminate = True
            elif now_s - last_s > _IDLE_S:
                self.is_asleep = True
                # A run that began meanwhile either saw that and wakes this thread, or is seen here.
                self.is_asleep = self.run is None


_watcher: _Watcher | None = None


def run_watched(call: Callable[[Any], T]) -> T:
    """Return ``call(run_options)``, called in this thread.

    In any thread but the main one nothing is watched, since no signal is delivered there; nor where no thread can be
    started, nor in a call from within such a call.

    Raises: RunLastsError if it did not end within `LIMIT_S` or so.
    """
    global _watcher
    if threading.get_ident() != threading.main_thread().ident:
        return call(None)
    watcher = _watcher
    if watcher is None:
        try:
            watcher = _watcher = _Watcher()
        except RuntimeError:  # no thread can be started
            return call(None)
    if watcher.run is not None:
        return call(None)
    run = watcher.run = _Run()
    if watcher.is_asleep:
        watcher.wake()
    try:
        return call(run.options)
    except Exception as error:
        if run.lasted:
            raise RunLastsError from error
        raise
    finally:
        watcher.run = None


def _forget_watcher_after_fork() -> None:
    global _watcher
    _watcher = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watcher_after_fork)
