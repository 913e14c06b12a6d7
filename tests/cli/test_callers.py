"""Several callers at once: each runs, their turn ends, and a failure of one ends all."""

from __future__ import annotations

import threading
import time

import pytest

from parallax.cli._callers import CallerRounds, run_callers


def test_all_callers_run_at_once_and_every_run_is_counted() -> None:
    inside = most = 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    turn = run_callers(call, callers=3, seconds=0.1)
    assert most == 3
    assert len(turn.runs_ns) >= 3
    assert turn.sample_ns == pytest.approx(turn.wall_ns / len(turn.runs_ns))
    assert all(ns >= 0.01e9 for ns in turn.runs_ns)


def test_a_turn_too_short_for_a_run_has_one_of_each_caller() -> None:
    turn = run_callers(lambda: time.sleep(0.02), callers=2, seconds=0.0)
    assert len(turn.runs_ns) == 2


def test_what_one_run_raises_ends_the_turn() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ValueError("of the fifth run")
        time.sleep(0.001)

    with pytest.raises(ValueError, match="of the fifth run"):
        run_callers(call, callers=2, seconds=60.0)
    assert threading.active_count() < 20


def test_rounds_give_each_a_turn_in_rotating_order() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        if not order or order[-1] != name:
            order.append(name)

    rounds = CallerRounds({name: (lambda name=name: call(name)) for name in "ab"}, callers=1, turn_s=0.01, cores=None)
    order.clear()
    for _ in range(2):
        measured = rounds.measure()
        assert set(measured.turns) == {"a", "b"}
        assert not measured.is_noisy
    assert order == ["a", "b", "a"]
