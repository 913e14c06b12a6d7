"""The judge of placements: it simulates whatever placers propose, and keeps the best.

The best is the quickest, unless another rank is given, such as modelled joules. Everything on the CPU is always among
them, so that the answer never ranks below that, whoever proposed. Placements are simulated by the dispatcher under a
virtual clock, each in the granularity that suits it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from parallax.partition.regions import RegionPlan, RegionRule, find_regions
from parallax.schedule._adaptive import AdaptivePolicy
from parallax.schedule._coarsen import coarsen
from parallax.schedule._region_tasks import Granularity, RegionTasks, region_tasks
from parallax.schedule._simulate import SimulatedRun, simulate
from parallax.schedule._tasks import Schedule
from parallax.schedule.placement._chain_dp import ChainDp
from parallax.schedule.placement._etf import EarliestFinish
from parallax.schedule.placement._placers import ByCost, Greedy, Heft, ShardRows, branches_of
from parallax.schedule.placement._problem import Placement, PlacementProblem, Placer
from parallax.schedule.placement._shared_regions import SharedRegions, find_shared_regions
from parallax.schedule.placement._stages import Stages

logger = logging.getLogger(__name__)

LOCAL_SEARCH_MOVES: Final = 64
"""How many branches are moved to another side, one by one; the bulk of the time goes there."""

_MOST_GROUPS_MOVED: Final = 400
"""Models of more fusion groups are placed without moving their branches one by one: opening must not wait for it."""

_JOINS: Final = 4
"""How often what follows each other is joined, at most; each time it is scheduled anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPlacement:
    """One way to share the work, simulated."""

    label: str
    """How it was proposed."""
    regions: SharedRegions
    ends_early: bool
    """As `Placement.ends_early`."""
    granularity: Granularity
    tasks: RegionTasks
    schedule: Schedule
    run: SimulatedRun

    @property
    def plan(self) -> RegionPlan:
        """Its regions, and a verdict per node."""
        return self.regions.plan

    @property
    def makespan_ns(self) -> int:
        """The predicted time of a run."""
        return self.run.makespan_ns


Rank = Callable[[JudgedPlacement], tuple[float, ...]]
"""Of two placements the one of the lesser rank is the better."""


def quickest(judged: JudgedPlacement) -> tuple[float, ...]:
    """The rank by predicted time."""
    return (judged.makespan_ns,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coexecution:
    """The best placement found, and what it was compared with. Times are simulated."""

    best: JudgedPlacement
    cpu_only_ns: int
    """Everything on the CPU, one node after the other on all cores."""
    greedy_ns: int
    """Every supported fragment on the device (the best of them), one thing after the other."""
    tried: tuple[tuple[str, int], ...]
    """(label, makespan) of every placement simulated, in order."""


@runtime_checkable
class Improver(Protocol):
    """A placer that starts from the best that others found."""

    def improve(self, problem: PlacementProblem, judge: Judge) -> Iterable[Placement]:
        """Placements better than ``judge.best``, as far as it finds any."""
        ...


def default_placers(groups: int, *, moves: int | None = None) -> tuple[Placer, ...]:
    """Those of the policy "adaptive" for a model of so many fusion groups, in order.

    What moves branches comes before the last three: moves from a better start may end worse, and take longest.

    Args:
        moves: of branches, at most; by default 64, and none for large models.
    """
    if moves is None:
        moves = LOCAL_SEARCH_MOVES if groups <= _MOST_GROUPS_MOVED else 0
    return (ByCost(), Greedy(), Heft(), ShardRows(), LocalSearch(moves), EarliestFinish(), ChainDp(), Stages())


def find_placement(problem: PlacementProblem, placers: Sequence[Placer], *, rank: Rank = quickest) -> Coexecution:
    """The best of what the placers propose for a problem, and of everything on the CPU.

    Raises:
        ConfigError: costs are for another graph, or a placer proposes what is no placement of this problem.
    """
    judge = Judge(problem, rank)
    for placer in placers:
        proposed = placer.improve(problem, judge) if isinstance(placer, Improver) else placer.propose(problem)
        for placement in proposed:
            judge.consider(placement)
    greedy = [find_regions(problem.graph, problem.groups, device, rule=RegionRule.GREEDY) for device in problem.devices]
    return Coexecution(
        best=judge.best,
        cpu_only_ns=greedy[0].cpu_only_ns,
        greedy_ns=min(plan.chosen_ns for plan in greedy),
        tried=tuple(judge.tried),
    )


class Judge:
    """Placements simulated so far, and the best of them; to begin with, everything on the CPU.

    Args:
        rank: says which of two is the better; by default the quicker one.

    Attributes:
        rank: likewise.
        best: of those that were simulated with a good schedule.
        tried: (label, makespan) of each, in order.
    """

    def __init__(self, problem: PlacementProblem, rank: Rank = quickest) -> None:
        self._problem = problem
        self.rank = rank
        self.tried: list[tuple[str, int]] = []
        self._seen: set[frozenset[tuple[int, tuple[int, ...]]]] = set()
        nothing = find_shared_regions(problem, problem.cpu_only)
        assert nothing is not None  # without regions there is no circle
        self.best = self.simulated(problem.cpu_only, nothing)
        self._seen.add(nothing.key)

    def consider(self, placement: Placement) -> bool:
        """Simulate a placement (once); whether it is the best so far."""
        regions = self.new_regions(placement)
        if regions is None:
            return False
        found = self.simulated(placement, regions)
        if self.rank(found) >= self.rank(self.best):
            return False
        self.best = found
        return True

    def new_regions(self, placement: Placement) -> SharedRegions | None:
        """The regions of a placement; None where it was seen before, or cannot be the best, or cannot be run."""
        regions = find_shared_regions(self._problem, placement)
        if regions is None:
            logger.debug("placement %r is left out: its regions wait for each other", placement.label)
            return None
        if regions.key in self._seen:
            return None
        self._seen.add(regions.key)
        # Where a device alone takes longer than the best, nothing beside it can make that up in time.
        return None if self.rank is quickest and regions.busiest_ns >= self.best.makespan_ns else regions

    def keep(self, placement: Placement, regions: SharedRegions) -> None:
        """Simulate a placement with a good schedule, though it was seen, and keep it if it is the best so far."""
        found = self.simulated(placement, regions)
        if self.rank(found) < self.rank(self.best):
            self.best = found

    def simulated(self, placement: Placement, regions: SharedRegions) -> JudgedPlacement:
        """A placement with a good schedule, in the granularity that suits it, and what follows each other joined."""
        found = [self.scheduled(placement, regions, granularity, thorough=True) for granularity in Granularity]
        best = min(found, key=self.rank)
        for _ in range(_JOINS):
            made, schedule = coarsen(best.tasks, best.schedule, best.run)
            if len(made.tasks) == len(best.tasks.tasks):
                break
            joined = self._run(placement, regions, best.granularity, made, schedule)
            anew = self.scheduled(placement, regions, best.granularity, thorough=True, made=made)
            joined = min(joined, anew, key=self.rank)
            if self.rank(joined) > self.rank(best):
                break
            best = joined
        return best

    def scheduled(
        self,
        placement: Placement,
        regions: SharedRegions,
        granularity: Granularity,
        *,
        thorough: bool,
        made: RegionTasks | None = None,
    ) -> JudgedPlacement:
        """A placement simulated in one granularity. ``thorough``: with a search for good widths."""
        problem, machine = self._problem, self._problem.machine
        if made is None:
            made = region_tasks(
                problem.groups,
                regions.plan,
                problem.costs,
                widths=problem.widths,
                granularity=granularity,
                crossings=problem.crossings,
                wide_start_ns=machine.wide_start_ns,
            )
        used = sorted(set(regions.device_of))
        policy = AdaptivePolicy(
            queues={
                index: used.index(regions.device_of[region])
                for index, region in enumerate(made.region_of)
                if region is not None
            },
            handover_ns=machine.handover_ns,
            segment_overhead_ns=self._overhead_ns(made),
            contention=machine.contention,
            simulated_segments=6 * len(made.tasks) if thorough else 0,
        )
        schedule = policy.assign(made.tasks, cores=machine.cores, lanes=machine.cores + len(used))
        return self._run(placement, regions, granularity, made, schedule)

    def _run(
        self,
        placement: Placement,
        regions: SharedRegions,
        granularity: Granularity,
        made: RegionTasks,
        schedule: Schedule,
    ) -> JudgedPlacement:
        machine = self._problem.machine
        run = simulate(
            made.tasks,
            schedule,
            handover_ns=machine.handover_ns,
            segment_overhead_ns=self._overhead_ns(made),
            contention=machine.contention,
        )
        self.tried.append((placement.label, run.makespan_ns))
        return JudgedPlacement(
            label=placement.label,
            regions=regions,
            ends_early=placement.ends_early,
            granularity=granularity,
            tasks=made,
            schedule=schedule,
            run=run,
        )

    def _overhead_ns(self, made: RegionTasks) -> int:
        """A model in one piece is the runtime's own run, without anything of ours around it."""
        return self._problem.machine.segment_overhead_ns if len(made.tasks) > 1 else 0


class LocalSearch:
    """Moves branches of the best placement to another side, the longest first, as long as that helps.

    Args:
        moves: bound on the branches that are tried one by one.
    """

    def __init__(self, moves: int = LOCAL_SEARCH_MOVES) -> None:
        self._moves = moves

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """What it finds from the best of the placements by cost."""
        judge = Judge(problem)
        for placement in ByCost().propose(problem):
            judge.consider(placement)
        yield from self.improve(problem, judge)

    def improve(self, problem: PlacementProblem, judge: Judge) -> Iterator[Placement]:
        """What it finds from the best so far: nothing, or one placement that is kept by the judge itself."""
        cpu, takes = problem.cpu_ns, problem.takes
        sides = [tuple(device for device, taken in enumerate(takes) if taken[group]) for group in range(len(cpu))]
        branches = [
            inside
            for inside in branches_of(problem, sides.__getitem__)
            if sides[inside[0]] and sum(cpu[group] for group in inside) > 0
        ]
        branches.sort(key=lambda inside: -sum(cpu[group] for group in inside))
        label = f"{judge.best.label} + moves"
        ends_early = judge.best.ends_early
        start = Placement(label=label, devices=tuple(judge.best.regions.placed(len(cpu))))
        # Moves are judged among themselves, by a rough schedule; what they lead to gets a good one.
        rough = judge.scheduled(start, judge.best.regions, judge.best.granularity, thorough=False)
        left = self._moves
        improved = True
        while improved and left > 0:
            improved = False
            for inside in branches:
                placed = rough.regions.placed(len(cpu))
                for moved in _moves(placed, inside, sides[inside[0]]):
                    for cuts in dict.fromkeys((ends_early, True)):
                        if left <= 0:
                            break
                        left -= 1
                        placement = Placement(label=label, devices=moved, ends_early=cuts)
                        regions = judge.new_regions(placement)
                        if regions is None:
                            continue
                        found = judge.scheduled(placement, regions, rough.granularity, thorough=False)
                        if judge.rank(found) < judge.rank(rough):
                            rough, ends_early, improved = found, cuts, True
        judge.keep(Placement(label=label, devices=start.devices, ends_early=ends_early), rough.regions)
        yield from ()


def _moves(
    placed: Sequence[int | None], inside: Sequence[int], sides: Sequence[int]
) -> Iterator[tuple[int | None, ...]]:
    """A branch on each other side: on each device that takes it, and on the CPU where a device has all of it."""
    here = {placed[group] for group in inside}
    for device in (*sides, *((None,) if len(here) == 1 and here != {None} else ())):
        if here == {device}:
            continue
        moved = list(placed)
        for group in inside:
            moved[group] = device
        yield tuple(moved)
