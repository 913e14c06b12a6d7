"""What `parallax bench` measures, in how many rounds, and which of these rounds count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from parallax.cli._console import ProgressCallback
from parallax.cli._limit import DEFAULT_S
from parallax.cli._quiet import Deadline
from parallax.cli._timing import Round, Rounds
from parallax.cli._verdict import LEAST_SAMPLES
from parallax.machine import AWAIT_S

_PATIENT_S, _IMPATIENT_S = AWAIT_S, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is measured, and for how long."""

    rounds: int | None = None
    """At most; None: 30."""
    max_time_s: float | None = None
    """None: `DEFAULT_S`, or what ``duration_s`` needs."""
    callers: int = 1
    duration_s: float | None = None
    """Seconds that each is called for; None: rounds of single runs, unless several call."""
    batch: int | None = None
    tunes: bool | None = None
    """None: models are tuned, bundles are not."""
    energy: bool = False
    """Whether joules are wanted."""

    @property
    def is_load(self) -> bool:
        """Whether throughput is measured, by callers that do not pause."""
        return self.callers > 1 or self.duration_s is not None

    @property
    def items_per_run(self) -> int:
        """The size of the batch; 1 where none was asked for."""
        return self.batch or 1

    def limit_s(self, variants: int) -> float:
        """The time limit, in seconds, of a bench of so many sessions."""
        if self.max_time_s is not None:
            return self.max_time_s
        return DEFAULT_S + (0.0 if self.duration_s is None else self.duration_s * variants)


class End(Enum):
    """What ended the rounds."""

    ROUNDS = "rounds"
    """As many as were wanted."""
    TIME = "time"
    BUSY = "busy"
    """As many again were noisy."""
    INTERRUPT = "interrupt"
    """Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured until the rounds, the time or the user's patience ended."""

    rounds: Sequence[Round]
    """That count: the quiet ones where these are enough for an interval, else all."""
    noisy: int
    """Rounds during which other programs used the cores."""
    is_spoiled: bool
    """Whether noisy rounds had to be counted."""
    others_cores: float
    """Of the cores, the most that other programs used in the rounds that count."""
    ended_by: End


def measure_rounds(
    rounds: Rounds, everything: list[Round], *, wanted: int, deadline: Deadline, progress: ProgressCallback
) -> End:
    """Measure until there are ``wanted`` quiet rounds, twice as many in all, or no time for another.

    Args:
        everything: each round is appended to it when it has ended.

    Returns: what ended it.
    """
    last_s = 0.0
    ended_by = End.ROUNDS
    try:
        while sum(not done.is_noisy for done in everything) < wanted and len(everything) < 2 * wanted:
            if deadline.remaining_s <= last_s:
                ended_by = End.TIME
                break
            # Cores that a host has taken come back when they are waited for; those that others use do not.
            is_busy = bool(everything) and everything[-1].is_noisy
            began = deadline.elapsed_s
            measured = rounds.measure(
                wait_s=_IMPATIENT_S if is_busy else _PATIENT_S, is_over=lambda: not deadline.remaining_s
            )
            if measured is None:
                ended_by = End.TIME
                break
            everything.append(measured)
            last_s = deadline.elapsed_s - began
            kept = sum(not done.is_noisy for done in everything)
            if len(everything) - kept < wanted:
                progress("rounds", kept, wanted)
            else:
                progress("rounds (the machine is busy)", kept, wanted)
    except KeyboardInterrupt:
        ended_by = End.INTERRUPT
    if ended_by is End.ROUNDS and sum(not done.is_noisy for done in everything) < wanted:
        ended_by = End.BUSY
    return ended_by


def counted(everything: Sequence[Round], ended_by: End) -> Measured:
    """Choose the rounds that count: the quiet ones if there are enough of them, else all."""
    clean = [measured for measured in everything if not measured.is_noisy]
    noisy = len(everything) - len(clean)
    kept = clean if len(clean) >= LEAST_SAMPLES or not noisy else list(everything)
    return Measured(
        rounds=kept,
        noisy=noisy,
        is_spoiled=len(kept) > len(clean),
        others_cores=max((measured.others_cores for measured in kept), default=0.0),
        ended_by=ended_by,
    )
