"""Runs that are awaited, for programs with an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime


async def run_awaited(
    run: Callable[..., list[Any]],
    output_names: Sequence[str] | None,
    input_feed: Mapping[str, Any],
    run_options: Any,
) -> list[Any]:
    """What ``run`` returns, called in a thread of the event loop's default executor.

    Cancelled, it stops waiting at once and sets ``terminate`` of the run options. Those of the caller are put back when
    the run has ended; a run that has not begun by then never does.

    Args:
        run: of a session.
        run_options: the caller's, or None.
    """
    options = onnxruntime.RunOptions() if run_options is None else run_options
    running = _Running(options)
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    call = functools.partial(context.run, running.call, functools.partial(run, output_names, input_feed, options))
    try:
        return await loop.run_in_executor(None, call)
    except asyncio.CancelledError:
        running.stop()
        raise


class _Running:
    """One run, seen from the thread that computes and from the one that may stop it."""

    def __init__(self, options: Any) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._is_running = False  # (lock)
        self._is_stopped = False  # (lock)

    def call(self, run: Callable[[], list[Any]]) -> list[Any]:
        with self._lock:
            self._is_running = True
        try:
            return run()
        finally:
            with self._lock:
                self._is_running = False
                if self._is_stopped:
                    self._options.terminate = False

    def stop(self) -> None:
        with self._lock:
            if self._is_running and not self._options.terminate:
                self._is_stopped = True
                self._options.terminate = True
