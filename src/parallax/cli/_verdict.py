"""Which of two is faster, and whether that is known: intervals of medians, and the words for ratios.

Nothing here measures. What is judged are ratios of one's time to another's, taken round by round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

LEVEL = 0.95
LEAST_SAMPLES = 6
"""With fewer, not even the least and the largest sample enclose the median with 95%."""

AS_FAST = "as fast"

SAME_SHARE = 0.02
"""Two whose ratio is known to lie within this of 1 are called equally fast."""


class Outcome(Enum):
    """What a comparison shows."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What ratios of our time to another's show."""

    outcome: Outcome
    ratio: float
    """The median; below 1 ours is faster."""
    interval: tuple[float, float] | None
    """95%, of the median; None where there are too few rounds for one."""
    rounds: int
    why: str = ""
    """Of an inconclusive one: what stands in the way."""

    def to_json(self) -> dict[str, Any]:
        """A value of JSON types."""
        return {
            "outcome": self.outcome.value,
            "ratio": self.ratio,
            "interval": None if self.interval is None else list(self.interval),
            "rounds": self.rounds,
            "why": self.why or None,
        }

    def sentence(self, who: str, whom: str) -> str:
        """For people: ``Parallax is 1.30x faster than ONNX Runtime (95% interval: ...)``."""
        if self.outcome is Outcome.INCONCLUSIVE:
            return f"inconclusive: {self._open_range(who, whom)}{self.why}"
        found = "" if self.interval is None else f" (95% interval: {_between(self.interval)}; {self.rounds} rounds)"
        if self.outcome is Outcome.SAME:
            return f"{who} is as fast as {whom}, within {SAME_SHARE:.0%}{found}"
        words = speed(self.ratio)
        return f"{who} is {f'barely {self.outcome.value}' if words == AS_FAST else words} than {whom}{found}"

    def _open_range(self, who: str, whom: str) -> str:
        if self.interval is None:
            return ""
        slow, fast = speed(self.interval[1]), speed(self.interval[0])
        span = slow if slow == fast else f"anything from {slow} to {fast}"
        return f"{who} against {whom}: {span} (95% interval of {self.rounds} rounds); "


def judge(ratios: Sequence[float], *, obstacle: str = "") -> Verdict:
    """What ratios of our time to another's, one per round, show of their median.

    Inconclusive where noise is larger than the difference: the interval of the median holds 1, and more than
    `SAME_SHARE` to some side of it.

    Args:
        ratios: at least one.
        obstacle: why nothing may be concluded from them whatever they are; "" if nothing stands against it.
    """
    interval = median_interval(ratios)
    ratio = statistics.median(ratios)
    outcome, why = Outcome.INCONCLUSIVE, obstacle
    if not obstacle:
        if interval is None:
            why = f"{len(ratios)} of the {LEAST_SAMPLES} rounds that an interval needs were measured"
        elif interval[0] >= 1 - SAME_SHARE and interval[1] <= 1 + SAME_SHARE:
            outcome = Outcome.SAME
        elif interval[1] < 1:
            outcome = Outcome.FASTER
        elif interval[0] > 1:
            outcome = Outcome.SLOWER
        else:
            why = "the noise is larger than the difference"
    return Verdict(outcome=outcome, ratio=ratio, interval=interval, rounds=len(ratios), why=why)


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of a median from the order of the samples alone; None for fewer than six.

    It assumes nothing of their distribution: between the k-th sample from below and the k-th from above, where k is
    the largest number for which a median lies outside with at most 5% (binomially).
    """
    count = len(samples)
    if count < LEAST_SAMPLES:
        return None
    outside, cut = 0.0, 0
    while True:
        outside += 2 * math.comb(count, cut) / 2**count
        if outside > 1 - LEVEL:
            break
        cut += 1
    ordered = sorted(samples)
    return ordered[cut - 1], ordered[count - cut]


def speed(ratio: float) -> str:
    """A ratio of times in words: ``1.30x faster``, ``1.30x slower``; `AS_FAST` where two digits show no difference.

    "1.30x faster" is 1 / 1.30 of the time, and so 1.30 times as many runs per second.
    """
    factor = 1 / ratio if ratio < 1 else ratio
    shown = f"{factor:.2f}" if factor < 100 else f"{factor:.0f}"
    if shown == "1.00":
        return AS_FAST
    return f"{shown}x {'faster' if ratio < 1 else 'slower'}"


def _between(interval: tuple[float, float]) -> str:
    """``1.25x to 1.36x faster``, ``between as fast and 1.10x faster``."""
    slow, fast = speed(interval[1]), speed(interval[0])
    if slow == fast:
        return slow
    sides = {words.partition(" ")[2] for words in (slow, fast)}
    if len(sides) == 1 and AS_FAST not in (slow, fast):
        less, more = sorted((slow, fast), key=lambda words: float(words.partition("x")[0]))
        return f"{less.partition(' ')[0]} to {more}"
    return f"between {slow} and {fast}"
