"""Waiting for cores that other programs use, and the time that a measurement is given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parallax.cli._console import Screen
from parallax.cli._quiet import POLL_S, Deadline, await_idle_cores
from parallax.machine import LoadMeter
from parallax.machine._load import Reading


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def meter_of(clock: Clock, busy_cores: Iterator[float]) -> LoadMeter:
    """Others use so many cores in one look after the other."""
    used = 0.0

    def read() -> Reading:
        nonlocal used
        if clock.now:
            used += next(busy_cores) * POLL_S
        return Reading(clock.now, used, 0.0)

    return LoadMeter(read)


def wait(busy: list[float], capsys: pytest.CaptureFixture[str], *, limit_s: float = 10.0) -> tuple[float, str, list]:
    import os

    clock = Clock()
    cores = os.cpu_count() or 1
    steps: list[tuple[str, int, int]] = []
    found = await_idle_cores(
        Screen(),
        lambda *step: steps.append(step),
        cores=cores,
        limit_s=limit_s,
        meter=meter_of(clock, iter([share * cores for share in busy] + [busy[-1] * cores] * 1000)),
        clock=clock,
        sleep=clock.sleep,
    )
    return found / cores, capsys.readouterr().err, steps


def test_idle_cores_are_not_waited_for_nor_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    found, said, steps = wait([0.0], capsys)
    assert (found, said, steps) == (0.0, "", [])


def test_a_wait_is_announced_and_its_end_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found, said, steps = wait([1.0, 1.0, 1.0, 0.0], capsys)
    assert found == 0.0
    assert "note: other programs use" in said
    assert "waiting up to 10 s for them" in said
    assert "note: the cores are there after 1 s" in said
    assert steps


def test_a_wait_ends_with_what_others_still_use(capsys: pytest.CaptureFixture[str]) -> None:
    found, said, steps = wait([0.5], capsys)
    assert found == pytest.approx(0.5)
    assert "the cores are there" not in said
    assert steps[-1][1:] == (10, 10)


def test_without_time_to_wait_one_look_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    found, said, _ = wait([1.0], capsys, limit_s=0.0)
    assert found == pytest.approx(1.0)
    assert said == ""


def test_a_deadline_counts_down_and_has_parts() -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock)
    clock.sleep(4.0)
    assert (deadline.elapsed_s, deadline.remaining_s) == (4.0, 6.0)
    part = deadline.within(0.5)
    assert part.remaining_s == 3.0
    clock.sleep(30.0)
    assert deadline.remaining_s == part.remaining_s == 0.0


def test_a_deadline_may_have_begun_before() -> None:
    clock = Clock()
    clock.sleep(7.0)
    assert Deadline(10.0, clock, began_s=3.0).remaining_s == 6.0
