"""The judge of region plans, written apart from what makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.errors import InternalError
from parallax.graph import OpGraph, Verdict
from parallax.partition.regions._costs import build_problem, copied_constants
from parallax.partition.regions._plan import DeviceCosts, RegionPlan
from parallax.partition.regions._problem import cost_of

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups


def verify_regions(graph: OpGraph, groups: FusionGroups, device_costs: DeviceCosts, plan: RegionPlan) -> None:
    """Check a region plan against the graph and the device's costs alone. O(V + E).

    Raises: InternalError unless every region holds only what the device takes, no group is in two of them, the
        contracted graph is acyclic and its order topological, the verdicts agree, and the costs are what adding
        everything up anew gives.
    """
    region_of: dict[int, int] = {}
    copied = copied_constants(graph, groups)
    for region in plan.regions:
        for group in region.groups:
            if group in region_of:
                raise InternalError(f"group {group} is in regions {region_of[group]} and {region.index}")
            region_of[group] = region.index
            for node in groups.members[group]:
                declined = device_costs.declined[node]
                if declined is not None and node not in copied:
                    raise InternalError(
                        f"region {region.index} holds a node that {device_costs.device!r} declines: {declined.detail}",
                        where=graph.nodes[node].name,
                    )
    seen: set[int] = set()
    for cluster, members in enumerate(plan.clusters):
        if not members or any(plan.cluster_of[group] != cluster for group in members) or seen.intersection(members):
            raise InternalError(f"cluster {cluster} is empty, or disagrees with cluster_of: {members}")
        seen.update(members)
        regions_here = {region_of.get(group) for group in members}
        if len(regions_here) != 1 or (None in regions_here and len(members) > 1):
            raise InternalError(f"cluster {cluster} is neither one region nor one group of the host")
    if len(seen) != len(groups):
        raise InternalError(f"{len(groups) - len(seen)} groups are in no cluster")
    for index, cluster in enumerate(plan.region_clusters):
        if plan.clusters[cluster] != plan.regions[index].groups:
            raise InternalError(f"region {index} is not cluster {cluster}")
    edges: set[tuple[int, int]] = set()
    for head, preds in enumerate(groups.dag.predecessors):
        for tail in preds:
            before, after = plan.cluster_of[tail], plan.cluster_of[head]
            if before > after:
                raise InternalError(f"contracting regions closes a cycle: group {tail} -> {head} leads back")
            if before < after:
                edges.add((before, after))
    if edges != {(tail, head) for head, preds in enumerate(plan.dag.predecessors) for tail in preds}:
        raise InternalError("edges between clusters differ from the graph's")
    for verdict, judged in zip(plan.verdicts, graph.nodes, strict=True):
        group = groups.group_of[judged.index]
        taken = verdict.verdict is Verdict.TAKEN
        if taken != (group in region_of and judged.index not in copied) or (
            taken and verdict.region != region_of[group]
        ):
            raise InternalError(f"the verdict {verdict.verdict.name} disagrees with the regions", where=judged.name)
    problem = build_problem(graph, groups, device_costs)
    if plan.cpu_only_ns != sum(problem.cpu_ns):
        raise InternalError(f"{plan.cpu_only_ns} ns on the CPU alone, where the groups add up to {sum(problem.cpu_ns)}")
    cost = cost_of(problem, [region.groups for region in plan.regions])
    spent = sum(region.device_ns for region in plan.regions) + sum(
        ns for group, ns in enumerate(problem.cpu_ns) if group not in region_of
    )
    if not cost == spent == plan.chosen_ns:
        raise InternalError(f"the plan states {plan.chosen_ns} ns, its regions {spent} ns, and it costs {cost} ns")
