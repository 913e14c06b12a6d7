from __future__ import annotations

import threading

import pytest

from parallax.engine import LanePool
from parallax.engine._mailbox import Mailbox


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
