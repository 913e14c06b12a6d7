"""What a placer is asked, and what it answers: which fusion groups run on which device, and which on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol

from parallax.errors import ConfigError
from parallax.graph import CostModel, OpGraph, Verdict, bottom_levels, node_work, tensor_bytes, top_levels
from parallax.partition import FusionGroups
from parallax.partition.regions import DeviceCosts, RegionPlacer, RegionPlan
from parallax.schedule._crossings import Crossings
from parallax.schedule.placement._flows import Flow, find_flows
from parallax.schedule.placement._zeros import weight_zeros


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
class GroupFeatures:
    """What is known of one fusion group before anything runs: what a learned placer sees of it."""

    operators: tuple[str, ...]
    """Types of its operators, in their order."""
    flops: int
    read_bytes: int
    """Of tensors that it reads of other groups; 0 for those of unknown size."""
    written_bytes: int
    """Of tensors that other groups read of it."""
    cpu_ns: int
    """Predicted time on the CPU, on all cores."""
    device_ns: tuple[int | None, ...]
    """Predicted time on each device, without launch and transfers; None where it does not take the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One answer: where each fusion group runs. Groups that a device does not take run on the CPU, whatever it says."""

    label: str
    """How it was found, for people."""
    devices: tuple[int | None, ...]
    """Per fusion group: the device, as an index into `PlacementProblem.devices`; None is the CPU."""
    ends_early: bool = False
    """Whether regions end where the CPU waits for them, and begin anew where they wait for the CPU: more launches, and
    less waiting."""
    regions: tuple[tuple[int, ...], ...] | None = None
    """The regions themselves, each of fusion groups of one device; None: connected pieces, as large as can be."""

    def check(self, problem: PlacementProblem) -> None:
        """Raises: ConfigError if it is for another number of groups, or names a device that there is not."""
        if len(self.devices) != len(problem.groups):
            raise ConfigError(
                f"placement {self.label!r} is for {len(self.devices)} fusion groups, where there are "
                f"{len(problem.groups)}",
                fix="give one entry per fusion group in Placement.devices",
            )
        stray = {device for device in self.devices if device is not None} - set(range(len(problem.devices)))
        if stray:
            raise ConfigError(
                f"placement {self.label!r} names device {min(stray)}, where there are {len(problem.devices)}",
                fix="give indices into PlacementProblem.devices, or None for the CPU",
            )

    @classmethod
    def of_regions(cls, problem: PlacementProblem, label: str, plan: RegionPlan, *, device: int = 0) -> Placement:
        """The regions of a plan, which may have been found with other costs than the problem's."""
        regions = tuple(region.groups for region in plan.regions)
        placed = cls.on_device(problem, label, [group for region in regions for group in region], device=device)
        return replace(placed, regions=regions)

    @classmethod
    def on_device(
        cls,
        problem: PlacementProblem,
        label: str,
        groups: Iterable[int],
        *,
        device: int = 0,
        ends_early: bool = False,
    ) -> Placement:
        """These fusion groups on one device, and all others on the CPU."""
        wanted = frozenset(groups)
        return cls(
            label=label,
            devices=tuple(device if group in wanted else None for group in range(len(problem.groups))),
            ends_early=ends_early,
        )


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    """One question to a placer. Pure: whoever is asked twice answers alike.

    Groups are numbered in a topological order; `parallax.partition.FusionGroups` says what reads what.
    """

    graph: OpGraph
    """The model, with types."""
    groups: FusionGroups
    """Its fusion groups: what the CPU's runtime computes in one kernel, or nobody may separate."""
    devices: tuple[DeviceCosts, ...]
    """What each device says of each node, and what it would cost there. Their ``cpu_ns`` are those of all cores."""
    costs: CostModel
    """Of the nodes on the CPU, per number of threads."""
    machine: Machine
    row_parts: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Of a model split by rows: fusion groups to be tried together on a device, by label."""
    rows_elsewhere: tuple[int | None, ...] | None = None
    """Of such a model, per fusion group that is in neither part, the device where it would run if nothing was split, as
    an index into ``devices``; None: the CPU, or not known. None in place of them all: nobody asked."""
    zeros: Mapping[str, float] = field(default_factory=dict)
    """Share of exact zeros in weights, by name, of those of which it is known. It may be found when it is asked for."""
    zero_worth: Mapping[str, float] = field(default_factory=dict)
    """Per operator the share of its time on the CPU that weights of zeros alone would save, as measured; 0 for those
    that are not named. It is in no cost: whoever believes in it may."""

    def __post_init__(self) -> None:
        if self.machine.cores < 1:
            raise ConfigError(f"a machine of {self.machine.cores} cores", fix="give at least 1")
        if not self.devices:
            raise ConfigError("a placement problem without a device", fix="give the costs of one at least")

    @cached_property
    def features(self) -> tuple[GroupFeatures, ...]:
        """What is known of each fusion group."""
        graph, groups = self.graph, self.groups
        flops = groups.group_costs([node_work(graph, node).flops or 0 for node in graph.nodes])
        there = [groups.group_costs(device.device_ns) for device in self.devices]
        return tuple(
            GroupFeatures(
                operators=tuple(graph.nodes[node].op_type for node in groups.members[group]),
                flops=flops[group],
                read_bytes=sum(tensor_bytes(graph, name) for name in groups.reads[group]),
                written_bytes=sum(tensor_bytes(graph, name) for name in groups.writes[group]),
                cpu_ns=self.cpu_ns[group],
                device_ns=tuple(
                    device_ns[group] if takes[group] else None
                    for device_ns, takes in zip(there, self.takes, strict=True)
                ),
            )
            for group in range(len(groups))
        )

    @cached_property
    def takes(self) -> tuple[tuple[bool, ...], ...]:
        """Per device: which fusion groups it takes."""
        return tuple(placer.takes for placer in self.region_placers)

    @cached_property
    def region_placers(self) -> tuple[RegionPlacer, ...]:
        """Per device: what describes placements on it. Raises: ConfigError for costs of another graph."""
        return tuple(RegionPlacer(self.graph, self.groups, device) for device in self.devices)

    @cached_property
    def folded(self) -> frozenset[int]:
        """Nodes that are computed when the model is loaded, and cost a run nothing."""
        nothing = self.region_placers[0].place()
        return frozenset(found.node for found in nothing.verdicts if found.verdict is Verdict.FOLDED)

    @cached_property
    def cpu_ns(self) -> tuple[int, ...]:
        """Of each fusion group on the CPU, on all cores."""
        return self.group_ns(self.devices[0].cpu_ns)

    @cached_property
    def below_ns(self) -> list[int]:
        """Per fusion group the CPU's time on the longest path from its beginning to the end of all."""
        return bottom_levels(self.groups.dag.predecessors, self.cpu_ns)

    @cached_property
    def above_ns(self) -> list[int]:
        """Per fusion group the CPU's time on the longest path to its end."""
        return top_levels(self.groups.dag.predecessors, self.cpu_ns)

    @cached_property
    def flows(self) -> tuple[Flow, ...]:
        """Tensors that move where who makes them and who reads them are on different sides."""
        return find_flows(self.graph, self.groups, self.folded)

    @cached_property
    def sparsity(self) -> tuple[float, ...]:
        """Per fusion group the share of exact zeros in the weights that it reads, by elements; 0 where none is known.

        Not among the `features`: to find it may take reading all weights.
        """
        return tuple(weight_zeros(self.graph, nodes, self.zeros) for nodes in self.groups.members)

    @cached_property
    def crossings(self) -> Crossings:
        """What tensors between the CPU's parts cost."""
        return Crossings(self.graph, self.groups, self.machine.crossing_ns_per_byte)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Numbers of threads that costs are known for: 1, 2, 4, ... and all cores."""
        cores = self.machine.cores
        return tuple(sorted({1, cores, *(2**step for step in range(1, cores.bit_length()) if 2**step < cores)}))

    def group_ns(self, node_ns: Iterable[int]) -> tuple[int, ...]:
        """Times of nodes, summed by fusion group; those computed at load count nothing."""
        return self.groups.group_costs([0 if node in self.folded else ns for node, ns in enumerate(node_ns)])

    @property
    def cpu_only(self) -> Placement:
        """Everything on the CPU."""
        return Placement(label="CPU only", devices=(None,) * len(self.groups))


class Placer(Protocol):
    """A way to place: it proposes, and `judge` simulates all that it proposes and keeps the best.

    So a placer cannot make a plan worse, in simulation, than the CPU alone. It may propose much: each placement takes
    the judge some milliseconds per hundred fusion groups. It must be deterministic. A generator that also has a method
    ``improve`` is told the best placement so far: see `LocalSearch`.
    """

    def propose(self, problem: PlacementProblem) -> Iterable[Placement]:
        """Placements worth a try; none where there is nothing to say."""
        ...


FIRST_ROWS: Final = "first rows"
"""Label of the first part of a model split by rows, among `PlacementProblem.row_parts`."""


def row_parts(graph: OpGraph, groups: FusionGroups, parts: tuple[Set[str], Set[str]]) -> dict[str, frozenset[int]]:
    """What a model split by rows is made for, by label: either part alone on the device, as fusion groups.

    Args:
        parts: names of the nodes of either part.
    """
    first, others = _groups_of_parts(graph, groups, parts)
    return {FIRST_ROWS: first, "all but the last rows": frozenset(range(len(groups))) - others}


def rows_elsewhere(
    graph: OpGraph, groups: FusionGroups, parts: tuple[Set[str], Set[str]], sides: Mapping[str, int]
) -> tuple[int | None, ...]:
    """`PlacementProblem.rows_elsewhere` of a model split by rows.

    Args:
        parts: names of the nodes of either part.
        sides: tensor -> device that makes it where nothing is split; others are the CPU's.
    """
    first, others = _groups_of_parts(graph, groups, parts)
    inside = first | others
    found: list[int | None] = []
    for group, nodes in enumerate(groups.members):
        made = (sides[name] for node in nodes for name in graph.nodes[node].outputs if name in sides)
        found.append(None if group in inside else next(made, None))
    return tuple(found)


def _groups_of_parts(
    graph: OpGraph, groups: FusionGroups, parts: tuple[Set[str], Set[str]]
) -> tuple[frozenset[int], frozenset[int]]:
    first, others = (
        frozenset(
            group for group, nodes in enumerate(groups.members) if any(graph.nodes[node].name in part for node in nodes)
        )
        for part in parts
    )
    return first, others
