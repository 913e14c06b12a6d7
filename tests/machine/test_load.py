from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import pytest

from parallax.machine import CoreMeter, LoadMeter
from parallax.machine._load import AWAIT_S, AWAIT_STEP_S, Reading, offered_cores, read_load

_BURN = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def test_what_another_process_used_is_counted_as_busy_and_not_as_ours() -> None:
    before = read_load()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    after = read_load()
    assert (after.busy - before.busy) - (after.own - before.own) > 0.4
    assert after.wall > before.wall


def test_what_this_process_used_is_counted_as_ours() -> None:
    before, used = read_load(), time.process_time()
    while time.process_time() - used < 0.3:
        pass
    after = read_load()
    assert after.own - before.own > 0.25


def test_others_are_what_was_busy_beside_this_process_since_the_last_reading() -> None:
    counted = iter([Reading(0, 100, 10), Reading(2, 103, 12), Reading(4, 105, 14), Reading(8, 105, 15)])
    meter = LoadMeter(lambda: next(counted))
    assert meter.others_cores() == 0.5
    assert meter.others_cores() == 0
    assert meter.others_cores() == 0, "counters that are read one after the other may seem to run backwards"


def test_cores_beyond_those_measured_on_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    counted = iter([Reading(0, 0, 0), Reading(1, 2.5, 0), Reading(2, 4.0, 0), Reading(3, 7.5, 0)])
    meter = LoadMeter(lambda: next(counted))
    assert meter.cores_taken(2) == 0.5
    assert meter.cores_taken(2) == 0
    assert meter.cores_taken(4) == 3.5


def test_cores_offered_are_some_and_at_most_those_there_are() -> None:
    # How many is the machine's business; that a probe of two threads sees more than three cores would be a mistake.
    assert 0.2 < offered_cores(2) < 3


def test_missing_cores_are_told_by_the_most_that_was_seen() -> None:
    seen = iter([1.6, 1.8, 1.7, 1.8, 0.9, 2.0, 1.5])
    meter = CoreMeter(2, lambda _: next(seen))
    shares = [round(meter.missing_share(), 3) for _ in range(4)]
    assert shares == [0.0, 0.5, 0.0, 0.25]


def test_one_core_is_not_probed() -> None:
    def never(_: int) -> float:
        raise AssertionError("probed")

    assert CoreMeter(1, never).missing_share() == 0


class HandClock:
    """Time passes only by work."""

    def __init__(self) -> None:
        self.now = 50.0
        self.done = 0

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.done += 1


def test_work_goes_on_until_the_cores_are_there() -> None:
    seen = iter([2.0, 2.0, 2.0, 1.0, 1.1, 1.9])
    clock = HandClock()
    CoreMeter(2, lambda _: next(seen), lambda: clock.now).await_cores(lambda: clock.work(AWAIT_STEP_S / 4))
    assert next(seen, None) is None
    assert clock.done == 8, "short work is repeated between two looks"


def test_cores_that_stay_away_are_not_awaited_for_ever() -> None:
    seen = itertools.chain([2.0, 2.0, 2.0], itertools.repeat(1.0))
    clock = HandClock()
    CoreMeter(2, lambda _: next(seen), lambda: clock.now).await_cores(lambda: clock.work(AWAIT_S / 4))
    assert clock.done == 4
