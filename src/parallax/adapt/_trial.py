"""Whether a plan that came into force is quicker indeed: what its runs take, against those by the plan before it.

A prediction may be wrong for one plan and right for another in the same state: short segments between waits for a
device hardly feel a competitor, and several threads that wait for each other feel it more than one. What was measured
counts for more, so that a wrong prediction costs some runs and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

from parallax.adapt._decision import Dwell
from parallax.adapt._slowdown import Slowdown
from parallax.adapt._state import HardwareState

LEAST_RUNS: Final = 3
"""Of the plan that is tried, before anything is said of it."""

MOST_RUNS: Final = 16
"""After so many a trial ends. Where it is still in doubt which plan is quicker, the one in force stays: to go back
would be one more switch for nothing."""

LEAST_RUNS_BEFORE: Final = 16
"""Of the plan in force, before another one is compared with it without being predicted to be quicker."""

SURE: Final = 2.0
"""Standard deviations by which a difference is beyond doubt."""

WORSE: Final = math.log(1.05)
"""Logarithm of what a plan may take of the time of the one before and be kept."""

FIRST_SETBACK_S: Final = 20.0
"""A plan that was slower is not tried again for so long; doubled each time that it is slower again."""

MOST_SETBACK_S: Final = 320.0

STATE_CHANGED: Final = math.log(1.5)
"""Logarithm of a change of a processor's slow-down after which what was measured before is of no use ..."""

BEYOND: Final = 3.0
"""... if it is so many standard deviations, too."""


class Verdict(Enum):
    """What came out of a trial."""

    KEPT = "the plan stays in force"
    SLOWER = "the plan before was quicker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A plan that was switched to, until it is known whether that was right."""

    before: int
    """Index of the plan before."""
    before_ns: float
    """What a run took by that."""
    before_variance: float
    """Of the logarithm of that."""
    dwell: Dwell
    """As it was before; what it is again once the plan before is in force again."""
    is_return: bool
    """Whether this one was itself gone back to, because the other was slower."""
    is_comparison: bool = False
    """Whether nothing is predicted to be gained by it, so that it is kept only if it is surely quicker."""
    estimates: Mapping[str, Slowdown] = field(default_factory=lambda: MappingProxyType({}))
    """Of all processors, from before this plan ran; what they are again if it is given up. Where a plan's prediction is
    wrong, its runs show processors that are as slow as it is wrong, which is no other state of the machine."""

    def verdict(self, after_ns: float, after: Slowdown, runs: int) -> Verdict | None:
        """None: more runs are needed.

        Args:
            after_ns: what a run takes by the plan in force.
            after: the estimate that this is of.
            runs: that it is made of.
        """
        if runs < LEAST_RUNS:
            return None
        slower = math.log(after_ns / self.before_ns)
        doubt = SURE * math.sqrt(self.before_variance + after.variance)
        if self.is_comparison:
            if slower < -max(WORSE, doubt):
                return Verdict.KEPT
            return Verdict.SLOWER if slower > doubt or runs >= MOST_RUNS else None
        if slower > WORSE + doubt:
            return Verdict.SLOWER
        if slower < -doubt:
            return Verdict.KEPT
        if runs < MOST_RUNS:
            return None
        return Verdict.SLOWER if slower > max(WORSE, doubt) else Verdict.KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """A plan that was measured to be slower than another, and is not switched to for that reason."""

    until_s: float
    pause_s: float = FIRST_SETBACK_S
    state: HardwareState | None = None
    """The machine's, as runs of the quicker plan have it, and the first probe since of what it does not use. None until
    enough of its runs ended."""
    deviation: float = 0.0
    """Standard deviation of the logarithms of that state's slow-downs."""

    @classmethod
    def after(cls, former: Setback | None, now_s: float) -> Setback:
        """``former``: the last one of that plan, in the same state of the machine."""
        pause = FIRST_SETBACK_S if former is None else min(MOST_SETBACK_S, 2 * former.pause_s)
        return cls(until_s=now_s + pause, pause_s=pause)

    def is_over(self, now_s: float) -> bool:
        """Whether the plan may be tried again."""
        return now_s >= self.until_s

    def is_void(self, state: HardwareState, deviation: float) -> bool:
        """Whether the machine is another than it was, so that nothing is known of the plan any more.

        Args:
            state: of the machine now.
            deviation: see the attribute.
        """
        if self.state is None:
            return False
        least = max(STATE_CHANGED, BEYOND * math.hypot(self.deviation, deviation))
        names = state.slowdowns.keys() & self.state.slowdowns.keys()
        return any(abs(math.log(state.slowdown(name) / self.state.slowdown(name))) > least for name in names)
