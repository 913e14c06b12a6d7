"""Memory pressure: what is read, from where, and how often."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from parallax.machine import PressureMonitor, PressureReading, private_bytes
from parallax.machine._pressure import read_pressure

MIB = 1 << 20


def stalls(some: float) -> str:
    return f"some avg10={some:.2f} avg60=1.00 avg300=0.00 total=123\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30, available=32 << 30))
    for name in ("proc/self", "proc/pressure", "sys/fs/cgroup/app"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/app\n")
    return tmp_path


def test_this_machine_can_be_read():
    reading = read_pressure()
    assert reading.free_bytes > 0
    assert reading.stalled_share is None or 0 <= reading.stalled_share <= 1


def test_stalls_of_the_machine_count_where_the_group_tells_none(machine):
    (machine / "proc/pressure/memory").write_text(stalls(12.5))
    assert read_pressure(root=machine) == PressureReading(free_bytes=32 << 30, stalled_share=0.125)


def test_stalls_of_the_own_group_come_before_the_machines(machine):
    (machine / "proc/pressure/memory").write_text(stalls(50))
    (machine / "sys/fs/cgroup/app/memory.pressure").write_text(stalls(3))
    (machine / "sys/fs/cgroup/app/memory.max").write_text(str(100 * MIB))
    (machine / "sys/fs/cgroup/app/memory.current").write_text(str(80 * MIB))
    assert read_pressure(root=machine) == PressureReading(free_bytes=20 * MIB, stalled_share=0.03)


@pytest.mark.parametrize("text", [None, "", "rubbish", "full avg10=3.00"])
def test_a_system_that_does_not_say_is_not_taken_for_one_without_stalls(machine, text):
    if text is not None:
        (machine / "proc/pressure/memory").write_text(text)
    assert read_pressure(root=machine).stalled_share is None


def test_readings_are_taken_at_most_every_so_often():
    now = [100.0]
    taken = []

    def read() -> PressureReading:
        taken.append(now[0])
        return PressureReading(free_bytes=len(taken))

    monitor = PressureMonitor(interval_s=0.5, read=read, clock=lambda: now[0])
    seen = []
    for moment in (100.0, 100.2, 100.49, 100.5, 100.9, 101.1):
        now[0] = moment
        seen.append(monitor.reading().free_bytes)
    assert taken == [100.0, 100.5, 101.1]
    assert seen == [1, 1, 1, 2, 2, 3]


def test_what_is_written_to_becomes_private():
    before = private_bytes()
    assert before is not None
    held = np.ones(32 * MIB, np.uint8)
    after = private_bytes()
    assert after is not None
    assert after - before >= 24 * MIB
    assert held[-1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no smaps_rollup")
def test_private_bytes_are_the_anonymous_pages(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/smaps_rollup").write_text(
        "5600-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 90 kB\nAnonymous: 12 kB\n"
    )
    assert private_bytes(root=tmp_path) == 12 << 10
    assert private_bytes(root=tmp_path / "nowhere") == pytest.approx(psutil.Process().memory_full_info().uss, rel=0.5)
