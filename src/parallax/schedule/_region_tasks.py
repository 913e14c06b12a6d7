"""Tasks from a region plan: each region one on its device's queue, the rest of the graph in pieces on the CPU."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.graph import CostModel, UnionFind, Verdict
from parallax.partition import UnitGraph, find_branches
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
    units: tuple[tuple[int, ...], ...]
    """Units of each task, ascending."""
    region_of: tuple[int | None, ...]
    """The region each task is."""


def region_tasks(
    units: UnitGraph,
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
        (width, units.unit_costs([0 if node in folded else ns for node, ns in enumerate(costs.node_ns(width))]))
        for width in widths
    ]
    part_of = _branches(units, plan) if granularity is Granularity.BRANCHES else _coarse_parts(plan)
    parts: list[list[int]] = [[] for _ in range(max(part_of, default=-1) + 1)]
    for group, part in enumerate(part_of):
        parts[part].append(group)
    between = plan.dag.quotient(part_of, len(parts))
    region_at = {group: index for index, group in enumerate(plan.region_groups)}
    tasks: list[Task] = []
    members: list[tuple[int, ...]] = []
    crossing_ns = [0] * len(parts)
    if crossings is not None:
        crossing_ns = crossings.of_parts([part_of[group] for group in plan.group_of], len(parts))
    wide_ns = wide_start_ns if len(parts) > 1 else 0
    region_of: list[int | None] = []
    for part, groups in enumerate(parts):
        inside = tuple(sorted(unit for group in groups for unit in plan.groups[group]))
        region = region_at.get(groups[0])
        cost = tuple(
            (width, sum([unit_ns[unit] for unit in inside]) + crossing_ns[part] + (wide_ns if width > 1 else 0))
            for width, unit_ns in by_width
        )
        if region is not None:
            queue = ((0, plan.regions[region].device_ns),)
            cost = queue + cost if allow_both else queue
        tasks.append(Task(index=part, predecessors=between.predecessors[part], cost_ns=cost))
        members.append(inside)
        region_of.append(region)
    return RegionTasks(tasks=tuple(tasks), units=tuple(members), region_of=tuple(region_of))


def _branches(units: UnitGraph, plan: RegionPlan) -> tuple[int, ...]:
    control_flow = {plan.group_of[unit] for unit in units.control_flow}
    return find_branches(plan.dag, control_flow=control_flow, regions=frozenset(plan.region_groups)).branch_of


def _coarse_parts(plan: RegionPlan) -> tuple[int, ...]:
    """Per group its part: groups of the host that edges connect and that stand alike to the device.

    Counted are the changes to the host on the way to a group (``ups``), and those to the device on the way from it
    (``downs``). Along an edge the one never falls and the other never rises, and an edge from or to the device
    changes one of them; so in the order of (ups, -downs, first group) every edge ascends, and parts are numbered in it.
    """
    dag = plan.dag
    is_region = [False] * len(dag)
    for group in plan.region_groups:
        is_region[group] = True
    ups: list[int] = []
    for group, preds in enumerate(dag.predecessors):
        ups.append(max((ups[pred] + (is_region[pred] and not is_region[group]) for pred in preds), default=0))
    downs = [0] * len(dag)
    for group in range(len(dag) - 1, -1, -1):
        for target in dag.successors[group]:
            downs[group] = max(downs[group], downs[target] + (is_region[target] and not is_region[group]))
    parts = UnionFind(len(dag))
    for group, preds in enumerate(dag.predecessors):
        for pred in preds:
            if is_region[group] or is_region[pred]:
                continue
            if ups[pred] == ups[group] and downs[pred] == downs[group]:
                parts.union(pred, group)
    leaders = [parts.find(group) for group in range(len(dag))]
    order = sorted(set(leaders), key=lambda group: (ups[group], -downs[group], group))
    number = {group: index for index, group in enumerate(order)}
    return tuple([number[group] for group in leaders])
