"""Rounds in which several callers run a model at once, each beginning its next run when the last one has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from parallax.cli._timing import LogRuns, Round, Turn, rotated, wait_until_quiet, wake, witness_for
from parallax.machine import AWAIT_S

_LOOK_S = 0.05
"""How often the main thread, which Ctrl-C reaches, looks whether the callers are done."""


class CallerRounds:
    """Rounds in which each variant in turn serves so many callers for a while; see `Rounds`.

    Args:
        variants: label -> a call that does one run, from any thread.
        callers: how many call at once.
        turn_s: seconds that a turn lasts, and the runs that are under way then.
        cores: how many the variants use.
        log: called after each turn; see `LogRuns`.
    """

    def __init__(
        self,
        variants: Mapping[str, Callable[[], object]],
        *,
        callers: int,
        turn_s: float,
        cores: int | None,
        log: LogRuns = lambda label, runs_ns: None,
    ) -> None:
        for call in variants.values():
            wake(call)
        self._variants = variants
        self._callers = callers
        self._turn_s = turn_s
        self._judge = witness_for(cores)
        self._log = log
        self._number = 0

    def measure(self, *, wait_s: float = AWAIT_S, is_over: Callable[[], bool] = lambda: False) -> Round | None:
        """One round. See `Rounds`; callers keep the cores busy by themselves, so that nobody waits for those."""
        turns: dict[str, Turn] = {}
        for label in rotated(self._variants, self._number):
            if is_over():
                return None
            wait_until_quiet()
            wake(self._variants[label])
            turns[label] = run_callers(self._variants[label], callers=self._callers, seconds=self._turn_s)
            self._log(label, turns[label].runs_ns)
        self._number += 1
        return self._judge(turns)


def run_callers(call: Callable[[], object], *, callers: int, seconds: float) -> Turn:
    """Let ``callers`` threads do one run after the other for so many seconds; each does one at least.

    Returns: a turn whose sample is the time per run, of all callers together.

    Raises: what the first run that failed raised, when all callers have stopped; so too with KeyboardInterrupt.
    """
    runs: list[list[float]] = [[] for _ in range(callers)]
    failures: list[BaseException] = []
    stop = threading.Event()
    gate = threading.Barrier(callers + 1)

    def work(mine: list[float]) -> None:
        try:
            gate.wait()
            end = time.perf_counter() + seconds
            while not stop.is_set():
                begin = time.perf_counter_ns()
                call()
                mine.append(time.perf_counter_ns() - begin)
                if time.perf_counter() >= end:
                    return
        except threading.BrokenBarrierError:
            return
        except BaseException as error:  # handed to the thread that waits, which raises it
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in runs]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        gate.wait()
        began = time.perf_counter_ns()
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK_S)
        wall_ns = time.perf_counter_ns() - began
    except BaseException:
        stop.set()
        gate.abort()
        for thread in started:
            thread.join()
        raise
    if failures:
        raise failures[0]
    every = tuple(ns for mine in runs for ns in mine)
    return Turn(sample_ns=wall_ns / len(every), runs_ns=every, wall_ns=float(wall_ns))
