"""Delegate regions by cost: what of a graph an accelerator should run, and why the rest stays on the CPU.

After "delegate pruning" in Parallax (arXiv 2512.11532): a region is offloaded only if it pays for its launch and
its transfers. `RegionRule.PAPER` applies the paper's three thresholds to greedy fragments; `RegionRule.MODEL`, the
default, evaluates the inequality behind them with the device's own figures, and shapes the regions by it.
`RegionRule.GREEDY` is what runtimes do today, for comparison: everything supported, whatever it costs.

Pure: what the device takes and what it would cost comes in as `DeviceCosts`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parallax.errors import ConfigError, InternalError
from parallax.graph import Dag, OpGraph, Verdict, contracted_order
from parallax.partition.regions._costs import build_problem
from parallax.partition.regions._growth import Cuts, find_fragments, find_pieces, find_waves, grow
from parallax.partition.regions._plan import (
    DeviceCosts,
    NodeVerdict,
    PaperThresholds,
    Region,
    RegionPlan,
    RegionRule,
    Traffic,
)
from parallax.partition.regions._problem import HOST, Assignment, RegionProblem

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups


def find_regions(
    graph: OpGraph,
    groups: FusionGroups,
    device_costs: DeviceCosts,
    *,
    rule: RegionRule = RegionRule.MODEL,
    join_siblings: bool = False,
    thresholds: PaperThresholds | None = None,
) -> RegionPlan:
    """Choose the regions of a graph for one device. About linear: some ten thousand nodes a second.

    A group can be taken if the device takes all its nodes; constants that its readers copy go where they are
    read. With `RegionRule.MODEL` the placement never costs more than the CPU alone, and with ``join_siblings``
    never more than the greedy one.

    Args:
        groups: the pieces the graph may be cut into. At the grain of single nodes (``group_fusions(graph)``) everything
            the device takes can be taken; where tensors that are not fusion-safe join nodes,
            no cut separates what the CPU would fuse.
        join_siblings: let independent regions share launches wherever that is cheaper in sequence. Larger
            regions are less of a choice for what runs beside them.

    Raises: ConfigError if the costs are not those of this graph, or a cost is negative.
    """
    _verify_device_costs(graph, device_costs)
    if rule is RegionRule.GIVEN:
        raise ConfigError("a given placement is not found", fix="use RegionPlacer")
    problem = build_problem(graph, groups, device_costs)
    greedy = _greedy(problem)
    fragments = greedy.fragments
    judged: dict[int, NodeVerdict] = {}
    if rule is RegionRule.MODEL:
        waves = find_waves(problem.dag, problem.takes)
        pieces = find_pieces(problem.dag, problem.takes, waves)
        assignment = grow(problem, pieces, waves, join_siblings=join_siblings)
        if join_siblings and greedy.assignment.cost_ns < assignment.cost_ns:
            assignment = greedy.assignment
        judged = _judge_pieces(groups, assignment, pieces)
    elif rule is RegionRule.GREEDY:
        assignment = greedy.assignment
    else:
        assignment = Assignment(problem)
        bounds = PaperThresholds() if thresholds is None else thresholds
        copied = problem.folded
        for number, fragment in enumerate(fragments):
            nodes = [node for node in groups.nodes_of(fragment) if node not in copied]
            fails = _fails_threshold(problem, device_costs, fragment, nodes, bounds)
            if fails is None:
                assignment.place(fragment, number)
            else:
                judged.update(
                    (node, NodeVerdict(node=node, verdict=fails[0], measured=fails[1], bound=fails[2]))
                    for node in nodes
                )
    return _describe(graph, groups, device_costs, problem, assignment, greedy, rule, judged)


class RegionPlacer:
    """Placements of one graph on one device that are given: for searches, which describe many.

    Whatever is on the device, its connected pieces within one wave can be contracted at once; that is why
    placements can be searched freely, by simulation for example, and not only by what they cost in sequence.

    Args: as `find_regions`. Raises: ConfigError as `find_regions`.
    """

    def __init__(self, graph: OpGraph, groups: FusionGroups, device_costs: DeviceCosts) -> None:
        _verify_device_costs(graph, device_costs)
        self._graph, self._groups, self._device_costs = graph, groups, device_costs
        self._problem = build_problem(graph, groups, device_costs)
        self._greedy = _greedy(self._problem)

    @property
    def takes(self) -> tuple[bool, ...]:
        """Which groups the device takes."""
        return self._problem.takes

    def place(
        self,
        on_device: Collection[int] = (),
        *,
        regions: Sequence[Sequence[int]] | None = None,
        cut_after: Collection[int] = (),
        cut_before: Collection[int] = (),
    ) -> RegionPlan:
        """Describe a placement. O((V + E) log V).

        Args:
            on_device: the groups wanted there; those the device does not take stay on the CPU.
            regions: the regions themselves instead, such as those that other costs led to; groups as above.
            cut_after: groups after which a region ends although the device goes on: what the host does with their
                results begins earlier, for one more launch.
            cut_before: groups before which one ends, so that the device need not wait for what they read of the
                host's.

        Raises: InternalError if ``regions`` cannot be contracted at once.
        """
        problem, groups = self._problem, self._groups
        if regions is not None:
            on_device = frozenset(group for region in regions for group in region)
        wanted = [taken and group in on_device for group, taken in enumerate(problem.takes)]
        assignment = Assignment(problem)
        pieces = regions
        if pieces is None:
            cuts = Cuts(after=cut_after, before=cut_before)
            pieces = find_pieces(problem.dag, wanted, find_waves(problem.dag, wanted, cuts), cuts)
        for number, piece in enumerate(pieces):
            assignment.place([group for group in piece if wanted[group]], number)
        judged = {
            node: NodeVerdict(node=node, verdict=Verdict.BALANCED_TO_CPU)
            for group, taken in enumerate(problem.takes)
            if taken and not wanted[group]
            for node in groups.members[group]
        }
        return _describe(
            self._graph, groups, self._device_costs, problem, assignment, self._greedy, RegionRule.GIVEN, judged
        )


@dataclass(frozen=True, slots=True)
class _Greedy:
    """The placement with everything that is supported, for comparison."""

    assignment: Assignment
    fragments: list[list[int]]
    traffic: Traffic


def _greedy(problem: RegionProblem) -> _Greedy:
    fragments = find_fragments(find_waves(problem.dag, problem.takes), problem.takes)
    assignment = Assignment(problem)
    for number, fragment in enumerate(fragments):
        assignment.place(fragment, number)
    return _Greedy(assignment, fragments, _traffic(assignment, _tally(assignment)))


def _verify_device_costs(graph: OpGraph, device_costs: DeviceCosts) -> None:
    counts = {
        len(device_costs.declined),
        len(device_costs.device_ns),
        len(device_costs.cpu_ns),
        len(device_costs.flops),
    }
    if counts != {len(graph.nodes)}:
        raise ConfigError(
            f"costs on {device_costs.device!r} for {sorted(counts)} nodes, where the graph has {len(graph.nodes)}",
            fix="give one entry per node of the graph",
        )
    if any(declined is not None and not declined.verdict.is_refusal for declined in device_costs.declined):
        raise ConfigError(
            f"costs on {device_costs.device!r} that decline a node for what is no reason of a device's",
            fix="decline with a verdict for which is_refusal holds",
        )
    least = min(
        (*device_costs.cpu_ns, *device_costs.device_ns, device_costs.launch_ns, device_costs.transfer.fixed_ns, 0)
    )
    if least < 0 or not 0 <= device_costs.transfer.ns_per_byte < float("inf"):
        raise ConfigError(
            f"costs on {device_costs.device!r} with a negative or endless cost",
            fix="times are finite and at least 0",
        )


def _fails_threshold(
    problem: RegionProblem,
    device_costs: DeviceCosts,
    fragment: Sequence[int],
    nodes: Sequence[int],
    bounds: PaperThresholds,
) -> tuple[Verdict, float, float] | None:
    members = set(fragment)
    crossing = {
        number
        for group in fragment
        for number in problem.reads[group]
        if problem.tensors[number].producer not in members
    }
    for group in fragment:
        for number in problem.writes[group]:
            item = problem.tensors[number]
            inside = sum(number in problem.reads[other] for other in problem.dag.successors[group] if other in members)
            if item.returned or inside < item.readers:
                crossing.add(number)
    moved = sum(problem.tensors[number].size_bytes for number in crossing)
    macs = sum(device_costs.flops[node] for node in nodes) / 2
    if len(nodes) < bounds.min_nodes:
        return Verdict.TOO_FEW_NODES, len(nodes), bounds.min_nodes
    if macs < bounds.min_macs:
        return Verdict.TOO_LITTLE_WORK, macs, bounds.min_macs
    if moved > bounds.max_bytes_per_mac * macs:
        return Verdict.TOO_MUCH_TRAFFIC, moved / macs, bounds.max_bytes_per_mac
    return None


def _judge_pieces(
    groups: FusionGroups, assignment: Assignment, pieces: Sequence[Sequence[int]]
) -> dict[int, NodeVerdict]:
    """For what was supported and is not taken: the costs of the two ways, given where all else is."""
    found: dict[int, NodeVerdict] = {}
    problem, region_of = assignment.problem, assignment.region_of
    unused = max((region for region in region_of if region >= 0), default=-1) + 1
    for piece in pieces:
        dropped = [group for group in piece if region_of[group] < 0]
        if not dropped:
            continue
        neighbours = {region_of[group] for group in piece} - {HOST}
        verdict = Verdict.CHEAPER_ON_CPU if neighbours else Verdict.GAINS_NOTHING
        # All of the piece that was dropped is judged at once where none is taken, else each stretch by itself.
        for stretch in (dropped,) if not neighbours else _stretches(problem.dag, dropped):
            cpu = sum(problem.cpu_ns[group] for group in stretch)
            beside = {
                region_of[other]
                for group in stretch
                for other in (*problem.dag.predecessors[group], *problem.dag.successors[group])
            } & neighbours
            added = assignment.place(stretch, min(beside) if beside else unused)
            assignment.place(stretch, HOST)
            for node in groups.nodes_of(stretch):
                found[node] = NodeVerdict(node=node, verdict=verdict, device_ns=cpu + added, cpu_ns=cpu)
    return found


def _stretches(dag: Dag, members: Sequence[int]) -> list[list[int]]:
    """Connected parts of a set of groups, ascending."""
    label: dict[int, int] = {}
    parts: dict[int, list[int]] = {}
    inside = set(members)
    for start in members:
        if start in label:
            continue
        stack = [start]
        label[start] = start
        while stack:
            group = stack.pop()
            parts.setdefault(start, []).append(group)
            for other in (*dag.predecessors[group], *dag.successors[group]):
                if other in inside and other not in label:
                    label[other] = start
                    stack.append(other)
    return [sorted(part) for part in parts.values()]


@dataclass(slots=True)
class _Tally:
    """What a region moves, while it is being counted."""

    uploads: list[int] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)


def _tally(assignment: Assignment) -> dict[int, _Tally]:
    problem, region_of = assignment.problem, assignment.region_of
    tallies = {region: _Tally() for region in assignment.members}
    readers: list[list[int]] = [[] for _ in problem.tensors]
    for group, numbers in enumerate(problem.reads):
        for number in numbers:
            readers[number].append(group)
    for number, item in enumerate(problem.tensors):
        source = region_of[item.producer] if item.producer >= 0 else HOST
        reading = [region_of[group] for group in readers[number]]
        others = dict.fromkeys(region for region in reading if region not in (HOST, source))
        if source != HOST:
            if item.returned or HOST in reading:
                tallies[source].downloads.append(number)
            if others:
                for region in (source, *others):
                    tallies[region].kept.append(number)
        elif others:
            # Readers ascend, which is an order of execution: the first to read it brings it over.
            first, *rest = others
            tallies[first].uploads.append(number)
            for region in rest:
                tallies[region].kept.append(number)
    return tallies


def _traffic(assignment: Assignment, tallies: dict[int, _Tally]) -> Traffic:
    moved = [number for tally in tallies.values() for number in (*tally.uploads, *tally.downloads)]
    return Traffic(
        fragments=len(assignment.members),
        tensors=len(moved),
        bytes=sum(assignment.problem.tensors[number].size_bytes for number in moved),
    )


def _describe(
    graph: OpGraph,
    groups: FusionGroups,
    device_costs: DeviceCosts,
    problem: RegionProblem,
    assignment: Assignment,
    greedy: _Greedy,
    rule: RegionRule,
    judged: dict[int, NodeVerdict],
) -> RegionPlan:
    by_region: dict[int, list[int]] = {}
    for group, region in enumerate(assignment.region_of):
        if region != HOST:
            by_region.setdefault(region, []).append(group)
    leaders = contracted_order(problem.dag.predecessors, by_region.values())
    if leaders is None:
        raise InternalError(f"contracting the regions of {device_costs.device!r} closes a cycle")
    labels = sorted(by_region, key=lambda label: by_region[label][0])
    rank = {leader: index for index, leader in enumerate(leaders)}
    labels.sort(key=lambda label: rank[by_region[label][0]])
    cluster_of = [
        rank[by_region[region][0]] if region != HOST else rank[group]
        for group, region in enumerate(assignment.region_of)
    ]
    clusters: list[list[int]] = [[] for _ in leaders]
    for group, cluster in enumerate(cluster_of):
        clusters[cluster].append(group)
    tallies = _tally(assignment)
    tensors = problem.tensors
    regions: list[Region] = []
    index_of = {label: index for index, label in enumerate(labels)}
    for index, label in enumerate(labels):
        members = by_region[label]
        tally = tallies[label]
        gain = assignment.place(members, HOST)
        assignment.place(members, label)
        nodes = groups.nodes_of(members)
        regions.append(
            Region(
                index=index,
                groups=tuple(members),
                nodes=nodes,
                compute_ns=sum(problem.device_ns[group] for group in members),
                launch_ns=problem.launch_ns,
                transfer_ns=sum(tensors[number].up_ns for number in tally.uploads)
                + sum(tensors[number].down_ns for number in tally.downloads),
                cpu_ns=sum(problem.cpu_ns[group] for group in members),
                gain_ns=gain,
                flops=sum(device_costs.flops[node] for node in nodes),
                uploads=tuple(tensors[number].name for number in tally.uploads),
                downloads=tuple(tensors[number].name for number in tally.downloads),
                kept=tuple(tensors[number].name for number in tally.kept),
            )
        )
    return RegionPlan(
        device=device_costs.device,
        rule=rule,
        regions=tuple(regions),
        verdicts=_verdicts(graph, groups, device_costs, problem, assignment, index_of, judged, regions),
        dag=problem.dag.quotient(cluster_of, len(clusters)),
        clusters=tuple(map(tuple, clusters)),
        cluster_of=tuple(cluster_of),
        region_clusters=tuple(rank[by_region[label][0]] for label in labels),
        cpu_only_ns=sum(problem.cpu_ns),
        greedy_ns=greedy.assignment.cost_ns,
        chosen_ns=assignment.cost_ns,
        before=greedy.traffic,
        after=_traffic(assignment, tallies),
    )


def _verdicts(
    graph: OpGraph,
    groups: FusionGroups,
    device_costs: DeviceCosts,
    problem: RegionProblem,
    assignment: Assignment,
    index_of: dict[int, int],
    judged: dict[int, NodeVerdict],
    regions: Sequence[Region],
) -> tuple[NodeVerdict, ...]:
    copied = problem.folded
    found: list[NodeVerdict] = []
    for node in graph.nodes:
        index = node.index
        group = groups.group_of[index]
        region = assignment.region_of[group]
        declined = device_costs.declined[index]
        if index in copied:
            found.append(NodeVerdict(node=index, verdict=Verdict.FOLDED))
        elif region != HOST:
            taken = regions[index_of[region]]
            found.append(
                NodeVerdict(
                    node=index,
                    verdict=Verdict.TAKEN,
                    region=taken.index,
                    device_ns=taken.device_ns,
                    cpu_ns=taken.cpu_ns,
                )
            )
        elif declined is not None:
            found.append(NodeVerdict(node=index, verdict=declined.verdict, detail=declined.detail))
        elif index in judged:
            found.append(judged[index])
        else:
            refused = next(
                other
                for other in groups.members[group]
                if device_costs.declined[other] is not None and other not in copied
            )
            name = graph.nodes[refused].name
            found.append(
                NodeVerdict(
                    node=index,
                    verdict=Verdict.FUSED_WITH_UNSUPPORTED,
                    detail=f"'{name}' ({graph.nodes[refused].op_type})",
                )
            )
    return tuple(found)
