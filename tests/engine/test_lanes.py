from __future__ import annotations

import os
import threading
import time

import pytest

from parallax.engine._interrupt import run_interruptibly
from parallax.engine._lanes import InnerLanes, LanePool
from parallax.engine._mailbox import Mailbox
from parallax.engine._signal import Signal, load_find, make_signal
from parallax.machine import current_core
from parallax.machine._affinity import CoreBinding
from tests._threads import needs_stack_limits, no_new_threads


def test_a_lease_never_takes_more_than_is_free_and_is_given_back_whole() -> None:
    pool = LanePool(4)
    first = pool.lease(3)
    second = pool.lease(3)
    assert (first.cores, len(first.lanes)) == (3, 2)
    assert (second.cores, len(second.lanes)) == (1, 0)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.statistics().free_cores == 4
    assert pool.statistics().idle_lanes == pool.statistics().lanes == 2


def test_a_run_never_waits_for_another_and_gets_lanes_only_from_free_cores() -> None:
    pool = LanePool(2)
    leases = [pool.lease(2) for _ in range(5)]
    assert [lease.cores for lease in leases] == [2, 1, 1, 1, 1]
    assert [len(lease.lanes) for lease in leases] == [1, 0, 0, 0, 0]
    for lease in leases:
        pool.give_back(lease)
    assert pool.statistics().free_cores == 2
    assert pool.lease(2).cores == 2


def test_lanes_are_reused_rather_than_made() -> None:
    pool = LanePool(3)
    for _ in range(10):
        pool.give_back(pool.lease(3))
    assert pool.statistics().lanes == 2


def test_idle_lanes_can_be_ended_and_are_made_anew_when_they_are_needed() -> None:
    others = set(threading.enumerate())
    pool = LanePool(4)
    busy, idle = pool.lease(2), pool.lease(2, queues=1)
    started = set(threading.enumerate()) - others
    assert len(started) == 3
    pool.give_back(idle)
    assert pool.end_idle() == 2
    ended = {lane for lane in started if lane.is_alive()}
    deadline = time.monotonic() + 30
    while len(ended) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
        ended = {lane for lane in started if lane.is_alive()}
    assert len(ended) == 1, "the lane that a run holds goes on"
    pool.give_back(busy)
    again = pool.lease(4)
    assert again.cores == 4
    done: Mailbox[bool] = Mailbox()
    for lane in again.lanes:

        def job(_: object) -> tuple[Mailbox[bool], ...]:
            done.place(True)
            return (done,)

        lane.mailbox.put((job, None))
        assert done.take(0)
    pool.give_back(again)
    assert pool.end_idle() == 3
    assert pool.end_idle() == 0


@pytest.mark.parametrize("spin_ns", [0, 50_000])
def test_every_item_put_into_a_mailbox_is_taken_once_in_order(spin_ns: int) -> None:
    there: Mailbox[int] = Mailbox()
    back: Mailbox[int] = Mailbox()
    count = 3000

    def echo() -> None:
        for _ in range(count):
            back.put(there.take(spin_ns) + 1)

    thread = threading.Thread(target=echo)
    thread.start()
    got = []
    for number in range(count):
        there.put(number)
        got.append(back.take(spin_ns))
    thread.join(timeout=30)
    assert got == list(range(1, count + 1))


@pytest.mark.parametrize("spin_ns", [0, 50_000_000])
def test_what_is_placed_is_taken_after_a_wake_up(spin_ns: int) -> None:
    there: Mailbox[int] = Mailbox()
    back: Mailbox[int] = Mailbox()

    def echo() -> None:
        wakes: tuple[Mailbox[int], ...] = ()
        for _ in range(200):
            number = there.take(spin_ns, wakes)
            back.place(number + 1)
            wakes = (back,)
        back.wake()

    thread = threading.Thread(target=echo)
    thread.start()
    got = []
    for number in range(200):
        there.place(number)
        got.append(back.take(spin_ns, (there,)))
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert got == list(range(1, 201))
    assert there.is_empty
    assert back.is_empty


def test_a_wake_up_without_an_item_leaves_the_owner_waiting() -> None:
    box: Mailbox[int] = Mailbox()
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(box.take(1_000_000)))
    thread.start()
    for _ in range(1000):
        box.wake()
    assert not got
    box.put(7)
    thread.join(timeout=30)
    assert got == [7]


def test_a_signal_that_is_up_ends_a_pause_and_one_that_is_down_does_not() -> None:
    signal, other = make_signal(), make_signal()
    assert not signal.pause((other,))
    signal.up()
    assert signal.pause() is (load_find() is not None)
    signal.down()
    assert not signal.pause()
    assert other.pause() is (load_find() is not None)


def test_without_the_c_library_a_pause_only_yields() -> None:
    signal = Signal(None)
    signal.up()
    assert not signal.pause()


@pytest.mark.skipif(current_core is None or len(os.sched_getaffinity(0)) < 2, reason="needs two cores, and to be told")
def test_a_lane_keeps_off_the_callers_core() -> None:
    assert current_core is not None
    pool = LanePool(2)
    allowed = os.sched_getaffinity(0)
    try:
        for core in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {core})
            os.sched_setaffinity(0, allowed)
            lease = pool.lease(2)
            (lane,) = lease.lanes
            seen: list[int] = []
            mask: list[set[int]] = []

            def look(_: None, seen: list[int] = seen, mask: list[set[int]] = mask) -> tuple[Mailbox[int], ...]:
                assert current_core is not None
                seen.append(current_core())
                mask.append(os.sched_getaffinity(0))
                return ()

            lane.mailbox.put((look, None))
            while not mask:
                time.sleep(0.001)
            assert len(mask[0]) == len(allowed) - 1
            assert seen[0] in mask[0]
            pool.give_back(lease)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads")
def test_a_binding_keeps_to_what_others_allow() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    first, second = sorted(allowed)[:2]
    binding = CoreBinding(threading.get_native_id())
    try:
        binding.avoid(second)
        assert os.sched_getaffinity(0) == allowed - {second}
        binding.avoid(first)
        assert os.sched_getaffinity(0) == allowed - {first}
        os.sched_setaffinity(0, {first})
        binding.avoid(second)
        assert os.sched_getaffinity(0) == {first}
        binding.avoid(first)
        assert os.sched_getaffinity(0) == {first}
    finally:
        os.sched_setaffinity(0, allowed)


@needs_stack_limits
def test_without_new_threads_a_lease_is_the_callers_core_alone_and_none_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = LanePool(3)
    with no_new_threads():
        for _ in range(2):
            lease = pool.lease(3, queues=1)
            assert (lease.cores, lease.lanes, lease.queues) == (1, (), ())
            pool.give_back(lease)
        inner = InnerLanes(pool, 3).lease(2)
    assert pool.statistics().free_cores == 3
    assert (inner.cores, inner.lanes) == (1, ())
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"


@needs_stack_limits
def test_lanes_that_are_there_serve_on_where_no_more_can_be_started() -> None:
    pool = LanePool(4)
    pool.give_back(pool.lease(2))
    with no_new_threads():
        lease = pool.lease(4)
    assert (lease.cores, len(lease.lanes)) == (2, 1)
    pool.give_back(lease)
    assert pool.statistics().idle_lanes == 1


@needs_stack_limits
def test_without_new_threads_a_run_that_could_be_interrupted_just_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallax.engine._interrupt._substitute", None)
    with no_new_threads():
        assert run_interruptibly(lambda options: options) is None
