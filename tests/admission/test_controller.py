"""Admission of runs: what they hold together, who waits, what a changing limit does. No model, no clock."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.admission import AdmissionController, Reservation
from parallax.memory import MemoryRequirement

# Long enough that a test that hangs fails, however busy the machine.
PATIENCE_S = 30


def need(fixed: int, *peaks: int, wanted: int | None = None) -> MemoryRequirement:
    return MemoryRequirement(
        fixed_bytes=fixed, peaks=peaks, wanted_bytes=fixed + sum(peaks) if wanted is None else wanted
    )


def admit(gate: AdmissionController, wants: MemoryRequirement) -> Reservation:
    grant = gate.admit(wants)
    assert grant is not None
    return grant


class Waiter:
    """A run on a thread of its own."""

    def __init__(self, gate: AdmissionController, wants: MemoryRequirement) -> None:
        self.gate, self.wants = gate, wants
        self.grant: Reservation | None = None
        self.stop = False
        self._before = gate.waiting
        self._admitted = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.grant = self.gate.admit(self.wants, stopped=lambda: self.stop)
        self._admitted.set()

    def wait_until_queued(self) -> None:
        while self.gate.waiting <= self._before:
            assert self._thread.is_alive(), "it was admitted at once"

    def wait_until_admitted(self) -> Reservation | None:
        assert self._admitted.wait(PATIENCE_S), "it was never admitted"
        self._thread.join(PATIENCE_S)
        return self.grant


def test_a_run_alone_gets_what_it_wants_and_no_more():
    gate = AdmissionController(1000)
    grant = admit(gate, need(100, 30, 50))
    assert (grant.granted_bytes, grant.running_bytes) == (180, 80)
    gate.release(grant)
    assert gate.granted_bytes == 0
    assert gate.peak_granted_bytes == 180


def test_where_less_is_there_a_run_gets_that_down_to_its_least():
    gate = AdmissionController(160)
    assert admit(gate, need(100, 30, 50)).granted_bytes == 160


def test_a_second_run_gets_what_is_left_if_it_can_live_on_it():
    gate = AdmissionController(300)
    first = admit(gate, need(100, 50, 30))
    second = admit(gate, need(50, 50, 50))
    assert (first.granted_bytes, second.granted_bytes) == (180, 120)


def test_a_run_that_does_not_fit_waits_for_one_that_ends():
    gate = AdmissionController(300)
    first = admit(gate, need(100, 100))
    waiter = Waiter(gate, need(100, 50))
    waiter.wait_until_queued()
    assert waiter.grant is None
    gate.release(first)
    grant = waiter.wait_until_admitted()
    assert grant is not None
    assert grant.granted_bytes == 150


def test_who_came_first_is_not_passed_by_one_that_would_fit():
    gate = AdmissionController(300)
    first = admit(gate, need(200))
    large = Waiter(gate, need(250))
    large.wait_until_queued()
    small = Waiter(gate, need(10))
    small.wait_until_queued()
    gate.release(first)
    assert large.wait_until_admitted() is not None
    assert small.wait_until_admitted() is not None
    assert gate.granted_bytes == 260


def test_while_others_wait_a_run_gets_only_its_least():
    gate = AdmissionController(300)
    first = admit(gate, need(300))
    waiters = [Waiter(gate, need(10, 40, 40, 40)) for _ in range(1)]
    waiters[0].wait_until_queued()
    waiters.append(Waiter(gate, need(10, 40, 40, 40)))
    waiters[1].wait_until_queued()
    gate.release(first)
    grants = sorted(grant.granted_bytes for waiter in waiters if (grant := waiter.wait_until_admitted()))
    assert grants == [50, 130]


def test_a_run_of_unknown_need_goes_alone_with_all_there_is():
    gate = AdmissionController(300)
    unknown = admit(gate, MemoryRequirement.UNKNOWN)
    assert unknown.granted_bytes == 300
    waiter = Waiter(gate, need(10))
    waiter.wait_until_queued()
    gate.release(unknown)
    known = waiter.wait_until_admitted()
    assert known is not None
    second = Waiter(gate, MemoryRequirement.UNKNOWN)
    second.wait_until_queued()
    gate.release(known)
    assert second.wait_until_admitted() is not None


def test_one_that_is_stopped_while_it_waits_leaves_the_queue():
    gate = AdmissionController(100)
    first = admit(gate, need(100))
    waiter = Waiter(gate, need(50))
    waiter.wait_until_queued()
    waiter.stop = True
    assert waiter.wait_until_admitted() is None
    assert gate.waiting == 0
    gate.release(first)
    assert gate.granted_bytes == 0


def test_a_lower_limit_takes_what_runs_have_beyond_their_least_and_a_higher_one_gives_it_back():
    gate = AdmissionController(400)
    first, second = admit(gate, need(10, 40, 40, 40)), admit(gate, need(20, 100, 100))
    assert (first.granted_bytes, second.granted_bytes) == (130, 220)
    changes: list[int] = []
    first.on_change(lambda: changes.append(first.granted_bytes))
    gate.set_limit(250)
    assert gate.granted_bytes == 250
    gate.set_limit(60)
    assert (first.granted_bytes, second.granted_bytes) == (50, 120), "never below what they need"
    gate.set_limit(400)
    assert (first.granted_bytes, second.granted_bytes) == (130, 220)
    assert changes == [50, 130]


def test_a_limit_below_any_need_lets_runs_go_one_at_a_time():
    gate = AdmissionController(400)
    gate.set_limit(0)
    first = admit(gate, need(10, 40))
    waiter = Waiter(gate, need(10, 40))
    waiter.wait_until_queued()
    gate.release(first)
    assert waiter.wait_until_admitted() is not None


@given(
    limit=st.integers(100, 400),
    wants=st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 40), max_size=4)), min_size=1, max_size=12),
    limits=st.lists(st.integers(0, 400), max_size=6),
    unknown=st.sets(st.integers(0, 11)),
)
@settings(max_examples=40, deadline=None)
def test_whatever_comes_every_run_ends_and_together_they_stay_within_the_limit(limit, wants, limits, unknown):
    gate = AdmissionController(limit)
    needs = [
        MemoryRequirement.UNKNOWN if index in unknown else need(fixed, *peaks)
        for index, (fixed, peaks) in enumerate(wants)
    ]
    wrong: list[str] = []
    ended: list[int] = []

    def run(index: int) -> None:
        grant = admit(gate, needs[index])
        with gate._condition:
            # Lowering may catch runs with more than the new limit; what they need is the least that must be granted.
            if len(gate._reservations) > 1 and not limits and gate.granted_bytes > limit:
                wrong.append(f"{gate.granted_bytes} granted of {limit}")
            if grant.granted_bytes < grant.requirement.least_bytes:
                wrong.append(f"{grant.granted_bytes} granted to {grant.requirement}")
            if gate.granted_bytes != sum(other.granted_bytes for other in gate._reservations.values()):
                wrong.append("the sum of what is granted is another")
        gate.release(grant)
        ended.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(needs))]
    for thread in threads:
        thread.start()
    for changed in limits:
        gate.set_limit(changed)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(ended) == list(range(len(needs)))
    assert not wrong
    assert gate.granted_bytes == gate.running == gate.waiting == 0


@pytest.mark.parametrize("count", [2, 5])
def test_runs_never_wait_where_all_of_them_fit(count):
    gate = AdmissionController(1000)
    grants = [admit(gate, need(10, 50)) for _ in range(count)]
    assert gate.running == count
    for grant in grants:
        gate.release(grant)
    assert gate.running == 0
