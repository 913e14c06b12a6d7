"""One allocator for what all segments allocate inside, instead of an arena per session that each keeps its own peak.

Registered with ONNX Runtime's environment (``create_and_register_allocator``), once per process and when the first
segment is compiled; only sessions that ask for it (``session.use_env_allocators``) see it, so other sessions of
the process are as they were. It takes from the system what is asked for and no more (kSameAsRequested), which is also
what lets ONNX Runtime give all of it back (``memory.enable_memory_arena_shrinkage``).
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort._failures import RUNTIME_EXCEPTIONS
from parallax.backends.ort._shared_pool import shared_threads, use_shared_pool

logger = logging.getLogger(__name__)

_USE_KEY: Final = "session.use_env_allocators"
_SHRINK_KEY: Final = "memory.enable_memory_arena_shrinkage"

_SAME_AS_REQUESTED: Final = 1
_CONFIG: Final[Mapping[str, int]] = MappingProxyType(
    {
        "arena_extend_strategy": _SAME_AS_REQUESTED,
        # A free block that is at least so much larger than what is asked for is split, and its rest kept for others.
        "max_dead_bytes_per_chunk": 1 << 16,
    }
)

# The model y = Identity(x) of one byte. ONNX Runtime shrinks arenas at the end of a run only: this is the smallest.
_IDENTITY: Final = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x02\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x02\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)

_lock = threading.Lock()
_usable: bool | None = None  # (lock) None: not tried yet in this process
_forked = False
_sweep: _Sweep | None = None  # (lock)


def use_shared_allocator(session_options: Any, config: Mapping[str, str]) -> bool:
    """Let a session allocate from the shared allocator; whether it will.

    Not where it has no arena, and not where the caller's ``config`` speaks of such allocators itself: then the
    process has one of its own, or wants none.
    """
    if _USE_KEY in config or not session_options.enable_cpu_mem_arena or not _register():
        return False
    session_options.add_session_config_entry(_USE_KEY, "1")
    return True


def shrink_shared_allocator() -> bool:
    """Give all that the shared allocator holds for later back to the system; whether there is one. Takes microseconds
    and what the system needs to take the pages; runs go on meanwhile."""
    with _lock:
        if not _usable:
            return False
        _sweep_once()
        return True


class AllocatorUser:
    """Something whose end may leave the shared allocator with memory that nobody uses any more.

    When the last of them has gone, all that the allocator holds goes back to the system.
    """

    __slots__ = ("__weakref__",)

    def __init__(self) -> None:
        # In this order: of an object's weak references, the latest is told of its end first, and that is the set's.
        weakref.finalize(self, _release_unused).atexit = False
        _users.add(self)


_users: weakref.WeakSet[AllocatorUser] = weakref.WeakSet()


def _release_unused() -> None:
    """May be called at any moment, in any thread, by the garbage collector: so it waits for no lock."""
    if _users or not _lock.acquire(blocking=False):
        return
    try:
        if _usable and not _users:
            _sweep_once()
    finally:
        _lock.release()


def _sweep_once() -> None:
    """Under the lock."""
    global _sweep
    if _sweep is None:
        _sweep = _Sweep()
    _sweep.run()


def _register() -> bool:
    global _usable
    with _lock:
        if _usable is None:
            where = onnxruntime.OrtMemoryInfo(
                "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
            )
            try:
                onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg(dict(_CONFIG)))
                _usable = True
            except RUNTIME_EXCEPTIONS as error:
                # Versions differ in whether a second one replaces the first. One that came with a fork is left alone:
                # a thread of the parent may have held its lock.
                _usable = not _forked
                logger.info("the process has a shared allocator already: %s", error)
        return _usable


class _Sweep:
    """A run of next to nothing, at whose end the shared allocator is shrunk."""

    def __init__(self) -> None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = 1
        session_options.inter_op_num_threads = 1
        if shared_threads() is not None:
            use_shared_pool(session_options)
        session_options.add_session_config_entry(_USE_KEY, "1")
        self._session = C.InferenceSession(session_options, _IDENTITY, False, False)
        self._session.initialize_session(["CPUExecutionProvider"], [{}], set())
        self._options = C.RunOptions()
        self._options.add_run_config_entry(_SHRINK_KEY, "cpu:0")
        # Bound to memory of its own: what it allocated for its output would keep a whole region from going back.
        self._bytes = np.zeros(2, np.uint8)
        self._binding = C.SessionIOBinding(self._session)
        device = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)
        self._binding.bind_input("x", device, np.uint8, [1], self._bytes.ctypes.data)
        self._binding.bind_output("y", device, np.uint8, [1], self._bytes.ctypes.data + 1)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)


def _forget_after_fork() -> None:
    global _forked, _lock, _sweep, _usable
    _lock = threading.Lock()
    _forked = True
    _usable = None
    _sweep = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
