"""Threads that wait for devices get a core at once when they need one."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable

import pytest

from parallax.engine._lanes import Lane, LanePool
from parallax.machine._slices import SLICE_NS, SYSCALLS, Attributes, ask_for_short_slices

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) if sys.platform == "linux" else ()
pytestmark = pytest.mark.skipif(
    KERNEL < (6, 12) or platform.machine() not in SYSCALLS, reason="this system has no slices to ask for"
)


def attributes() -> Attributes:
    """The calling thread's, as the kernel tells them."""
    found = Attributes()
    get = SYSCALLS[platform.machine()] + 1
    assert ctypes.CDLL(None).syscall(get, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return found


def in_thread(look: Callable[[], Attributes]) -> Attributes:
    found: list[Attributes] = []
    thread = threading.Thread(target=lambda: found.append(look()))
    thread.start()
    thread.join()
    return found[0]


def seen_by(lane: Lane) -> Attributes:
    found: list[Attributes] = []
    done = threading.Event()

    def look(_: None) -> tuple[()]:
        found.append(attributes())
        done.set()
        return ()

    lane.mailbox.put((look, None))
    assert done.wait(10)
    return found[0]


def test_queues_have_threads_of_their_own_with_short_slices() -> None:
    pool = LanePool(2)
    usual = in_thread(attributes).runtime_ns
    assert usual > SLICE_NS
    for _ in range(3):
        lease = pool.lease(2, queues=1)
        (lane,), (queue,) = lease.lanes, lease.queues
        assert seen_by(queue).runtime_ns == SLICE_NS
        assert seen_by(lane).runtime_ns == usual
        pool.give_back(lease)
    assert pool.statistics().lanes == pool.statistics().idle_lanes == 2


def test_nothing_else_of_the_thread_changes() -> None:
    def look() -> Attributes:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        assert ask_for_short_slices()
        return attributes()

    found = in_thread(look)
    assert (found.policy, found.flags, found.nice, found.priority) == (os.SCHED_OTHER, 0, 3, 0)
    assert found.runtime_ns == SLICE_NS


def test_a_policy_that_was_chosen_is_kept() -> None:
    def look() -> Attributes:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        assert not ask_for_short_slices()
        return attributes()

    assert in_thread(look).policy == os.SCHED_BATCH
