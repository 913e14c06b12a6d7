"""The arithmetic of budgets: what a run may hold at most, and what the least is that it can live with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from parallax.errors import ConfigError, InternalError, PlanError
from parallax.memory._lifetimes import descendants
from parallax.memory._protocols import PlanLike

DEFAULT_MARGIN: Final = 0.1
"""Share of a budget left free, for what estimates do not see."""

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
}
_QUANTITY: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)", re.ASCII)
_FIX_SIZE: Final = 'give bytes (268435456), or a size ("256MiB", "1.5 GB")'
_FIX: Final = 'give bytes (268435456), a size ("256MiB", "1.5 GB"), or a share of free memory (0.5, "50%")'


def parse_bytes(value: str | int | float, *, free_bytes: int | None = None, where: str = "memory_budget") -> int:
    """A budget in bytes.

    Args:
        value: bytes as an integer; a string such as "256MiB" (KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB of
            1000; case does not matter); a float above 0 and up to 1, or a percentage such as "50%", of what is free.
        free_bytes: what is free; None where shares are not allowed.
        where: the option's name, for messages.

    Raises: ConfigError for anything else, for 0 bytes, and for a share without ``free_bytes``.
    """
    fix = _FIX if free_bytes is not None else _FIX_SIZE
    share: float | None = None
    size: float = 0
    if isinstance(value, float):
        share = value
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        text = value.strip()
        percent = text.endswith("%")
        match = _QUANTITY.fullmatch(text.removesuffix("%").rstrip())
        if match is None or (percent and match[2]) or match[2].lower() not in _UNITS:
            raise ConfigError(f"{value!r:.80} is no amount of memory", where=where, fix=fix)
        if percent:
            share = float(match[1]) / 100
        else:
            # Whole numbers stay exact.
            size = (int(match[1]) if "." not in match[1] else float(match[1])) * _UNITS[match[2].lower()]
    else:
        raise ConfigError(f"a {type(value).__name__} is no amount of memory", where=where, fix=fix)
    if share is not None:
        if not 0 < share <= 1:  # also refuses nan
            raise ConfigError(f"{value!r} is no share of free memory", where=where, fix=fix)
        if free_bytes is None:
            raise ConfigError(f"{value!r} is a share, and free memory is not known", where=where, fix=fix)
        size = share * free_bytes
    if not 1 <= size <= 1 << 62:
        raise ConfigError(f"{value!r:.80} is no usable amount of memory", where=where, fix=fix)
    return int(size)


def show_bytes(count: int) -> str:
    """Write bytes for messages: ``12 B``, ``1.5 KiB``, ``64.0 MiB``."""
    for factor, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.1f} {suffix}"
    return f"{count} B"


def least_budget(peaks: Sequence[int], *, arena_bytes: int, margin: float = DEFAULT_MARGIN) -> int:
    """The smallest budget that a plan can run in: its arena and the largest of its segments, which then runs alone.

    Args:
        peaks: bytes each segment adds to the arena while it runs (`GroupPeak.interior_bytes`).
        arena_bytes: reserved for the whole run; it holds the boundary tensors alive beside any segment.
        margin: share of the budget to leave free, from 0 to below 1.

    Raises: ConfigError for another margin.
    """
    _check_margin(margin)
    needed = arena_bytes + max(peaks, default=0)
    least = math.ceil(needed / (1 - margin))
    while _usable(least, margin) < needed:  # rounding of the division
        least += 1
    return least


def largest_segment(peaks: Sequence[int]) -> int | None:
    """The segment that a least budget must hold beside the arena, the first of several; None for a plan without any."""
    return max(range(len(peaks)), key=lambda segment: (peaks[segment], -segment), default=None)


def admission_budget(
    budget_bytes: int, peaks: Sequence[int], *, arena_bytes: int, margin: float = DEFAULT_MARGIN
) -> int:
    """What the peaks of running segments may add up to, so that a run never holds more than its budget less the margin.

    This is the dispatcher's ``budget_bytes``. No segment's peak exceeds it, so nothing ever runs beyond it.

    Raises:
        PlanError: not every segment can run, even alone; the message gives the budget that would do.
        ConfigError: a margin that is not from 0 to below 1.
    """
    least = least_budget(peaks, arena_bytes=arena_bytes, margin=margin)
    if budget_bytes < least:
        largest = largest_segment(peaks)
        at = "" if largest is None else f" and segment {largest} alone {peaks[largest]}"
        raise PlanError(
            f"a budget of {budget_bytes} bytes is too small: tensors between segments take {arena_bytes}{at}, "
            f"and {margin:.0%} is kept free",
            where="memory_budget",
            fix=f"give at least {least} bytes",
        )
    return _usable(budget_bytes, margin) - arena_bytes


def peak_of_schedule(plan: PlanLike, peaks: Sequence[int], *, arena_bytes: int, budget_bytes: int | None = None) -> int:
    """An upper bound on the bytes that a run holds at any moment, whatever order its segments end in.

    The arena, and the most that segments running at once can add up to: of these one is the largest, the others
    are no larger, depend on it in neither direction, and are limited in number by the lanes and by the cores
    it leaves. A segment wider than the cores runs alone. O(segments²) at worst.

    Args:
        plan: gives dependencies, widths, lanes and cores.
        peaks: as in `least_budget`.
        arena_bytes: as in `least_budget`.
        budget_bytes: the dispatcher's limit on the sum of running peaks, if it has one. A segment larger than
            the limit runs alone (rule 6 of the dispatcher), so the bound may lie above it.
    """
    if len(peaks) != len(plan.segments):
        raise InternalError(f"{len(peaks)} peaks for {len(plan.segments)} segments")
    concurrent = largest_concurrent_set(plan, peaks, descendants([segment.predecessors for segment in plan.segments]))
    bound = sum(peaks[segment] for segment in concurrent)
    if budget_bytes is not None:
        bound = min(bound, max(budget_bytes, max(peaks, default=0)))
    return arena_bytes + bound


def find_serialisation_edges(
    plan: PlanLike, peaks: Sequence[int], spans: Sequence[tuple[int, int]], *, limit_bytes: int
) -> tuple[tuple[int, int], ...] | None:
    """Edges with which the peaks of segments running at once never add up to more than a limit, in any execution.

    As long as some could, the two of them that lie furthest apart in the predicted timeline get an edge between them.

    Args:
        plan: its segments in the order of their predicted start.
        peaks: as in `least_budget`.
        spans: per segment its (start, end).
        limit_bytes: for the sum of those that run.

    Returns: (a segment, a later one that must wait for it), ascending; None where segments that exceed the limit
        together do not follow each other in the timeline either.
    """
    below = descendants([segment.predecessors for segment in plan.segments])
    edges: list[tuple[int, int]] = []
    while True:
        concurrent = sorted(largest_concurrent_set(plan, peaks, below))
        if sum(peaks[segment] for segment in concurrent) <= limit_bytes:
            return tuple(sorted(edges))
        # They are apart from the largest, but not all from each other.
        pause, before, after = max(
            (
                (spans[second][0] - spans[first][1], first, second)
                for first, second in combinations(concurrent, 2)
                if not below[first] >> second & 1
            ),
            default=(-1, 0, 0),
        )
        if pause < 0:
            return None
        edges.append((before, after))
        gained = below[after] | 1 << after
        for segment in range(before + 1):
            if segment == before or below[segment] >> before & 1:
                below[segment] |= gained


def largest_concurrent_set(plan: PlanLike, peaks: Sequence[int], below: Sequence[int]) -> tuple[int, ...]:
    """The segments whose peaks add up to the bound of `peak_of_schedule`, the largest first.

    Args:
        plan: gives widths, lanes and cores.
        peaks: as in `least_budget`.
        below: per segment a bit set of those that depend on it.
    """
    segments = plan.segments
    by_size = sorted(range(len(segments)), key=lambda segment: (-peaks[segment], segment))
    queues = len({segment.lane for segment in segments if not segment.width})  # of devices: they take no core
    best: list[int] = []
    bound = 0
    for position, segment in enumerate(by_size):
        if peaks[segment] * plan.lanes <= bound:
            break  # all that follow are no larger
        concurrent = [segment]
        room = min(plan.lanes, 1 + max(0, plan.cores - segments[segment].width) + queues) - 1
        for other in by_size[position + 1 :]:
            if not room or not peaks[other]:
                break
            if not (below[segment] >> other & 1 or below[other] >> segment & 1):
                concurrent.append(other)
                room -= 1
        total = sum([peaks[other] for other in concurrent])
        if total > bound:
            bound, best = total, concurrent
    return tuple(best)


def _usable(budget_bytes: int, margin: float) -> int:
    return math.floor(budget_bytes * (1 - margin))


def _check_margin(margin: float) -> None:
    if not 0 <= margin < 1:
        raise ConfigError(f"a margin of {margin!r}", where="margin", fix="give a share from 0 to below 1")
