"""When to switch to another plan, and when to look at a processor that the plan in force does not use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

LEAST_GAIN: Final = 0.05
"""The part of the latency that another plan must be predicted to save at least."""

HORIZON_S: Final = 1.0
"""A switch must pay for itself in what runs take in this time."""

LEAST_DWELL_S: Final = 1.0
"""A plan is in force for at least so long; doubled each time that plans alternate sooner than `SETTLED_S`."""

MOST_DWELL_S: Final = 60.0

SETTLED_S: Final = 5.0
"""Without a switch for so long after a plan might have been left, the dwelling time is the least again."""

PROBE_SHARE: Final = 0.01
"""Of the time, at most, goes into probes of all processors together."""

SAVED_S: Final = 10.0
"""Of so long a time without probes the share may be spent at once: after a change there is more to look at."""

FIRST_PAUSE_S: Final = 1.0
MOST_PAUSE_S: Final = 64.0

MOST_PAUSE_IF_SLOW_S: Final = 1.0
PROBE_SHARE_IF_SLOW: Final = 0.04
"""Of a processor that was found slow: a plan that uses it is better as soon as it is quick again."""

CHANGED: Final = 0.25
"""A probe that finds a processor faster or slower by this part has found a change."""


DEVIATIONS: Final = 1.5
"""And so many standard deviations of the logarithm of what runs are estimated to take."""


def least_gain(deviation: float) -> float:
    """The part of the latency that another plan must be predicted to save.

    Args:
        deviation: the standard deviation of the logarithm of what runs are estimated to take.
    """
    return max(LEAST_GAIN, -math.expm1(-DEVIATIONS * deviation))


def better_plan(
    current: int,
    predicted_ns: Sequence[int],
    *,
    switch_ns: Sequence[int],
    gain: float = LEAST_GAIN,
    horizon_s: float = HORIZON_S,
) -> int:
    """The plan to switch to, or ``current``.

    Args:
        current: the plan in force.
        predicted_ns: per plan, what a run takes in the machine's state.
        switch_ns: per plan, what going over to it costs, runs that take longer at first included.
        gain: the part of the latency that it must save.
        horizon_s: runs one after the other for so long must save more than that.
    """
    now_ns = predicted_ns[current]
    runs = horizon_s * 1e9 / max(1, now_ns)
    best, best_saved = current, 0.0
    for index, ns in enumerate(predicted_ns):
        saved = runs * (now_ns - ns) - switch_ns[index]
        if index != current and ns <= (1 - gain) * now_ns and saved > best_saved:
            best, best_saved = index, saved
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Dwell:
    """How long a plan stays in force, so that two plans do not take turns on noise. Times are seconds on one clock."""

    since_s: float = -math.inf
    """When the plan in force came into force."""
    least_s: float = LEAST_DWELL_S

    def may_switch(self, now_s: float) -> bool:
        """Whether the plan in force has been so for long enough."""
        return now_s - self.since_s >= self.least_s

    def switched(self, now_s: float) -> Dwell:
        """After a switch: soon after the last one, the next must wait for twice as long."""
        was_soon = now_s - self.since_s < self.least_s + SETTLED_S
        return Dwell(since_s=now_s, least_s=min(MOST_DWELL_S, 2 * self.least_s) if was_soon else LEAST_DWELL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """When to probe a processor that the plan in force does not use: at most `PROBE_SHARE` of the time, ever more
    rarely as long as nothing changes."""

    next_s: float
    """Not before."""
    pause_s: float = FIRST_PAUSE_S
    earliest_s: float = -math.inf
    """Before, a probe would take more than its share of the time."""

    def is_due(self, now_s: float) -> bool:
        """Whether it is time."""
        return now_s >= self.next_s

    def probed(self, now_s: float, *, took_s: float, before: float, after: float, is_slow: bool = False) -> ProbePlan:
        """After a probe that ended now.

        Args:
            took_s: the time that it took.
            before, after: the slow-down as it was known, and as the probe found it.
            is_slow: whether the processor is slower than in the nominal state.
        """
        has_changed = abs(after - before) > CHANGED * before
        most = MOST_PAUSE_IF_SLOW_S if is_slow else MOST_PAUSE_S
        pause = FIRST_PAUSE_S if has_changed else min(most, 2 * self.pause_s)
        earliest = now_s + took_s / (PROBE_SHARE_IF_SLOW if is_slow else PROBE_SHARE)
        return replace(self, next_s=max(now_s + pause, earliest), pause_s=pause, earliest_s=earliest)

    def hastened(self, now_s: float) -> ProbePlan:
        """After something else on the machine has changed: as soon as its share of the time allows."""
        return replace(self, next_s=min(self.next_s, max(now_s, self.earliest_s)), pause_s=FIRST_PAUSE_S)
