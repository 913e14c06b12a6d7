"""The ways to place that come with Parallax, by name; each proposes placements of a whole model.

`find_regions` asks what a region costs in sequence. Beside other work another question counts: a region that takes
the device twice as long as the CPU is a gain where the CPU is busy, and one that it runs twice as fast is better left
where the device is the bottleneck. So placements are proposed in several ways, and `judge` simulates them all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from parallax.errors import ConfigError
from parallax.graph import tensor_bytes
from parallax.partition import find_branches
from parallax.partition.regions import RegionRule, find_regions
from parallax.schedule._heft import HeftPolicy
from parallax.schedule._tasks import Task
from parallax.schedule.placement._problem import FIRST_ROWS, Placement, PlacementProblem

CPU_COST_FACTORS: Final = (1.0, 1.5, 2.5)
"""How dear the CPU's time is taken to be, against the device's."""


class CpuOnly:
    """Everything on the CPU. The judge always has that among its placements."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """One placement."""
        yield problem.cpu_only


class Device:
    """All that a device takes, in connected pieces: the device alone, as far as it goes. One placement per device."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `Device`."""
        for device, device_costs in enumerate(problem.devices):
            label = f"all on {device_costs.device}"
            yield Placement.on_device(problem, label, range(len(problem.groups)), device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """All that a device takes, in the fewest regions: what runtimes do today. One placement per device.

    Args:
        partitions: only so many regions, those of the most operators; None: all. TensorFlow Lite's delegates are given
            1 by its GPU delegate (``max_delegated_partitions`` in ``delegates/gpu/delegate_options.cc``) and 3 by that
            of NNAPI (``max_number_delegated_partitions`` in ``delegates/nnapi/nnapi_delegate.h``).
    """

    partitions: int | None = None

    def __post_init__(self) -> None:
        given = self.partitions
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ConfigError(f"partitions={given!r:.40}", fix="give a whole number of at least 1, or None for all")

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `Greedy`."""
        for device, device_costs in enumerate(problem.devices):
            plan = find_regions(problem.graph, problem.groups, device_costs, rule=RegionRule.GREEDY)
            if self.partitions is None:
                yield Placement.of_regions(problem, "all supported", plan, device=device)
                continue
            by_size = sorted(plan.regions, key=lambda region: (-len(region.nodes), region.index))
            kept = sorted(by_size[: self.partitions], key=lambda region: region.index)
            label = f"the {self.partitions} largest of all supported"
            pieces = tuple(region.groups for region in kept)
            given = Placement.on_device(problem, label, itertools.chain.from_iterable(pieces), device=device)
            yield dataclasses.replace(given, regions=pieces)


class PaperThresholds:
    """The regions that pass the thresholds of Parallax, arXiv 2512.11532. One placement per device."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `PaperThresholds`."""
        for device, device_costs in enumerate(problem.devices):
            plan = find_regions(problem.graph, problem.groups, device_costs, rule=RegionRule.PAPER)
            yield Placement.of_regions(problem, "the paper's thresholds", plan, device=device)


class ByCost:
    """What pays in sequence, joined or not, with the CPU's time worth once or several times the device's."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `ByCost`."""
        for device, device_costs in enumerate(problem.devices):
            for factor in CPU_COST_FACTORS:
                scaled = dataclasses.replace(
                    device_costs, cpu_ns=tuple(round(ns * factor) for ns in device_costs.cpu_ns)
                )
                chosen: set[int] = set()
                for joined in (False, True):
                    plan = find_regions(problem.graph, problem.groups, scaled, join_siblings=joined)
                    label = f"regions by cost x{factor:g}{', joined' if joined else ''}"
                    yield Placement.of_regions(problem, label, plan, device=device)
                    chosen.update(group for region in plan.regions for group in region.groups)
                label = f"regions by cost x{factor:g}, cut early"
                yield Placement.on_device(problem, label, chosen, device=device, ends_early=True)


class Heft:
    """HEFT over branches: each where it would end first, with a launch per branch, or with none, as launches merge."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `Heft`."""
        cores = problem.machine.cores
        for device, device_costs in enumerate(problem.devices):
            for launch_ns in (device_costs.launch_ns, 0):
                for cpu_width in dict.fromkeys((None, 1, max(1, cores // 2))):
                    tasks, transfers, branches = _branch_tasks(problem, device, launch_ns)
                    policy = HeftPolicy(cpu_width=cpu_width, transfer_ns=transfers)
                    schedule = policy.assign(tasks, cores=cores, lanes=cores + 1)
                    chosen = {
                        group
                        for branch, assignment in zip(branches, schedule.assignments, strict=True)
                        if assignment.width == 0
                        for group in branch
                    }
                    lanes = "one lane" if cpu_width is None else f"lanes of {cpu_width}"
                    label = f"HEFT, {lanes}, launch {launch_ns} ns"
                    yield Placement.on_device(problem, label, chosen, device=device)
                    label += ", cut early"
                    yield Placement.on_device(problem, label, chosen, device=device, ends_early=True)


class ShardRows:
    """Either part of a model whose layers are split by rows, with what is in neither on the CPU, on the device, or
    where it would run if nothing was split; nothing for another model."""

    def rows_share(self, balanced: float) -> float:
        """The share of the rows in the first part: that with which device and CPU end together."""
        return balanced

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `ShardRows`."""
        for device in range(len(problem.devices)):
            for label, groups in problem.row_parts.items():
                yield Placement.on_device(problem, label, groups, device=device)
                yield Placement.on_device(problem, f"{label}, cut early", groups, device=device, ends_early=True)
            elsewhere = problem.rows_elsewhere
            if elsewhere is None:
                continue
            first, label = problem.row_parts[FIRST_ROWS], f"{FIRST_ROWS}, regions elsewhere"
            devices = tuple(device if group in first else side for group, side in enumerate(elsewhere))
            yield Placement(label=label, devices=devices)
            yield Placement(label=f"{label}, cut early", devices=devices, ends_early=True)


def branches_of(problem: PlacementProblem, takes: Callable[[int], object]) -> list[tuple[int, ...]]:
    """Branches of the graph, divided where ``takes`` changes along them: fusion groups of each."""
    found = find_branches(problem.groups.dag, control_flow=problem.groups.control_flow)
    pieces: list[tuple[int, ...]] = []
    for branch in found.branches:
        pieces.extend(_runs(branch.nodes, takes))
    return pieces


def _branch_tasks(
    problem: PlacementProblem, device: int, launch_ns: int
) -> tuple[list[Task], dict[tuple[int, int], int], list[tuple[int, ...]]]:
    graph, groups, device_costs, takes = problem.graph, problem.groups, problem.devices[device], problem.takes[device]
    branches = sorted(branches_of(problem, takes.__getitem__), key=lambda inside: inside[0])
    task_of = {group: index for index, inside in enumerate(branches) for group in inside}
    there = problem.group_ns(device_costs.device_ns)
    by_width = {width: problem.group_ns(problem.costs.node_ns(width)) for width in problem.widths}
    transfers: dict[tuple[int, int], int] = {}
    for producer, names in enumerate(groups.writes):
        for name in names:
            readers = {task_of[groups.group_of[node]] for node in graph.consumers[name]} - {task_of[producer]}
            for reader in sorted(readers)[:1]:
                edge = (task_of[producer], reader)
                transfers[edge] = transfers.get(edge, 0) + device_costs.transfer.ns(tensor_bytes(graph, name))
    tasks = []
    for index, inside in enumerate(branches):
        before = {task_of[pred] for group in inside for pred in groups.dag.predecessors[group]} - {index}
        cost = tuple((width, sum(by_width[width][group] for group in inside)) for width in problem.widths)
        if takes[inside[0]]:
            cost = ((0, sum(there[group] for group in inside) + launch_ns), *cost)
        tasks.append(Task(index=index, predecessors=tuple(sorted(before)), cost_ns=cost))
    return tasks, transfers, branches


def _runs(members: Sequence[int], takes: Callable[[int], object]) -> Iterator[tuple[int, ...]]:
    """Parts of a chain over which ``takes`` says the same."""
    run: list[int] = []
    for group in members:
        if run and takes(run[-1]) != takes(group):
            yield tuple(run)
            run = []
        run.append(group)
    if run:
        yield tuple(run)
