"""The judge of region plans, written apart from what makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.errors import InternalError
from parallax.graph import OpGraph, Verdict
from parallax.partition.regions._costs import build_problem, copied_constants
from parallax.partition.regions._plan import DeviceCosts, RegionPlan
from parallax.partition.regions._problem import cost_of

if TYPE_CHECKING:
    from parallax.partition._units import UnitGraph


def verify_regions(graph: OpGraph, units: UnitGraph, device_costs: DeviceCosts, plan: RegionPlan) -> None:
    """Check a region plan against the graph and the device's costs alone. O(V + E).

    Raises: InternalError unless every region holds only what the device takes, no unit is in two of them, the
        contracted graph is acyclic and its order topological, the verdicts agree, and the costs are what adding
        everything up anew gives.
    """
    region_of: dict[int, int] = {}
    copied = copied_constants(graph, units)
    for region in plan.regions:
        for unit in region.units:
            if unit in region_of:
                raise InternalError(f"unit {unit} is in regions {region_of[unit]} and {region.index}")
            region_of[unit] = region.index
            for node in units.units[unit]:
                declined = device_costs.declined[node]
                if declined is not None and node not in copied:
                    raise InternalError(
                        f"region {region.index} holds a node that {device_costs.device!r} declines: {declined.detail}",
                        where=graph.nodes[node].name,
                    )
    seen: set[int] = set()
    for group, members in enumerate(plan.groups):
        if not members or any(plan.group_of[unit] != group for unit in members) or seen.intersection(members):
            raise InternalError(f"group {group} is empty, or disagrees with group_of: {members}")
        seen.update(members)
        regions_here = {region_of.get(unit) for unit in members}
        if len(regions_here) != 1 or (None in regions_here and len(members) > 1):
            raise InternalError(f"group {group} is neither one region nor one unit of the host")
    if len(seen) != len(units):
        raise InternalError(f"{len(units) - len(seen)} units are in no group")
    for index, group in enumerate(plan.region_groups):
        if plan.groups[group] != plan.regions[index].units:
            raise InternalError(f"region {index} is not group {group}")
    edges: set[tuple[int, int]] = set()
    for head, preds in enumerate(units.dag.predecessors):
        for tail in preds:
            before, after = plan.group_of[tail], plan.group_of[head]
            if before > after:
                raise InternalError(f"contracting regions closes a cycle: unit {tail} -> {head} leads back")
            if before < after:
                edges.add((before, after))
    if edges != {(tail, head) for head, preds in enumerate(plan.dag.predecessors) for tail in preds}:
        raise InternalError("edges between groups differ from the graph's")
    for verdict, judged in zip(plan.verdicts, graph.nodes, strict=True):
        unit = units.unit_of[judged.index]
        taken = verdict.verdict is Verdict.TAKEN
        if taken != (unit in region_of and judged.index not in copied) or (taken and verdict.region != region_of[unit]):
            raise InternalError(f"the verdict {verdict.verdict.name} disagrees with the regions", where=judged.name)
    problem = build_problem(graph, units, device_costs)
    if plan.cpu_only_ns != sum(problem.cpu_ns):
        raise InternalError(f"{plan.cpu_only_ns} ns on the CPU alone, where the units add up to {sum(problem.cpu_ns)}")
    cost = cost_of(problem, [region.units for region in plan.regions])
    spent = sum(region.device_ns for region in plan.regions) + sum(
        ns for unit, ns in enumerate(problem.cpu_ns) if unit not in region_of
    )
    if not cost == spent == plan.chosen_ns:
        raise InternalError(f"the plan states {plan.chosen_ns} ns, its regions {spent} ns, and it costs {cost} ns")
