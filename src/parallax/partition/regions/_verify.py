"""The judge of region plans, written apart from what makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.errors import InternalError
from parallax.graph import OpGraph, Verdict
from parallax.partition.regions._costs import copied_constants, lay_ground
from parallax.partition.regions._ground import cost_of
from parallax.partition.regions._plan import Offer, RegionPlan

if TYPE_CHECKING:
    from parallax.partition._units import UnitGraph


def verify_regions(graph: OpGraph, units: UnitGraph, offer: Offer, plan: RegionPlan) -> None:
    """Judge of a region plan, from the graph and the offer alone. O(V + E).

    Raises: InternalError unless every region holds only what the device takes, no unit is in two of them, the
        contracted graph is acyclic and its order topological, the verdicts agree, and the costs are what adding
        everything up anew gives.
    """
    home: dict[int, int] = {}
    copied = copied_constants(graph, units)
    for region in plan.regions:
        for unit in region.units:
            if unit in home:
                raise InternalError(f"unit {unit} is in regions {home[unit]} and {region.index}")
            home[unit] = region.index
            for node in units.units[unit]:
                declined = offer.declined[node]
                if declined is not None and node not in copied:
                    raise InternalError(
                        f"region {region.index} holds a node that {offer.device!r} declines: {declined.detail}",
                        where=graph.nodes[node].name,
                    )
    seen: set[int] = set()
    for group, members in enumerate(plan.groups):
        if not members or any(plan.group_of[unit] != group for unit in members) or seen.intersection(members):
            raise InternalError(f"group {group} is empty, or disagrees with group_of: {members}")
        seen.update(members)
        regions_here = {home.get(unit) for unit in members}
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
        if taken != (unit in home and judged.index not in copied) or (taken and verdict.region != home[unit]):
            raise InternalError(f"the verdict {verdict.verdict.name} disagrees with the regions", where=judged.name)
    ground = lay_ground(graph, units, offer)
    if plan.cpu_only_ns != sum(ground.cpu_ns):
        raise InternalError(f"{plan.cpu_only_ns} ns on the CPU alone, where the units add up to {sum(ground.cpu_ns)}")
    cost = cost_of(ground, [region.units for region in plan.regions])
    spent = sum(region.device_ns for region in plan.regions) + sum(
        ns for unit, ns in enumerate(ground.cpu_ns) if unit not in home
    )
    if not cost == spent == plan.chosen_ns:
        raise InternalError(f"the plan states {plan.chosen_ns} ns, its regions {spent} ns, and it costs {cost} ns")
