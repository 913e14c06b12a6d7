"""Waiting without the GIL for a byte in memory to change, for a few microseconds.

CPython parks a thread that finds the GIL held, and to wake a core that went idle meanwhile takes 10 to 20 us: more
than all else in a hand-over. A waiter that polls in Python needs the GIL for each look, so it and the thread that it
waits for keep finding it held. The C library can look without it: POSIX ``lfind`` over elements of size 0 compares one
and the same address again and again, until it matches or the count is used up.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

LOOKS = 12_000
"""Comparisons per call, some 30 us. Then the waiter offers its core to others: who is to raise the flag may need it."""

_TAIL = 300
"""Characters behind the flag that are compared once it is up, which takes half a microsecond: by then whoever raised
it has let go of the GIL."""

_CACHE_LINE = 64
_SET = ord("1")
_UNSET = ord("0")

_yield_core: Callable[[], object]
if hasattr(os, "sched_yield"):
    _yield_core = os.sched_yield
else:  # Windows and some macOS builds have no sched_yield; a zero sleep gives up the slice and the GIL too.

    def _yield_core() -> None:
        time.sleep(0)


class Signal:
    """A flag that one thread waits for and any thread may raise. Only a hint: the waiter looks for itself.

    Args:
        find: C's ``lfind``, called without the GIL; None: `pause` only offers the core to others.
    """

    __slots__ = ("_arguments", "_find", "flag")

    def __init__(self, find: Any) -> None:
        # Apart from what others write: the waiter's core keeps the flag's cache line until somebody raises it.
        text = bytes([_UNSET]) + _KEY.raw[1:]
        memory = ctypes.create_string_buffer(2 * _CACHE_LINE + len(text))
        offset = -ctypes.addressof(memory) % _CACHE_LINE
        view = memoryview(memory).cast("B")[offset : offset + len(text)]
        view[:] = text
        self.flag = view
        self._find = find
        # Objects rather than numbers, and made beforehand: the GIL is held while arguments are converted.
        self._arguments: tuple[Any, ...] = ()
        if find is not None:
            address = ctypes.c_void_p(ctypes.addressof(memory) + offset)
            compare = ctypes.cast(ctypes.CDLL(None).strverscmp, ctypes.c_void_p)
            self._arguments = (_KEY_ADDRESS, address, _COUNT_ADDRESS, ctypes.c_size_t(0), compare)

    def up(self) -> None:
        """Raise it. The waiter will want the GIL at once: best done last before it is let go."""
        self.flag[0] = _SET

    def down(self) -> None:
        self.flag[0] = _UNSET

    def pause(self, to_notify: Sequence[Signal] = ()) -> bool:
        """Raise ``to_notify``, and return when this is up (then true) or after some microseconds."""
        find = self._find
        arguments = self._arguments
        for other in to_notify:
            other.flag[0] = _SET
        if find is not None and find(*arguments):
            return True
        _yield_core()
        return False


_KEY = ctypes.create_string_buffer(bytes([_SET]) + b"x" * _TAIL)
_COUNT = ctypes.c_size_t(LOOKS)
_KEY_ADDRESS = ctypes.c_void_p(ctypes.addressof(_KEY))
_COUNT_ADDRESS = ctypes.c_void_p(ctypes.addressof(_COUNT))


def load_find() -> Any:
    """C's ``lfind`` where it does what a Signal needs, else None: elements of size 0 are beyond what POSIX says."""
    if os.name != "posix":
        return None
    try:
        find = ctypes.CDLL(None).lfind
        find.restype = ctypes.c_void_p
        signal = Signal(find)
    except (AttributeError, OSError):  # a C library without it, or none that can be loaded
        return None
    if signal.pause():
        return None
    signal.up()
    return find if signal.pause() else None


_find = load_find()


def make_signal() -> Signal:
    """A signal, down."""
    return Signal(_find)
