"""A placement run layer by layer, as the Parallax paper runs one: branches side by side as far as memory allows.

Every step waits for the whole step before it, which the engine's own plans never ask for. Steps are single CPU
segments, single regions, or the branches that one layer runs side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parallax.graph import OpGraph, node_flops, tensor_bytes
from parallax.memory import PeakTable
from parallax.partition import BranchLoad, find_branches
from parallax.partition.regions import RegionPlan
from parallax.schedule._plan import PAPER_POLICY
from parallax.schedule._region_tasks import RegionTasks
from parallax.schedule._simulate import SimulatedRun, simulate
from parallax.schedule._tasks import Assignment, Schedule, Task
from parallax.schedule.placement._paper import PaperPolicy
from parallax.schedule.placement._problem import PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredRun:
    """What runs in which step, scheduled and simulated."""

    tasks: RegionTasks
    """In the order of their steps; each task has all of the step before among its predecessors."""
    schedule: Schedule
    run: SimulatedRun
    reasons: tuple[str, ...]
    """Of each task, for people."""
    layers: int
    parallel_layers: int
    """Layers of which branches run side by side."""
    most_branches: int
    """That run side by side, at most."""
    left_out: int
    """Branches that their layer's rule would have run side by side, and for which there was no memory."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One task in the making."""

    groups: tuple[int, ...]
    region: int | None
    width: int
    reason: str


@dataclass(slots=True)
class _Counts:
    parallel: int = 0
    most: int = 0
    left_out: int = 0


def run_by_layers(
    problem: PlacementProblem, regions: RegionPlan, policy: PaperPolicy, *, budget_bytes: int
) -> LayeredRun:
    """Branches and layers of a graph with its regions contracted, run as the paper does. O(V + E) for each width.

    Args:
        problem: the CPU's costs are taken from it; of its devices nothing.
        regions: those of ``problem.groups`` that a device runs.
        budget_bytes: what branches that run side by side may make together.

    Returns: a schedule of at most ``policy.max_threads`` threads at the same time, beside the device's queue.
    """
    groups = problem.groups
    control_flow = {regions.cluster_of[group] for group in groups.control_flow}
    found = find_branches(regions.dag, control_flow=control_flow, regions=frozenset(regions.region_clusters))
    region_at = {cluster: index for index, cluster in enumerate(regions.region_clusters)}
    members = [
        tuple(sorted(group for node in branch.nodes for group in regions.clusters[node])) for branch in found.branches
    ]
    region_of = [region_at.get(branch.nodes[0]) for branch in found.branches]
    loads = _loads(problem, members, region_of)
    peaks = branch_peaks(problem.graph, [groups.nodes_of(inside) for inside in members])
    for branch, region in enumerate(region_of):
        if region is not None:
            # Its inner tensors are the device's; what it hands back lies in the host's memory.
            peaks[branch] = sum(tensor_bytes(problem.graph, name) for name in regions.regions[region].downloads)
    threads = min(policy.max_threads, problem.machine.cores)
    rule, counts = policy.refinement, _Counts()
    steps: list[list[_Part]] = []
    serial: list[int] = []

    def end_serial() -> None:
        if serial:
            reason = "layers that run one branch after the other"
            steps.append([_Part(tuple(sorted(serial)), None, threads, reason)])
            serial.clear()

    for number, layer in enumerate(found.layers):
        decision = rule.decide(number, [loads[branch] for branch in layer])
        chosen = largest_fitting(decision.parallel, peaks, loads, budget_bytes)
        counts.left_out += len(decision.parallel) - len(chosen)
        if len(chosen) > 1:
            end_serial()
            of = "" if len(chosen) == len(decision.parallel) else f" of {len(decision.parallel)}, as memory allows,"
            reason = (
                f"layer {number}: {len(chosen)} branches{of} side by side, work within a ratio of "
                f"{decision.measured:.3g} (at most {decision.bound:.3g})"
            )
            steps.append(_side_by_side(reason, chosen, members, region_of, loads, policy, threads))
            counts.parallel += 1
            counts.most = max(counts.most, len(chosen))
        for branch in layer:
            if len(chosen) > 1 and branch in chosen:
                continue
            if region_of[branch] is None:
                serial.extend(members[branch])
            else:
                end_serial()
                steps.append([_Part(members[branch], region_of[branch], 0, f"layer {number}: a region by itself")])
    end_serial()
    tasks = _tasks(problem, regions, steps)
    schedule = _schedule(problem, steps, threads)
    machine = problem.machine
    return LayeredRun(
        tasks=tasks,
        schedule=schedule,
        run=simulate(
            tasks.tasks,
            schedule,
            handover_ns=machine.handover_ns,
            segment_overhead_ns=machine.segment_overhead_ns if len(tasks.tasks) > 1 else 0,
            contention=machine.contention,
        ),
        reasons=tuple(part.reason for step in steps for part in step),
        layers=len(found.layers),
        parallel_layers=counts.parallel,
        most_branches=counts.most,
        left_out=counts.left_out,
    )


def largest_fitting(
    branches: Iterable[int], peaks: Sequence[int], loads: Sequence[BranchLoad], budget_bytes: int
) -> tuple[int, ...]:
    """As many branches as fit together: by ascending peak; of equal peaks, those of more work first. Ascending."""
    left = budget_bytes
    kept = []
    for branch in sorted(branches, key=lambda branch: (peaks[branch], -loads[branch].flops, branch)):
        if peaks[branch] > left:
            break
        left -= peaks[branch]
        kept.append(branch)
    return tuple(sorted(kept))


def branch_peaks(graph: OpGraph, branches: Sequence[Sequence[int]]) -> list[int]:
    """The paper's M_i, in bytes: the most that a branch has made and still needs, what it hands on included.

    Tensors of unknown size count as 0. Linear.

    Args:
        branches: nodes of each, ascending.
    """
    fed = {info.name for info in (*graph.inputs, *graph.overridable)}
    peaks = []
    for nodes, peak in zip(branches, PeakTable(graph, branches).bind({}), strict=True):
        made = {name for node in nodes for name in graph.nodes[node].outputs}
        read = {name for node in nodes for name in (*graph.nodes[node].inputs, *graph.nodes[node].captures)}
        outside = 0
        for name in read - made:
            source = graph.producers.get(name)
            if name in fed if source is None else graph.nodes[source].op_type != "Constant":
                outside += tensor_bytes(graph, name)
        peaks.append(max(peak.interior_bytes, peak.total_bytes - outside))
    return peaks


def _loads(
    problem: PlacementProblem, members: Sequence[Sequence[int]], region_of: Sequence[int | None]
) -> list[BranchLoad]:
    """What the rule may know of each branch: operators and their work. It asks for no times."""
    groups, graph = problem.groups, problem.graph
    flops = groups.group_costs([node_flops(graph, node) or 0 for node in graph.nodes])
    operators = groups.group_costs([1] * len(graph.nodes))
    return [
        BranchLoad(
            branch=branch,
            nodes=sum(operators[group] for group in inside),
            flops=sum(flops[group] for group in inside),
            narrow_ns=0,
            wide_ns=0,
            is_region=region_of[branch] is not None,
        )
        for branch, inside in enumerate(members)
    ]


def _side_by_side(
    reason: str,
    chosen: Sequence[int],
    members: Sequence[tuple[int, ...]],
    region_of: Sequence[int | None],
    loads: Sequence[BranchLoad],
    policy: PaperPolicy,
    threads: int,
) -> list[_Part]:
    """The branches of one step, those of most work first."""
    on_cpu = sum(region_of[branch] is None for branch in chosen)
    width = min(threads, policy.branch_threads or max(1, threads // max(1, on_cpu)))
    return [
        _Part(members[branch], region_of[branch], width if region_of[branch] is None else 0, reason)
        for branch in sorted(chosen, key=lambda branch: (-loads[branch].flops, branch))
    ]


def _tasks(problem: PlacementProblem, regions: RegionPlan, steps: Sequence[Sequence[_Part]]) -> RegionTasks:
    groups, machine = problem.groups, problem.machine
    parts = [part for step in steps for part in step]
    part_of = [0] * len(groups)
    for index, part in enumerate(parts):
        for group in part.groups:
            part_of[group] = index
    data = groups.dag.quotient(part_of, len(parts)).predecessors
    crossing_ns = problem.crossings.of_parts(part_of, len(parts))
    widths = sorted({1, *(part.width for part in parts if part.width)})
    group_ns: Mapping[int, Sequence[int]] = {width: problem.group_ns(problem.costs.node_ns(width)) for width in widths}
    wide_ns = machine.wide_start_ns if len(parts) > 1 else 0
    tasks = []
    before: tuple[int, ...] = ()
    index = 0
    for step in steps:
        first = index
        for part in step:
            if part.region is not None:
                cost: tuple[tuple[int, int], ...] = ((0, regions.regions[part.region].device_ns),)
            else:
                cost = tuple(
                    (
                        width,
                        sum([group_ns[width][group] for group in part.groups])
                        + crossing_ns[index]
                        + (wide_ns if width > 1 else 0),
                    )
                    for width in widths
                )
            predecessors = tuple(sorted({*data[index], *before}))
            tasks.append(Task(index=index, predecessors=predecessors, cost_ns=cost))
            index += 1
        before = tuple(range(first, index))
    return RegionTasks(
        tasks=tuple(tasks),
        groups=tuple(part.groups for part in parts),
        region_of=tuple(part.region for part in parts),
    )


def _schedule(problem: PlacementProblem, steps: Sequence[Sequence[_Part]], threads: int) -> Schedule:
    """Lanes for the branches of the widest step, and the device's queue after them; one for all where none is wide."""
    lanes = 1
    for step in steps:
        widths = [part.width for part in step if part.width]
        if widths:
            lanes = max(lanes, min(len(widths), max(1, threads // max(widths))))
    has_queue = any(part.region is not None for step in steps for part in step)
    queue = lanes if has_queue and any(len(step) > 1 for step in steps) else 0
    parts = [part for step in steps for part in step]
    is_single = lanes == 1 and not queue
    return Schedule(
        policy=PAPER_POLICY,
        cores=problem.machine.cores,
        lanes=lanes + (queue > 0),
        assignments=tuple(
            Assignment(
                segment=index,
                width=part.width,
                priority=len(parts) - index,
                lane=queue if part.region is not None else 0 if is_single else None,
            )
            for index, part in enumerate(parts)
        ),
        backfill=not is_single,
    )
