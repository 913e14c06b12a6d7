"""Tasks from a region plan: each region one on its device's queue, the rest of the graph in pieces on the CPU."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.graph import CostModel, UnionFind, Verdict
from parallax.partition import FusionGroups, find_branches
from parallax.partition.regions import RegionPlan
from parallax.schedule._crossings import Crossings
from parallax.schedule._tasks import Task


class Granularity(enum.Enum):
    """How finely the CPU's part is divided."""

    BRANCHES = "branches"
    """The branches of the graph in which each region is one node: all the parallelism there is."""
    COARSE = "stretches"
    """As much as can run together with neither side waiting for the other in between: few segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTasks:
    """What runs where, as tasks for a policy: width 0 is the device's queue."""

    tasks: tuple[Task, ...]
    groups: tuple[tuple[int, ...], ...]
    """Fusion groups of each task, ascending."""
    region_of: tuple[int | None, ...]
    """The region each task is."""


def region_tasks(
    groups: FusionGroups,
    plan: RegionPlan,
    costs: CostModel,
    *,
    widths: Sequence[int],
    granularity: Granularity = Granularity.BRANCHES,
    allow_both: bool = False,
    crossings: Crossings | None = None,
    wide_start_ns: int = 0,
) -> RegionTasks:
    """Make the tasks, in a topological order. O(V log V + E), for each width.

    A region's time on the queue has its launch and its transfers in it; a part of the CPU's is the sum of its
    nodes', without those that are computed when the model is loaded.

    Args:
        widths: of the CPU to give costs for, ascending from 1.
        allow_both: let a policy run regions on the CPU instead.
        crossings: what parts of the CPU's pay for tensors from and to other parts; None: nothing.
        wide_start_ns: what a part takes longer on several threads, which it must wake, unless there is only one part.

    Raises: ConfigError if ``widths`` does not ascend from 1.
    """
    if not widths or list(widths) != sorted(set(widths)) or widths[0] != 1:
        raise ConfigError(f"widths {tuple(widths)}", fix="give widths that ascend from 1")
    folded = {verdict.node for verdict in plan.verdicts if verdict.verdict is Verdict.FOLDED}
    by_width = [
        (width, groups.group_costs([0 if node in folded else ns for node, ns in enumerate(costs.node_ns(width))]))
        for width in widths
    ]
    part_of = _branches(groups, plan) if granularity is Granularity.BRANCHES else _coarse_parts(plan)
    parts: list[list[int]] = [[] for _ in range(max(part_of, default=-1) + 1)]
    for cluster, part in enumerate(part_of):
        parts[part].append(cluster)
    between = plan.dag.quotient(part_of, len(parts))
    region_at = {cluster: index for index, cluster in enumerate(plan.region_clusters)}
    tasks: list[Task] = []
    members: list[tuple[int, ...]] = []
    crossing_ns = [0] * len(parts)
    if crossings is not None:
        crossing_ns = crossings.of_parts([part_of[cluster] for cluster in plan.cluster_of], len(parts))
    wide_ns = wide_start_ns if len(parts) > 1 else 0
    region_of: list[int | None] = []
    for part, clusters in enumerate(parts):
        inside = tuple(sorted(group for cluster in clusters for group in plan.clusters[cluster]))
        region = region_at.get(clusters[0])
        cost = tuple(
            (width, sum([group_ns[group] for group in inside]) + crossing_ns[part] + (wide_ns if width > 1 else 0))
            for width, group_ns in by_width
        )
        if region is not None:
            queue = ((0, plan.regions[region].device_ns),)
            cost = queue + cost if allow_both else queue
        tasks.append(Task(index=part, predecessors=between.predecessors[part], cost_ns=cost))
        members.append(inside)
        region_of.append(region)
    return RegionTasks(tasks=tuple(tasks), groups=tuple(members), region_of=tuple(region_of))


def _branches(groups: FusionGroups, plan: RegionPlan) -> tuple[int, ...]:
    control_flow = {plan.cluster_of[group] for group in groups.control_flow}
    return find_branches(plan.dag, control_flow=control_flow, regions=frozenset(plan.region_clusters)).branch_of


def _coarse_parts(plan: RegionPlan) -> tuple[int, ...]:
    """Per cluster its part: clusters of the host that edges connect and that stand alike to the device.

    Counted are the changes to the host on the way to a cluster (``ups``), and those to the device on the way from it
    (``downs``). Along an edge the one never falls and the other never rises, and an edge from or to the device
    changes one of them; so in the order of (ups, -downs, first cluster) every edge ascends, and parts are numbered so.
    """
    dag = plan.dag
    is_region = [False] * len(dag)
    for cluster in plan.region_clusters:
        is_region[cluster] = True
    ups: list[int] = []
    for cluster, preds in enumerate(dag.predecessors):
        ups.append(max((ups[pred] + (is_region[pred] and not is_region[cluster]) for pred in preds), default=0))
    downs = [0] * len(dag)
    for cluster in range(len(dag) - 1, -1, -1):
        for target in dag.successors[cluster]:
            downs[cluster] = max(downs[cluster], downs[target] + (is_region[target] and not is_region[cluster]))
    parts = UnionFind(len(dag))
    for cluster, preds in enumerate(dag.predecessors):
        for pred in preds:
            if is_region[cluster] or is_region[pred]:
                continue
            if ups[pred] == ups[cluster] and downs[pred] == downs[cluster]:
                parts.union(pred, cluster)
    leaders = [parts.find(cluster) for cluster in range(len(dag))]
    order = sorted(set(leaders), key=lambda cluster: (ups[cluster], -downs[cluster], cluster))
    number = {cluster: index for index, cluster in enumerate(order)}
    return tuple([number[cluster] for cluster in leaders])
