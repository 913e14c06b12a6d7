"""Placements by simulation: what of a graph to give to a device so that processor and device end soonest together.

`find_regions` asks what a region costs in sequence. Beside other work another question counts: a region that takes
the device twice as long as the processor is a gain where the processor is busy, and one that it runs twice as fast is
better left where the device is the bottleneck. So placements are proposed in several ways and judged by the dispatcher
under a virtual clock; everything on the CPU is one of them, so that the answer is never predicted to be slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from parallax.errors import ConfigError
from parallax.graph import CostModel, OpGraph, Verdict, bottom_levels, tensor_bytes, top_levels
from parallax.partition import (
    Offer,
    RegionPlacer,
    RegionPlan,
    RegionRule,
    UnitGraph,
    find_branches,
    find_regions,
)
from parallax.schedule._adaptive import AdaptivePolicy
from parallax.schedule._coarsen import coarsen
from parallax.schedule._crossings import Crossings
from parallax.schedule._heft import HeftPolicy
from parallax.schedule._plan import Schedule, Task
from parallax.schedule._region_tasks import Grain, RegionTasks, region_tasks
from parallax.schedule._simulate import SimulatedRun, simulate

_EAGERNESS: Final = (1.0, 1.5, 2.5)
"""How dear the processor's time is taken to be, against the device's."""

_JOINS: Final = 4
"""How often what follows each other is joined, at most; each time it is scheduled anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What placements are simulated on."""

    cores: int
    handover_ns: int = 0
    segment_overhead_ns: int = 0
    wide_start_ns: int = 0
    """What a segment takes longer on several threads, as it must wake them."""
    crossing_ns_per_byte: float = 0.0
    """What either side of a cut pays for a tensor that goes through it, see `Crossings`."""
    contention: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to share the work, simulated."""

    label: str
    """How it was proposed."""
    plan: RegionPlan
    grain: Grain
    tasks: RegionTasks
    schedule: Schedule
    run: SimulatedRun

    @property
    def makespan_ns(self) -> int:
        """The predicted time of a run."""
        return self.run.makespan_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Coexecution:
    """The best placement found, and what it was compared with. Times are simulated."""

    best: Placement
    cpu_only_ns: int
    """Everything on the CPU, one node after the other on all cores."""
    greedy_ns: int
    """Every supported fragment on the device, one thing after the other."""
    tried: tuple[tuple[str, int], ...]
    """(label, makespan) of every placement simulated, in order."""


def row_proposals(graph: OpGraph, units: UnitGraph, parts: tuple[Set[str], Set[str]]) -> dict[str, frozenset[int]]:
    """Placements that a model split by rows is made for, by label: either part alone on the device, as units.

    Args:
        parts: names of the nodes of either part.
    """
    first, others = (
        frozenset(
            unit for unit, nodes in enumerate(units.units) if any(graph.nodes[node].name in part for node in nodes)
        )
        for part in parts
    )
    return {"first rows": first, "all but the last rows": frozenset(range(len(units))) - others}


def plan_coexecution(
    graph: OpGraph,
    units: UnitGraph,
    offer: Offer,
    costs: CostModel,
    machine: Machine,
    *,
    flips: int = 64,
    proposals: Mapping[str, Set[int]] | None = None,
) -> Coexecution:
    """Search placements of ``graph`` on one device beside the processor.

    Proposed are: the CPU alone; the regions that pay in sequence, with the processor's time taken to be worth
    once or several times the device's, joined or not; all that is supported; HEFT over single branches. The
    best is then improved branch by branch, longest first, as long as flipping one to the other side helps.

    Args:
        offer: its ``cpu_ns`` are those of the widest width.
        flips: bound on the branches that are tried one by one; the bulk of the time goes there.
        proposals: placements of the caller's, by label: the units wanted on the device.

    Raises: ConfigError as `find_regions`, or if the machine has no core.
    """
    if machine.cores < 1:
        raise ConfigError(f"a machine of {machine.cores} cores", fix="give at least 1")
    search = _Search(graph, units, offer, costs, machine)
    search.propose_by_cost()
    search.propose_by_heft()
    for label, wanted in (proposals or {}).items():
        for cuts in (False, True):
            search.consider_units(f"{label}{', cut early' if cuts else ''}", wanted, cuts=cuts)
    search.improve(flips)
    greedy = find_regions(graph, units, offer, rule=RegionRule.GREEDY)
    return Coexecution(
        best=search.best, cpu_only_ns=greedy.cpu_only_ns, greedy_ns=greedy.chosen_ns, tried=tuple(search.tried)
    )


class _Search:
    """Placements tried so far, and the best of them."""

    def __init__(self, graph: OpGraph, units: UnitGraph, offer: Offer, costs: CostModel, machine: Machine) -> None:
        self.graph = graph
        self.units = units
        self.offer = offer
        self.costs = costs
        self.machine = machine
        self.widths = _widths(machine.cores)
        self.crossings = Crossings(graph, units, machine.crossing_ns_per_byte)
        self.tried: list[tuple[str, int]] = []
        self.seen: set[frozenset[tuple[int, ...]]] = set()
        self.placer = RegionPlacer(graph, units, offer)
        self.takes = self.placer.takes
        nothing = self.placer.place()
        self.folded = {found.node for found in nothing.verdicts if found.verdict is Verdict.FOLDED}
        self.cpu = self._unit_costs(offer.cpu_ns)
        self.below = bottom_levels(units.dag.predecessors, self.cpu)
        self.above = top_levels(units.dag.predecessors, self.cpu)
        self.cuts = False
        """Whether the best placement ends its regions where the processor goes on."""
        self.best = self._simulated("CPU only", nothing)
        self.seen.add(frozenset())

    def consider(self, label: str, plan: RegionPlan) -> bool:
        """Simulate a placement (once); whether it is the best so far."""
        if not self._is_new(plan):
            return False
        found = self._simulated(label, plan)
        if found.makespan_ns >= self.best.makespan_ns:
            return False
        self.best = found
        return True

    def consider_units(self, label: str, on_device: Set[int], *, cuts: bool) -> None:
        """Simulate a placement of units, see `placed`."""
        if self.consider(label, self.placed(on_device, cuts=cuts)):
            self.cuts = cuts

    def placed(self, on_device: Set[int], *, cuts: bool) -> RegionPlan:
        """A placement of units, with regions as long as can be, or ending where the processor begins and comes back."""
        after: set[int] = set()
        before: set[int] = set()
        if cuts:
            dag, launch_ns = self.units.dag, self.offer.launch_ns
            for unit in on_device:
                if any(other not in on_device and self.below[other] > launch_ns for other in dag.successors[unit]):
                    after.add(unit)
                if any(other not in on_device and self.above[other] > launch_ns for other in dag.predecessors[unit]):
                    before.add(unit)
        return self.placer.place(on_device, cut_after=after, cut_before=before)

    def _is_new(self, plan: RegionPlan) -> bool:
        key = frozenset(region.units for region in plan.regions)
        if key in self.seen:
            return False
        self.seen.add(key)
        # Where the device alone takes longer than the best, nothing beside it can help.
        return sum(region.device_ns for region in plan.regions) < self.best.makespan_ns

    def propose_by_cost(self) -> None:
        """What pays in sequence, for several prices of the processor's time; and everything."""
        for eagerness in _EAGERNESS:
            cpu_ns = tuple(round(ns * eagerness) for ns in self.offer.cpu_ns)
            offer = dataclasses.replace(self.offer, cpu_ns=cpu_ns)
            chosen: set[int] = set()
            for joined in (False, True):
                plan = find_regions(self.graph, self.units, offer, join_siblings=joined)
                label = f"regions by cost x{eagerness:g}{', joined' if joined else ''}"
                if self.consider(label, self._at_cost(plan)):
                    self.cuts = False
                chosen.update(unit for region in plan.regions for unit in region.units)
            self.consider_units(f"regions by cost x{eagerness:g}, cut early", chosen, cuts=True)
        if self.consider("all supported", find_regions(self.graph, self.units, self.offer, rule=RegionRule.GREEDY)):
            self.cuts = False

    def propose_by_heft(self) -> None:
        """Branch by branch where it would end first; launches are paid per branch, or not at all, as they merge."""
        for launch_ns in (self.offer.launch_ns, 0):
            for cpu_width in dict.fromkeys((None, 1, max(1, self.machine.cores // 2))):
                tasks, transfers, branches = self._branch_tasks(launch_ns)
                policy = HeftPolicy(cpu_width=cpu_width, transfer_ns=transfers)
                schedule = policy.assign(tasks, cores=self.machine.cores, lanes=self.machine.cores + 1)
                chosen = {
                    unit
                    for branch, assignment in zip(branches, schedule.assignments, strict=True)
                    if assignment.width == 0
                    for unit in branch
                }
                label = f"HEFT, {'one lane' if cpu_width is None else f'lanes of {cpu_width}'}, launch {launch_ns} ns"
                for cuts in (False, True):
                    self.consider_units(f"{label}{', cut early' if cuts else ''}", chosen, cuts=cuts)

    def improve(self, flips: int) -> None:
        """Flip branches to the other side, the longest first, while that helps and the bound allows."""
        cpu = self.cpu
        branches = [
            inside
            for inside in self._branches()
            if any(self.takes[unit] for unit in inside) and sum(cpu[unit] for unit in inside) > 0
        ]
        branches.sort(key=lambda inside: -sum(cpu[unit] for unit in inside))
        label = f"{self.best.label} + flips"
        # Flips are judged among themselves, by a rough schedule; what they lead to gets a good one.
        rough = self._scheduled(label, self.best.plan, self.best.grain, thorough=False)
        left = flips
        improved = True
        while improved and left > 0:
            improved = False
            for inside in branches:
                on_device = {unit for region in rough.plan.regions for unit in region.units}
                flipped = on_device - set(inside) if on_device.issuperset(inside) else on_device | set(inside)
                for cuts in dict.fromkeys((self.cuts, True)):
                    if left <= 0:
                        break
                    left -= 1
                    plan = self.placed(flipped, cuts=cuts)
                    if not self._is_new(plan):
                        continue
                    found = self._scheduled(label, plan, rough.grain, thorough=False)
                    if found.makespan_ns < rough.makespan_ns:
                        rough, self.cuts, improved = found, cuts, True
        found = self._simulated(label, rough.plan)
        if found.makespan_ns < self.best.makespan_ns:
            self.best = found

    def _at_cost(self, plan: RegionPlan) -> RegionPlan:
        """The same regions with true figures, where they were found with others."""
        return self.placer.place(regions=[region.units for region in plan.regions])

    def _simulated(self, label: str, plan: RegionPlan) -> Placement:
        """A placement with a good schedule, in the grain that suits it, and what follows each other joined."""
        found = [self._scheduled(label, plan, grain, thorough=True) for grain in Grain]
        best = min(found, key=lambda placement: placement.makespan_ns)
        for _ in range(_JOINS):
            made, schedule = coarsen(best.tasks, best.schedule, best.run)
            if len(made.tasks) == len(best.tasks.tasks):
                break
            joined = self._run(label, plan, best.grain, made, schedule)
            anew = self._scheduled(label, plan, best.grain, thorough=True, made=made)
            joined = min(joined, anew, key=lambda placement: placement.makespan_ns)
            if joined.makespan_ns > best.makespan_ns:
                break
            best = joined
        return best

    def _scheduled(
        self, label: str, plan: RegionPlan, grain: Grain, *, thorough: bool, made: RegionTasks | None = None
    ) -> Placement:
        machine = self.machine
        if made is None:
            made = region_tasks(
                self.units,
                plan,
                self.costs,
                widths=self.widths,
                grain=grain,
                crossings=self.crossings,
                wide_start_ns=machine.wide_start_ns,
            )
        policy = AdaptivePolicy(
            handover_ns=machine.handover_ns,
            segment_overhead_ns=self._overhead_ns(made),
            contention=machine.contention,
            simulated_segments=6 * len(made.tasks) if thorough else 0,
        )
        lanes = machine.cores + (1 if plan.regions else 0)
        schedule = policy.assign(made.tasks, cores=machine.cores, lanes=lanes)
        return self._run(label, plan, grain, made, schedule)

    def _run(self, label: str, plan: RegionPlan, grain: Grain, made: RegionTasks, schedule: Schedule) -> Placement:
        machine = self.machine
        run = simulate(
            made.tasks,
            schedule,
            handover_ns=machine.handover_ns,
            segment_overhead_ns=self._overhead_ns(made),
            contention=machine.contention,
        )
        self.tried.append((label, run.makespan_ns))
        return Placement(label=label, plan=plan, grain=grain, tasks=made, schedule=schedule, run=run)

    def _overhead_ns(self, made: RegionTasks) -> int:
        """A model in one piece is the runtime's own run, without anything of ours around it."""
        return self.machine.segment_overhead_ns if len(made.tasks) > 1 else 0

    def _unit_costs(self, node_ns: Sequence[int]) -> tuple[int, ...]:
        return self.units.unit_costs([0 if node in self.folded else ns for node, ns in enumerate(node_ns)])

    def _branches(self) -> list[tuple[int, ...]]:
        """Branches of the graph, cut where what the device takes begins and ends."""
        found = find_branches(self.units.dag, control_flow=self.units.control_flow)
        pieces: list[tuple[int, ...]] = []
        for branch in found.branches:
            pieces.extend(_runs(branch.nodes, self.takes.__getitem__))
        return pieces

    def _branch_tasks(self, launch_ns: int) -> tuple[list[Task], dict[tuple[int, int], int], list[tuple[int, ...]]]:
        branches = sorted(self._branches(), key=lambda inside: inside[0])
        task_of = {unit: index for index, inside in enumerate(branches) for unit in inside}
        device = self._unit_costs(self.offer.device_ns)
        by_width = {width: self._unit_costs(self.costs.node_ns(width)) for width in self.widths}
        graph, units = self.graph, self.units
        transfers: dict[tuple[int, int], int] = {}
        for home, names in enumerate(units.writes):
            for name in names:
                readers = {task_of[units.unit_of[node]] for node in graph.consumers[name]} - {task_of[home]}
                for reader in sorted(readers)[:1]:
                    edge = (task_of[home], reader)
                    transfers[edge] = transfers.get(edge, 0) + self.offer.transfer.ns(tensor_bytes(graph, name))
        tasks = []
        for index, inside in enumerate(branches):
            before = {task_of[pred] for unit in inside for pred in units.dag.predecessors[unit]} - {index}
            cost = tuple((width, sum(by_width[width][unit] for unit in inside)) for width in self.widths)
            if self.takes[inside[0]]:
                cost = ((0, sum(device[unit] for unit in inside) + launch_ns), *cost)
            tasks.append(Task(index=index, predecessors=tuple(sorted(before)), cost_ns=cost))
        return tasks, transfers, branches


def _widths(cores: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all of them: enough to choose from, and quick to simulate."""
    widths = {1, cores}
    step = 2
    while step < cores:
        widths.add(step)
        step *= 2
    return tuple(sorted(widths))


def _runs(members: Sequence[int], takes: Callable[[int], bool]) -> Iterator[tuple[int, ...]]:
    """Stretches of a chain that the device takes, and those it does not."""
    run: list[int] = []
    for unit in members:
        if run and takes(run[-1]) != takes(unit):
            yield tuple(run)
            run = []
        run.append(unit)
    if run:
        yield tuple(run)
