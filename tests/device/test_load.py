from __future__ import annotations

import itertools
import subprocess
import sys
import time

import psutil
import pytest

from parallax.device import CoreMeter, LoadMeter, offered_cores

_BURN = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def test_what_another_process_uses_is_seen() -> None:
    meter = LoadMeter()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert meter.others_cores() > 0.05


def test_what_this_process_uses_is_not_taken_for_others() -> None:
    # Others may be busy too, so what is compared is the sum: cores in use cannot exceed those there are.
    meter = LoadMeter()
    begin, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < 0.3:
        pass
    wall = time.perf_counter() - begin
    assert 0 <= meter.others_cores() <= psutil.cpu_count() - 0.3 / wall + 0.25


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


def test_work_goes_on_until_the_cores_are_there() -> None:
    seen = iter([2.0, 2.0, 2.0, 1.0, 1.1, 1.9])
    meter = CoreMeter(2, lambda _: next(seen))
    done = []
    meter.await_cores(lambda: done.append(time.sleep(0.03)))
    assert len(done) == 2
    assert next(seen, None) is None


def test_cores_that_stay_away_are_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallax.device._load._AWAIT_S", 0.1)
    seen = itertools.chain([2.0, 2.0, 2.0], itertools.repeat(1.0))
    done = []
    CoreMeter(2, lambda _: next(seen)).await_cores(lambda: done.append(time.sleep(0.001)))
    assert done
