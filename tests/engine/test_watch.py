"""Runs that are called where they are, and ended where they last."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from parallax.engine import RunLastsError, _watch, run_watched

PATIENCE_S = 60.0


def until_terminated(options: Any) -> None:
    """As the runtime does in a long run: goes on until it is told to end, then fails."""
    give_up = time.monotonic() + PATIENCE_S
    while not options.terminate:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    raise RuntimeError("Exiting due to terminate flag being set to true.")


def test_a_short_run_is_called_in_this_thread_and_its_answer_returned() -> None:
    assert run_watched(lambda options: (threading.get_ident(), options.terminate)) == (threading.get_ident(), False)


def test_a_run_that_lasts_is_ended_and_said_to_last() -> None:
    for _ in range(2):  # the second finds the watching thread awake
        with pytest.raises(RunLastsError):
            run_watched(until_terminated)
    assert run_watched(lambda options: options.terminate) is False


def test_a_run_that_lasts_finds_the_thread_that_fell_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "_IDLE_S", 0.0)
    run_watched(lambda options: None)
    watcher = _watch._watcher
    assert watcher is not None
    give_up = time.monotonic() + PATIENCE_S
    while not watcher.is_asleep:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    with pytest.raises(RunLastsError):
        run_watched(until_terminated)


def test_an_answer_that_comes_too_late_to_be_ended_is_an_answer() -> None:
    def late(options: Any) -> str:
        with pytest.raises(RuntimeError, match="terminate"):
            until_terminated(options)
        return "done"

    assert run_watched(late) == "done"


def test_an_error_of_a_short_run_is_its_own() -> None:
    def fails(options: Any) -> None:
        raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        run_watched(fails)
    assert run_watched(lambda options: 1) == 1


def test_a_call_within_a_call_and_one_of_another_thread_are_not_watched() -> None:
    assert run_watched(lambda options: run_watched(lambda inner: inner)) is None
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(run_watched(lambda options: options)))
    thread.start()
    thread.join()
    assert seen == [None]
