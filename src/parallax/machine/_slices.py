"""Short slices of the processor's time for threads that wait for devices.

Such a thread needs a core for microseconds, now and then, while others keep all of them busy. Linux lets those end
their slice first (2.8 ms or so, as EEVDF does not preempt within one), while the device waits. A thread that asks for
shorter slices takes no more of the time in all, but its turn comes at once: beside an emulated device, DistilBERT
shared by rows took 41 to 42 ms rather than 46 to 47. Since Linux 6.12 everybody may ask (``sched_setattr(2)``,
``sched_runtime`` of ``SCHED_OTHER``, 0.1 to 100 ms); before, and elsewhere, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Final

SLICE_NS: Final = 100_000
"""The least that Linux grants."""

# By machine, from the kernel's tables; the call that reads is the next one.
SYSCALLS: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "armv7l": 380}


class Attributes(ctypes.Structure):
    """``struct sched_attr`` of ``linux/sched/types.h``, first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def ask_for_short_slices() -> bool:
    """Ask for short time slices for the calling thread.

    Returns whether the system agreed; older kernels agree and do nothing.
    """
    number = SYSCALLS.get(platform.machine())
    # Where a process is of 32 bits, its kernel's machine tells nothing.
    if sys.platform != "linux" or number is None or (number != 380) != (sys.maxsize > 1 << 32):
        return False
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False  # whoever chose another policy knows why
    attributes = Attributes(
        size=ctypes.sizeof(Attributes),
        policy=os.SCHED_OTHER,
        nice=os.getpriority(os.PRIO_PROCESS, 0),  # of the thread, on Linux
        runtime_ns=SLICE_NS,
    )
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0) == 0)
