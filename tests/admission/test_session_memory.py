"""Pressure and idleness: sessions get narrower while memory is short, and give back what they do not use."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from parallax.admission import Reservation
from parallax.admission._maintenance import MaintenanceThread
from parallax.admission._session_memory import SessionMemory, limit_under_pressure
from parallax.errors import BudgetError
from parallax.machine import PressureMonitor, PressureReading
from parallax.memory import Budget, MemoryRequirement

MIB = 1 << 20
PLENTY = PressureReading(free_bytes=1 << 40, stalled_share=0.0)
PATIENCE_S = 30


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class IdleThread(MaintenanceThread):
    """A maintenance thread without a thread: the test says when it comes."""

    def schedule(self, maintained: object, within_s: float) -> None:
        self.asked = (maintained, within_s)


def session_memory(
    *, budget_mib: int | None = 100, idle_trim_s: float = 30, reading: PressureReading = PLENTY
) -> tuple[SessionMemory, Clock, list[PressureReading], list[float]]:
    clock = Clock()
    readings = [reading]
    trims: list[float] = []
    memory = SessionMemory(
        budget=None if budget_mib is None else Budget.of(budget_mib * MIB, weight_bytes=0),
        idle_trim_s=idle_trim_s,
        trim=lambda: trims.append(clock.now_s),
        monitor=PressureMonitor(read=lambda: readings[0], clock=clock, interval_s=0.25),
        maintenance=IdleThread(clock),
    )
    return memory, clock, readings, trims


def need_mib(*peaks: int) -> MemoryRequirement:
    sizes = tuple(peak * MIB for peak in peaks)
    return MemoryRequirement(fixed_bytes=0, peaks=sizes, wanted_bytes=sum(sizes))


@pytest.mark.parametrize(
    ("reading", "current", "granted", "expected"),
    [
        pytest.param(PressureReading(free_bytes=10_000), 1000, 0, 1000, id="plenty is free"),
        pytest.param(PressureReading(free_bytes=500), 1000, 0, 450, id="a tenth of what is free stays free"),
        pytest.param(PressureReading(free_bytes=500), 1000, 300, 750, id="what runs hold is not taken from them"),
        pytest.param(PressureReading(free_bytes=0), 1000, 0, 0, id="nothing is free"),
        pytest.param(PressureReading(free_bytes=3_000, stalled_share=0.5), 1000, 0, 750, id="tasks wait for memory"),
        pytest.param(PressureReading(free_bytes=3_000, stalled_share=0.05), 1000, 0, 1000, id="hardly any wait"),
        pytest.param(PressureReading(free_bytes=10_000, stalled_share=0.5), 1000, 0, 1000, id="others wait elsewhere"),
        pytest.param(PressureReading(free_bytes=10_000), 200, 0, 450, id="back by a quarter at a time"),
        pytest.param(PressureReading(free_bytes=10_000), 900, 0, 1000, id="never beyond the limit"),
    ],
)
def test_the_limit_follows_what_the_machine_has_left(reading, current, granted, expected):
    assert limit_under_pressure(reading, limit_bytes=1000, current_bytes=current, granted_bytes=granted) == expected


def test_a_run_in_flight_gets_narrower_under_pressure_and_wider_again_after_it():
    memory, clock, readings, _ = session_memory()
    gate = memory.controller
    assert gate is not None
    full = gate.limit_bytes
    assert full == 90 * MIB - Budget.of(1, weight_bytes=0).runtime_bytes
    with memory.run({}, requirement=need_mib(10, 10, 10, 10)) as grant:
        assert grant is not None
        assert grant.running_bytes == 40 * MIB
        seen: list[int] = []
        grant.on_change(lambda: seen.append(grant.running_bytes))
        readings[0] = PressureReading(free_bytes=0)
        clock.now_s += 1
        memory.maintain(clock.now_s)
        assert seen == [], "what it has is not free for others, but nothing more is"
        readings[0] = PressureReading(free_bytes=0, stalled_share=0.9)
        for _ in range(20):
            clock.now_s += 1
            assert memory.maintain(clock.now_s) == 0.25
        assert seen[-1] == 10 * MIB, "down to one segment at a time, and no further"
        assert seen == sorted(seen, reverse=True)
        readings[0] = PLENTY
        for _ in range(8):
            clock.now_s += 1
            memory.maintain(clock.now_s)
        assert seen[-1] == 40 * MIB
    assert gate.limit_bytes == full


def test_pressure_is_seen_by_the_first_run_after_a_pause():
    memory, clock, readings, _ = session_memory()
    with memory.run({}, requirement=need_mib(10, 10, 10, 10)):
        pass
    readings[0] = PressureReading(free_bytes=15 * MIB)
    clock.now_s += 100
    with memory.run({}, requirement=need_mib(10, 10, 10, 10)) as grant:
        assert grant is not None
        assert 10 * MIB <= grant.running_bytes < 15 * MIB


def test_an_idle_session_is_trimmed_once_until_it_runs_again():
    memory, clock, _, trims = session_memory(idle_trim_s=30)
    with memory.run({}, requirement=need_mib(1)):
        pass
    clock.now_s += 5
    assert memory.maintain(clock.now_s) == pytest.approx(25)
    clock.now_s += 25
    assert memory.maintain(clock.now_s) is None
    assert len(trims) == 1
    assert memory.maintain(clock.now_s + 100) is None
    assert len(trims) == 1
    with memory.run({}, requirement=need_mib(1)):
        pass
    clock.now_s += 31
    memory.maintain(clock.now_s)
    assert len(trims) == 2


def test_a_session_that_runs_is_never_trimmed():
    memory, clock, _, trims = session_memory(idle_trim_s=30)
    with memory.run({}, requirement=need_mib(1)):
        clock.now_s += 1000
        assert memory.maintain(clock.now_s) == 0.25
    assert trims == []


def test_idle_time_is_watched_without_a_budget_too():
    memory, clock, _, trims = session_memory(budget_mib=None, idle_trim_s=10)
    with memory.run({}) as grant:
        assert grant is None
    clock.now_s += 4
    assert memory.maintain(clock.now_s) == pytest.approx(6)
    clock.now_s += 6
    assert memory.maintain(clock.now_s) is None
    assert len(trims) == 1


def test_without_end_means_never():
    memory, clock, _, trims = session_memory(idle_trim_s=float("inf"))
    with memory.run({}, requirement=need_mib(1)):
        pass
    clock.now_s += 1e6
    assert memory.maintain(clock.now_s) is None
    assert trims == []


# -- what runs leave behind -----------------------------------------------------------------------------------


def run_once(memory: SessionMemory, *peaks: int, fixed: int = 0) -> None:
    sizes = tuple(peak * MIB for peak in peaks)
    with memory.run(
        {}, requirement=MemoryRequirement(fixed_bytes=fixed * MIB, peaks=sizes, wanted_bytes=fixed * MIB + sum(sizes))
    ):
        pass


def test_runs_that_find_what_they_need_left_behind_trim_nothing():
    memory, _, _, trims = session_memory(budget_mib=100)
    for _ in range(50):
        run_once(memory, 60)
        run_once(memory, 20)
    assert trims == []


def test_larger_runs_cannot_use_the_small_blocks_of_earlier_ones_so_these_go_back():
    memory, _, _, trims = session_memory(budget_mib=100)
    for size in (20, 30, 40):
        run_once(memory, size)
        assert len(trims) == (size == 40), "20 and 30 fit beside each other, 40 beside both does not"
    run_once(memory, 50)
    assert len(trims) == 2
    run_once(memory, 50)
    assert len(trims) == 2


def test_arenas_that_idle_count_beside_a_run_that_needs_the_room():
    left = [0]
    memory, _, _, trims = session_memory(budget_mib=100)
    memory._arenas = lambda: left[0]
    run_once(memory, 10, fixed=20)
    left[0] = 60 * MIB  # several runs at once, over now
    run_once(memory, 10, fixed=20)
    assert trims == []
    run_once(memory, 40, fixed=20)
    assert len(trims) == 1


# -- the thread -----------------------------------------------------------------------------------------------


class Chore:
    """Wants maintenance a number of times."""

    def __init__(self, times: int, *, fails: bool = False) -> None:
        self.left = times
        self.fails = fails
        self.done = threading.Event()

    def maintain(self, now_s: float) -> float | None:
        self.left -= 1
        if self.fails:
            self.done.set()
            raise RuntimeError("this chore fails")
        if not self.left:
            self.done.set()
            return None
        return 0.001


def wait_until_at_rest(keeper: MaintenanceThread) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while keeper.is_working:
        assert time.monotonic() < deadline, "the thread does not end"
        time.sleep(0.002)


def test_all_sessions_share_one_thread_which_ends_when_nothing_is_left():
    keeper = MaintenanceThread()
    assert not keeper.is_working
    chores = [Chore(times) for times in (3, 1, 7)]
    names = set()
    for chore in chores:
        keeper.schedule(chore, 0.0)
        names |= {thread.ident for thread in threading.enumerate() if thread.name == "parallax-memory"}
    for chore in chores:
        assert chore.done.wait(PATIENCE_S)
    assert len(names) <= 2, "at most one more than the first, which may have ended in between"
    wait_until_at_rest(keeper)
    again = Chore(2)
    keeper.schedule(again, 0.0)
    assert again.done.wait(PATIENCE_S)
    wait_until_at_rest(keeper)


def test_something_due_soon_is_not_kept_waiting_by_something_due_later():
    keeper = MaintenanceThread()
    late, soon = Chore(1), Chore(1)
    keeper.schedule(late, 3600)
    keeper.schedule(soon, 0.01)
    assert soon.done.wait(PATIENCE_S)
    assert late.left == 1


def test_what_is_gone_is_forgotten():
    keeper = MaintenanceThread()
    chore = Chore(1)
    keeper.schedule(chore, 3600)
    del chore
    gc.collect()
    keeper.schedule(Chore(1), 3600)  # gone at once as well
    gc.collect()
    assert keeper.step() is None


def test_a_chore_that_fails_does_not_end_the_others(caplog):
    keeper = MaintenanceThread()
    bad, good = Chore(1, fails=True), Chore(4)
    keeper.schedule(bad, 0.0)
    keeper.schedule(good, 0.0)
    assert bad.done.wait(PATIENCE_S)
    assert good.done.wait(PATIENCE_S)
    wait_until_at_rest(keeper)
    assert "left alone" in caplog.text


def test_grants_start_without_anybody_to_tell():
    grant = Reservation(need_mib(3), 3 * MIB)
    grant._set(2 * MIB)
    assert grant.granted_bytes == 2 * MIB


# -- weights that come and go -----------------------------------------------------------------------------------


def test_weights_that_are_held_twice_count_until_they_are_gone():
    memory, _, _, _ = session_memory(budget_mib=100)
    gate = memory.controller
    assert gate is not None
    full = gate.limit_bytes
    memory.hold(20 * MIB, need_mib(10))
    assert gate.limit_bytes == full - 20 * MIB
    with pytest.raises(BudgetError, match="too small"):
        memory.hold(70 * MIB, need_mib(10))
    assert gate.limit_bytes == full - 20 * MIB, "nothing is counted of what was refused"
    memory.let_go(20 * MIB)
    run_once(memory, 1)
    assert gate.limit_bytes == full
    run_once(memory, 80)


def test_what_the_runtime_takes_may_change():
    memory, _, _, _ = session_memory(budget_mib=100)
    assert memory.budget is not None
    before = memory.budget
    memory.count_runtime(before.runtime_bytes + MIB)
    assert memory.budget.limit_bytes == before.limit_bytes - MIB


def test_a_session_without_a_budget_counts_no_weights():
    memory, _, _, _ = session_memory(budget_mib=None)
    memory.hold(1 << 50)
    memory.let_go(1 << 50)
    memory.count_runtime(1)
    with memory.run({}) as reservation:
        assert reservation is None
