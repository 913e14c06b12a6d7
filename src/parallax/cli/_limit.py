"""The time limit of a command: the command ends within it, whatever it is doing, and reports what is known by then.

Loading a library, compiling a model and running it cannot be interrupted, and can take ten times as long as usual while
other programs use the same cores. So a thread watches the time. When the time is over, this thread reports what is
known and ends the process, even while the main thread is still at work.
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
"""The end of a command (its report, and Python's exit) is given this part of the time that loading took: a machine
that is slow at the one is slow at the other."""
END_SHARE: Final = 1 / 6
"""The end is given at most this share of the limit, and exactly this share until the time of loading is known."""
_LEAST_END_S: Final = 0.1
GRACE_PART: Final = 0.25
"""Work that overruns is cut off when it has used up this part of the time that was kept for the end."""

STARVED_SHARE: Final = 0.5
"""A process whose CPU time is less than this share of the elapsed time is starved: it mostly waited."""


class Limit:
    """The seconds within which a command ends, the start and the exit of its process included.

    Args:
        seconds: the limit.
        began_s: when the command began, by ``clock``.
        clock: returns seconds, monotonic.
        cpu: returns the CPU seconds that this process has used.
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
        """What the command is doing now, as the words after "while" of a message."""
        self.conclude: Callable[[], int] = lambda: BAD_INPUT_EXIT
        """Reports what is known by now; returns the exit status."""
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
        """Seconds of the limit that are kept for the report and for the exit of the process."""
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
        """CPU seconds that the command has used, on all cores together."""
        return self._cpu() - self._cpu_before_s

    @property
    def is_starved(self) -> bool:
        """Whether the command mostly waited for a core."""
        return self.cpu_s < STARVED_SHARE * self.elapsed_s

    def note_loaded(self, seconds: float) -> None:
        """Note that all modules of the command are loaded; how long this took sets `reserve_s`.

        Args:
            seconds: the limit from now on; the one that the command began with may have been a guess.
        """
        with self._changed:
            self._loading_s = self.elapsed_s
            self.seconds = seconds
            self._changed.notify_all()

    def enforce(self, leave: Callable[[int], object] = os._exit) -> threading.Thread:
        """Start a thread that concludes and ends the process after `cut_s`, unless `take` is called before.

        Args:
            leave: ends the process with a status, whatever other threads are doing.
        """
        thread = threading.Thread(target=self._watch, args=(leave,), name="parallax-limit", daemon=True)
        thread.start()
        return thread

    def take(self) -> None:
        """Leave the report to the caller. Does not return if the thread of `enforce` has begun to report."""
        if not self._is_mine():
            threading.Event().wait()  # that thread ends the process soon

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
        except BaseException:  # a bug of ours, or a closed pipe: the process must end in any case
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


# Reports where no round has ended ---------------------------------------------------------------------


def describe_unmeasured(limit: Limit, model: str, *, others: str = "", tunes: bool = False) -> dict[str, Any]:
    """The report of a bench without a round: it is inconclusive, why, and what would help.

    Args:
        others: what other programs did; "" if nothing is known of it.
        tunes: whether a search for the best plan took part of the time.
    """
    elapsed_s, cpu_s = limit.elapsed_s, limit.cpu_s
    reasons = [
        f"no round, in which each runs once, ended within --max-time {limit.seconds:g}: time ran out while "
        f"{limit.stage}"
    ]
    if limit.is_starved:
        reasons.append(f"this process got {cpu_s:.1f} s of CPU time in {elapsed_s:.0f} s")
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
    """Report that nothing at all was measured; returns the exit status.

    The exit status is that of a measurement without a conclusion where other programs used the cores or the process was
    starved; else that of bad input, since the limit is too short for this machine.
    """
    report = describe_unmeasured(limit, model, others=others, tunes=tunes)
    if not (limit.is_starved or others):
        elapsed_s = report["elapsed_s"]
        say(
            f"error: --max-time {limit.seconds:g} is too short: time ran out after {elapsed_s:.1f} s, while "
            f"{limit.stage}, and nothing was measured; give {_longer(elapsed_s, tunes)}"
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
