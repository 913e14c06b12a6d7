"""Runs that go on in the background, for models that are not the base class's affair alone."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _replace_after_fork() -> None:
    # The threads are gone, and whoever held the lock is not there to release it.
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_after_fork)


def run_in_background(run: Callable[[], Any], callback: Callable[..., Any], user_data: Any) -> None:
    """Return at once; ``callback(results, user_data, error_text)`` is called from another thread when the run ended.

    Where no thread can be started, the run goes on here.
    """
    unclaimed = threading.Lock()

    def job() -> None:
        if not unclaimed.acquire(blocking=False):
            return
        try:
            results = run()
        except Exception as error:  # the callback is how the caller hears of it, as in ONNX Runtime
            callback([], user_data, str(error))
        else:
            callback(results, user_data, "")

    try:
        _threads().submit(job)
    except RuntimeError as error:
        # No thread can be started, though one that is there may still come to it.
        logger.debug("a run that was to go on in the background does so here: %s", error)
        job()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="parallax-async")
        return _pool
