"""One thread pool of ONNX Runtime's for the whole process, for applications that ask for it.

Never set on our own account: from then on every session of the process, of any library, must be opened
with ``use_per_session_threads = False`` (ours are), and no session can have fewer threads than the pool,
so models run whole. See docs/decisions/0003.
"""

from __future__ import annotations

import operator
import os
from typing import Any

from parallax.errors import ConfigError
from parallax.machine import available_cores

_threads: int | None = None
_forked = False


def share_thread_pool(threads: int | None = None) -> int:
    """Let all sessions opened from now on share one pool of ``threads`` threads (default: the cores allowed).

    For processes that hold many sessions: ten sessions then have one pool instead of ten. It cannot be
    undone, and sessions that other code opens with plain ONNX Runtime fail unless they set
    ``use_per_session_threads = False`` in their options. Call it once, before opening sessions.

    Returns: the number of threads.

    Raises: ConfigError if ``threads`` is no integer of at least 1, or the pool already has another size.

    Example::

        parallax.share_thread_pool()
        sessions = [parallax.InferenceSession(path) for path in paths]
    """
    global _threads
    wanted = available_cores() if threads is None else _count(threads)
    if _threads is None:
        from onnxruntime.capi import onnxruntime_pybind11_state as C  # few processes share a pool

        C.set_global_thread_pool_sizes(wanted, 1)
        _threads = wanted
    elif threads is not None and wanted != _threads:
        raise ConfigError(
            f"the shared pool has {_threads} threads already, {wanted} were asked for",
            fix="call share_thread_pool once, first thing in the process",
        )
    return _threads


def _count(threads: Any) -> int:
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if count < 1:
        raise ConfigError(f"a pool of threads={threads!r:.80}", fix="give a whole number of at least 1")
    return count


def shared_threads() -> int | None:
    """Size of the shared pool, or None while sessions have their own."""
    return _threads


def use_shared_pool(session_options: Any) -> None:
    """Make options fit for a session that uses the shared pool.

    Raises: ConfigError in a process that was forked after the pool was made: its threads did not come along.
    """
    if _forked:
        raise ConfigError(
            "this process was forked after share_thread_pool(), and the pool's threads stayed in its parent",
            fix='call it in each worker after the fork instead, or start workers with the "spawn" method',
        )
    session_options.use_per_session_threads = False
    session_options.intra_op_num_threads = 0
    session_options.inter_op_num_threads = 0


def _note_fork() -> None:
    global _forked
    _forked = _threads is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
