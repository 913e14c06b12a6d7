"""A placement as regions: what each device launches, and the graph in which each region is one node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.graph import Verdict, contracted_order
from parallax.partition.regions import NodeVerdict, RegionPlan, RegionRule, Traffic
from parallax.schedule.placement._problem import Placement, PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRegions:
    """The regions of one placement."""

    plan: RegionPlan
    """Of all devices that the placement uses; of the first device where it uses none."""
    device_of: tuple[int, ...]
    """Per region its device, as an index into `PlacementProblem.devices`."""

    @property
    def key(self) -> frozenset[tuple[int, tuple[int, ...]]]:
        """Tells placements apart: which groups each region holds, and on which device."""
        pairs = zip(self.device_of, self.plan.regions, strict=True)
        return frozenset((device, region.groups) for device, region in pairs)

    @property
    def busiest_ns(self) -> int:
        """The time for which the busiest device computes, launches and transfers."""
        busy: dict[int, int] = {}
        for device, region in zip(self.device_of, self.plan.regions, strict=True):
            busy[device] = busy.get(device, 0) + region.device_ns
        return max(busy.values(), default=0)

    def placed(self, groups: int) -> list[int | None]:
        """Per fusion group of so many the device that it runs on; None: the CPU."""
        devices: list[int | None] = [None] * groups
        for device, region in zip(self.device_of, self.plan.regions, strict=True):
            for group in region.groups:
                devices[group] = device
        return devices


def find_shared_regions(problem: PlacementProblem, placement: Placement) -> SharedRegions | None:
    """The regions of a placement; None where they cannot all be launched whole, because one waits for another in a
    circle.

    Raises: ConfigError if the placement is for another number of groups or names a device that there is not.
    """
    placement.check(problem)
    used = sorted({device for device in placement.devices if device is not None})
    plans = [_on_device(problem, placement, device) for device in used or [0]]
    if any(plan is None for plan in plans):
        return None
    found = [plan for plan in plans if plan is not None]
    if len(found) == 1:
        return SharedRegions(plan=found[0], device_of=tuple(used[:1] * len(found[0].regions)))
    return _joined(problem, used, found)


def _on_device(problem: PlacementProblem, placement: Placement, device: int) -> RegionPlan | None:
    placer = problem.region_placers[device]
    wanted = {group for group, chosen in enumerate(placement.devices) if chosen == device}
    if placement.regions is not None:
        given = [region for region in placement.regions if region and region[0] in wanted]
        taken = [tuple(group for group in region if problem.takes[device][group]) for region in given]
        pieces = [region for region in taken if region]
        if contracted_order(problem.groups.dag.predecessors, pieces) is None:
            return None
        return placer.place(regions=pieces)
    after: set[int] = set()
    before: set[int] = set()
    if placement.ends_early:
        dag, launch_ns = problem.groups.dag, problem.devices[device].launch_ns
        below, above = problem.below_ns, problem.above_ns
        for group in wanted:
            if any(other not in wanted and below[other] > launch_ns for other in dag.successors[group]):
                after.add(group)
            if any(other not in wanted and above[other] > launch_ns for other in dag.predecessors[group]):
                before.add(group)
    return placer.place(wanted, cut_after=after, cut_before=before)


def _joined(problem: PlacementProblem, used: Sequence[int], plans: Sequence[RegionPlan]) -> SharedRegions | None:
    """Plans of several devices as one: what passes from one device to another passes through the host's memory."""
    dag = problem.groups.dag
    pairs = [(device, region) for device, plan in zip(used, plans, strict=True) for region in plan.regions]
    leaders = contracted_order(dag.predecessors, [region.groups for _, region in pairs])
    if leaders is None:
        return None
    rank = {leader: index for index, leader in enumerate(leaders)}
    pairs.sort(key=lambda pair: rank[pair[1].groups[0]])
    index_of = {(device, region.index): index for index, (device, region) in enumerate(pairs)}
    regions = [dataclasses.replace(region, index=index) for index, (_, region) in enumerate(pairs)]
    inside = {group: region for region in regions for group in region.groups}
    cluster_of = [rank[inside[group].groups[0] if group in inside else group] for group in range(len(dag))]
    clusters: list[list[int]] = [[] for _ in leaders]
    for group, at in enumerate(cluster_of):
        clusters[at].append(group)
    cpu_only_ns = plans[0].cpu_only_ns
    plan = RegionPlan(
        device=" and ".join(plan.device for plan in plans),
        rule=RegionRule.GIVEN,
        regions=tuple(regions),
        verdicts=tuple(_verdict(said, used, index_of) for said in zip(*(plan.verdicts for plan in plans), strict=True)),
        dag=dag.quotient(cluster_of, len(clusters)),
        clusters=tuple(map(tuple, clusters)),
        cluster_of=tuple(cluster_of),
        region_clusters=tuple(rank[region.groups[0]] for region in regions),
        cpu_only_ns=cpu_only_ns,
        greedy_ns=min(plan.greedy_ns for plan in plans),
        chosen_ns=cpu_only_ns - sum(cpu_only_ns - plan.chosen_ns for plan in plans),
        before=min(plans, key=lambda plan: plan.greedy_ns).before,
        after=Traffic(
            fragments=sum(plan.after.fragments for plan in plans),
            tensors=sum(plan.after.tensors for plan in plans),
            bytes=sum(plan.after.bytes for plan in plans),
        ),
    )
    return SharedRegions(plan=plan, device_of=tuple(device for device, _ in pairs))


def _verdict(said: Sequence[NodeVerdict], used: Sequence[int], index_of: dict[tuple[int, int], int]) -> NodeVerdict:
    """What becomes of a node, of which each device used says what becomes of it there."""
    for device, verdict in zip(used, said, strict=True):
        if verdict.verdict is Verdict.TAKEN and verdict.region is not None:
            return dataclasses.replace(verdict, region=index_of[device, verdict.region])
    refusals = [verdict for verdict in said if not verdict.verdict.is_refusal]
    return (refusals or list(said))[0]
