"""The time that a command may take: it ends in it, whatever it is doing then, and says what it does not know.

Loading a library, compiling a model or running it cannot be broken off, and takes ten times as long as it should where
other programs want the same cores. So a thread watches the time. When that is over it tells what is known by then, and
ends the process under what still runs in it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from parallax.cli._document import document_text
from parallax.cli._exits import BAD_INPUT_EXIT, INCONCLUSIVE_EXIT, IS_OWN_PROCESS, say

DEFAULT_S: Final = 30.0
END_PART: Final = 0.5
"""Telling what is known and ending Python is work of the same kind as loading it, and takes up to this part of that:
on a machine where the one is slow the other is."""
END_SHARE: Final = 1 / 6
"""Of the time, at most so much is left for the end; so much, until it is known how long loading took."""
_LEAST_END_S: Final = 0.1
GRACE_PART: Final = 0.25
"""Of what is left for the end: so much later than the work should be over, work that goes on is cut off."""

STARVED_SHARE: Final = 0.5
"""A process that got a core for less than this part of its time was kept waiting, by other programs above all."""


class Limit:
    """Seconds within which a command ends, its start and its end included.

    Args:
        seconds: in all.
        began_s: by the clock.
        clock: seconds, monotonic.
        cpu: seconds of processors that this process used.
    """

    def __init__(
        self,
        seconds: float,
        *,
        began_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.seconds = seconds
        self.began_s = began_s
        self.stage = "Parallax was loaded"
        """What the time ended in, if it ends now: "while ..."."""
        self.conclude: Callable[[], int] = lambda: BAD_INPUT_EXIT
        """Tells what is known by now; returns the exit status."""
        self._clock = clock
        self._cpu = cpu
        self._cpu_before_s = 0.0 if IS_OWN_PROCESS.get() else cpu()
        self._loading_s: float | None = None
        self._is_taken = False
        self._changed = threading.Condition()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self.began_s

    @property
    def reserve_s(self) -> float:
        """Seconds of the limit that are left for telling what is known, and for ending the process."""
        most_s = END_SHARE * self.seconds
        return most_s if self._loading_s is None else min(most_s, max(_LEAST_END_S, END_PART * self._loading_s))

    @property
    def work_s(self) -> float:
        """Seconds after which the work is to be over."""
        return self.seconds - self.reserve_s

    @property
    def cut_s(self) -> float:
        """Seconds after which work that is not over is cut off."""
        return self.work_s + GRACE_PART * self.reserve_s

    @property
    def cpu_s(self) -> float:
        """Seconds for which the command had a core."""
        return self._cpu() - self._cpu_before_s

    @property
    def is_starved(self) -> bool:
        """Whether the machine kept the command waiting rather than working."""
        return self.cpu_s < STARVED_SHARE * self.elapsed_s

    def note_loaded(self, seconds: float) -> None:
        """What the command needs is loaded now: how long that took says how long the end will take.

        Args:
            seconds: the limit, which may be known only now.
        """
        with self._changed:
            self._loading_s = self.elapsed_s
            self.seconds = seconds
            self._changed.notify_all()

    def enforce(self, leave: Callable[[int], object] = os._exit) -> threading.Thread:
        """Have a thread `conclude` and end the process where work is to be cut off, unless it is taken before.

        Args:
            leave: ends the process with a status, whatever other threads are doing.
        """
        thread = threading.Thread(target=self._watch, args=(leave,), name="parallax-limit", daemon=True)
        thread.start()
        return thread

    def take(self) -> None:
        """The caller tells what is known, and nobody else does. It does not return where somebody has begun to."""
        if not self._is_mine():
            threading.Event().wait()  # until the process ends, which is a matter of moments

    def _is_mine(self) -> bool:
        with self._changed:
            is_first, self._is_taken = not self._is_taken, True
            self._changed.notify_all()
            return is_first

    def _watch(self, leave: Callable[[int], object]) -> None:
        with self._changed:
            while not self._is_taken and self.elapsed_s < self.cut_s:
                self._changed.wait(self.cut_s - self.elapsed_s)
        if not self._is_mine():
            return
        status = 1
        try:
            status = self.conclude()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # a bug of ours, or a reader that has gone: the process ends all the same
            traceback.print_exc()
        finally:
            leave(status)


def begin_limit(model: str, seconds: float | None, *, as_json: bool) -> Limit:
    """Begin the limit of the command that runs now. Call this before anything that takes long to load is loaded.

    The limit counts from the start of the process, if the process runs this command alone; else from now.

    Args:
        seconds: None: `DEFAULT_S`.
    """
    is_own = IS_OWN_PROCESS.get()
    limit = Limit(DEFAULT_S if seconds is None else seconds, began_s=process_began_s() if is_own else time.monotonic())
    limit.conclude = lambda: tell_nothing(limit, model, as_json=as_json)
    if is_own:
        limit.enforce()
    return limit


def process_began_s() -> float:
    """When this process started, in seconds of the monotonic clock.

    Where the system does not tell (only Linux does), the process is taken to have computed since it started.
    """
    now = time.monotonic()
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            # The second field, in brackets, may hold anything; the 22nd is ticks since the machine was started.
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return now - time.process_time()


# What is said where no round has ended ----------------------------------------------------------------


def describe_unmeasured(limit: Limit, model: str, *, others: str = "", tunes: bool = False) -> dict[str, Any]:
    """What a report holds in any case: that nothing is concluded, why, and what would help.

    Args:
        others: what other programs did, if something is known of it.
        tunes: whether a search for the best plan took part of the time.
    """
    elapsed_s, cpu_s = limit.elapsed_s, limit.cpu_s
    reasons = [
        f"no round, in which each runs once, ended within --max-time {limit.seconds:g}: the time for it was over while "
        f"{limit.stage}"
    ]
    if limit.is_starved:
        reasons.append(f"this process had a core for {cpu_s:.1f} of {elapsed_s:.0f} s")
    if others:
        reasons.append(others)
    why = "; ".join(reasons)
    return {
        "model": model,
        "runs": 0,
        "timings": [],
        "interrupted": False,
        "ended_by": "time",
        "stage": limit.stage,
        "elapsed_s": elapsed_s,
        "max_time_s": limit.seconds,
        "cpu_s": cpu_s,
        "verdict": {"outcome": "inconclusive", "ratio": None, "interval": None, "rounds": 0, "why": why},
        "conclusion": f"Inconclusive: {why}.",
        "advice": f"run this again when the machine is idle, or with {_longer(elapsed_s, tunes)}",
    }


def tell_nothing(limit: Limit, model: str, *, as_json: bool, others: str = "", tunes: bool = False) -> int:
    """Say that nothing at all was measured; returns the exit status.

    That is bad input where the machine did what it can, and no conclusion where it was kept from it.
    """
    report = describe_unmeasured(limit, model, others=others, tunes=tunes)
    if not (limit.is_starved or others):
        elapsed_s = report["elapsed_s"]
        say(
            f"error: --max-time {limit.seconds:g} is too short: nothing was measured in the first {elapsed_s:.1f} s, "
            f"which were over while {limit.stage}; give {_longer(elapsed_s, tunes)}"
        )
        return BAD_INPUT_EXIT
    if as_json:
        sys.stdout.write(document_text(report))
    else:
        sys.stdout.write(f"{report['conclusion']}\nnothing was measured\n")
    return say_inconclusive(report)


def say_inconclusive(report: Mapping[str, Any]) -> int:
    """One line on stderr, with what would help; returns the exit status."""
    say(f"inconclusive: no round ended in time; {report['advice']}")
    return INCONCLUSIVE_EXIT


def _longer(elapsed_s: float, tunes: bool) -> str:
    return f"--max-time {max(60, round(4 * elapsed_s))}{', or --no-tune' if tunes else ''}"
