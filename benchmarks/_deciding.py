"""Decisions about a placement problem: after how long each is made, and what a run then takes.

Times until a decision are those of the one thread that decides, as the system counts them: wall time on a core that
nobody else uses, and hardly longer on one that is shared. What a run then takes is simulated, outside of that time.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from parallax.schedule.placement import Placement, PlacementProblem, descend
from parallax.schedule.placement._judge import Judge
from parallax.schedule.placement._quick import QuickJudge
from parallax.schedule.placement._shared_regions import find_shared_regions

BUDGETS_MS: Final = (0.3, 1, 3, 10, 30, 100)
LONGEST_S: Final = max(BUDGETS_MS) / 1e3
REPEATS: Final = 3
"""How often what fits into the longest budget is timed; the least time counts, since other work only adds to it."""

_ORDERS: Final = 1000
"""Orders of the pieces that a descent tries at most, one after the other, until its time is over."""

clock_s = time.thread_time
"""Seconds of this thread."""

Propose = Callable[[PlacementProblem], Iterable[Placement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided from a moment on."""

    after_s: float
    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decision, and what a run takes by it."""

    after_s: float
    takes_ns: int


class Simulated:
    """What placements of one problem take by the simulator, each set of regions simulated once."""

    def __init__(self, problem: PlacementProblem) -> None:
        self._problem = problem
        self._judge = Judge(problem)
        self._known: dict[frozenset[tuple[int, tuple[int, ...]]], int] = {}

    def ns(self, placement: Placement) -> int:
        """With the widths, the order and the granularity that suit it."""
        regions = find_shared_regions(self._problem, placement)
        if regions is None:
            raise ValueError(f"{placement.label}: its regions wait for each other")
        if regions.key not in self._known:
            before = len(self._judge.tried)
            self._judge.keep(placement, regions)
            self._known[regions.key] = min(ns for _, ns in self._judge.tried[before:])
        return self._known[regions.key]

    def answers(self, decisions: Iterable[Decision]) -> list[Answer]:
        return [Answer(after_s=made.after_s, takes_ns=self.ns(made.placement)) for made in decisions]


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected inside: it would be the rubbish of others that a decision waits for."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def make_ready(problem: PlacementProblem) -> float:
    """Compute what all proposers look up (costs per fusion group, what moves, zeros). Returns: seconds."""
    began = clock_s()
    for _ in (problem.features, problem.takes, problem.flows, problem.below_ns, problem.above_ns, problem.sparsity):
        pass
    _ = problem.crossings, problem.folded
    return clock_s() - began


def sides_of(problem: PlacementProblem) -> tuple[Placement, Placement]:
    """The CPU alone, and all that the first device takes on it."""
    return problem.cpu_only, Placement.on_device(problem, "all on the device", range(len(problem.groups)))


def better_side(problem: PlacementProblem) -> Placement:
    """Whichever of `sides_of` has the smaller sum of costs."""
    here, there = 0, problem.devices[0].launch_ns
    for features in problem.features:
        here += features.cpu_ns
        there += features.cpu_ns if features.device_ns[0] is None else features.device_ns[0]
    cpu, device = sides_of(problem)
    return cpu if here <= there else device


def choose(problem: PlacementProblem, propose: Propose) -> Placement:
    """The best, by the quick judge, of several proposals and of the CPU alone, which the judge of sessions always has
    too. A single one as it is, whatever it is worth; the CPU alone where there is none.
    """
    proposed = list(propose(problem))
    if len(proposed) <= 1:
        return proposed[0] if proposed else problem.cpu_only
    proposed.append(problem.cpu_only)
    judge = QuickJudge(problem, proposed)
    costs = [judge.cost_ns(judge.pieces.sides(made), ends_early=made.ends_early) for made in proposed]
    return proposed[costs.index(min(costs))]


def decide(problem: PlacementProblem, propose: Propose) -> list[Decision]:
    """One decision, timed; see `choose`."""
    times = []
    placement = problem.cpu_only
    for _ in range(REPEATS):
        began = clock_s()
        placement = choose(problem, propose)
        times.append(clock_s() - began)
        if times[-1] > LONGEST_S:
            break
    return [Decision(after_s=min(times), placement=placement)]


def search(problem: PlacementProblem, propose: Propose, *, limit_s: float = LONGEST_S) -> list[Decision]:
    """Coordinate descent from the best of what is proposed and of either side alone, until time is over.

    It moves by the quick judge, in one order of the pieces after the other. All that it decides was judged before.
    """
    runs = [_searched(problem, propose, limit_s) for _ in range(REPEATS)]
    # A descent finds the same things in the same order each time, some runs further than others.
    longest = max(runs, key=len)
    times = [min(run[place].after_s for run in runs if place < len(run)) for place in range(len(longest))]
    return [Decision(after_s=after_s, placement=made.placement) for after_s, made in zip(times, longest, strict=True)]


def within(answers: Sequence[Answer], seconds: float | None) -> int | None:
    """What a run takes by the last decision of these made in time (None: whenever it is made), or None."""
    made = [answer for answer in answers if seconds is None or answer.after_s <= seconds]
    return made[-1].takes_ns if made else None


def last_within(decisions: Sequence[Decision], budgets_s: Iterable[float]) -> list[Decision]:
    """Only those of ascending decisions that are the last within some budget, and the last of all."""
    kept = {len(decisions) - 1} if decisions else set()
    for budget_s in budgets_s:
        made = [place for place, decision in enumerate(decisions) if decision.after_s <= budget_s]
        kept.update(made[-1:])
    return [decisions[place] for place in sorted(kept)]


class _OutOfTime(Exception):
    """Ends a search."""


class _Watched(QuickJudge):
    """A quick judge that notes what is better than all before, and when; and stops a search whose time is over."""

    def __init__(self, problem: PlacementProblem, starts: Sequence[Placement], until_s: float) -> None:
        super().__init__(problem, starts)
        self.noted: list[tuple[float, tuple[int, ...], bool]] = []
        self._until_s = until_s
        self._best_ns = 1 << 62

    def cost_ns(self, sides: Sequence[int], *, ends_early: bool = False, bound_ns: int = 1 << 62) -> int:
        if clock_s() > self._until_s:
            raise _OutOfTime
        found = super().cost_ns(sides, ends_early=ends_early, bound_ns=bound_ns)
        if found < min(self._best_ns, bound_ns):
            self._best_ns = found
            self.noted.append((clock_s(), tuple(sides), ends_early))
        return found


def _searched(problem: PlacementProblem, propose: Propose, limit_s: float) -> list[Decision]:
    began = clock_s()
    starts = [*sides_of(problem), *propose(problem)]
    judge = _Watched(problem, starts, began + limit_s)
    try:
        for start in starts:
            judge.cost_ns(judge.pieces.sides(start), ends_early=start.ends_early)
        _, best, _ = judge.noted[-1]
        for seed, early in itertools.product(range(_ORDERS), (False, True)):
            descend(judge, list(best), ends_early=early, seed=seed, allowed=1 << 62)
    except _OutOfTime:
        pass
    return [
        Decision(after_s=at - began, placement=judge.pieces.placement(moved, "descent", ends_early=early))
        for at, moved, early in judge.noted
    ]
