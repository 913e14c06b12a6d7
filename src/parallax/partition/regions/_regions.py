"""Delegate regions by cost: what of a graph an accelerator should run, and why the rest stays on the CPU.

After "delegate pruning" in Parallax (arXiv 2512.11532): a region is offloaded only if it pays for its launch and
its transfers. `RegionRule.PAPER` applies the paper's three thresholds to greedy fragments; `RegionRule.MODEL`, the
default, evaluates the inequality behind them with the device's own figures, and shapes the regions by it.
`RegionRule.GREEDY` is what runtimes do today, for comparison: everything supported, whatever it costs.

Pure: what the device takes and what it would cost comes in as an `Offer`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parallax.errors import ConfigError, InternalError
from parallax.graph import Dag, OpGraph, Verdict, contracted_order
from parallax.partition.regions._costs import lay_ground
from parallax.partition.regions._ground import HOST, Draft, Ground
from parallax.partition.regions._growth import Cuts, find_fragments, find_pieces, find_waves, grow
from parallax.partition.regions._plan import (
    NodeVerdict,
    Offer,
    PaperThresholds,
    Region,
    RegionPlan,
    RegionRule,
    Traffic,
)

if TYPE_CHECKING:
    from parallax.partition._units import UnitGraph


def find_regions(
    graph: OpGraph,
    units: UnitGraph,
    offer: Offer,
    *,
    rule: RegionRule = RegionRule.MODEL,
    join_siblings: bool = False,
    thresholds: PaperThresholds | None = None,
) -> RegionPlan:
    """Choose the regions of a graph for one device. About linear: some ten thousand nodes a second.

    A unit can be taken if the device takes all its nodes; constants that its readers copy go where they are
    read. With `RegionRule.MODEL` the placement never costs more than the CPU alone, and with ``join_siblings``
    never more than the greedy one.

    Args:
        units: the pieces the graph may be cut into. At the grain of single nodes (``contract(graph)``) everything
            the device takes can be taken; joined by survivors, no cut separates what the CPU would fuse.
        join_siblings: let independent regions share launches wherever that is cheaper in sequence. Larger
            regions are less of a choice for what runs beside them.

    Raises: ConfigError if the offer is not one for this graph, or a cost is negative.
    """
    _verify_offer(graph, offer)
    if rule is RegionRule.GIVEN:
        raise ConfigError("a given placement is not found", fix="use RegionPlacer")
    ground = lay_ground(graph, units, offer)
    greedy = _greedy(ground)
    fragments = greedy.fragments
    judged: dict[int, NodeVerdict] = {}
    if rule is RegionRule.MODEL:
        waves = find_waves(ground.dag, ground.takes)
        pieces = find_pieces(ground.dag, ground.takes, waves)
        draft = grow(ground, pieces, waves, join_siblings=join_siblings)
        if join_siblings and greedy.draft.cost_ns < draft.cost_ns:
            draft = greedy.draft
        judged = _judge_pieces(units, draft, pieces)
    elif rule is RegionRule.GREEDY:
        draft = greedy.draft
    else:
        draft = Draft(ground)
        bounds = PaperThresholds() if thresholds is None else thresholds
        copied = ground.folded
        for number, fragment in enumerate(fragments):
            nodes = [node for node in units.nodes_of(fragment) if node not in copied]
            fails = _fails_threshold(ground, offer, fragment, nodes, bounds)
            if fails is None:
                draft.place(fragment, number)
            else:
                judged.update(
                    (node, NodeVerdict(node=node, verdict=fails[0], measured=fails[1], bound=fails[2]))
                    for node in nodes
                )
    return _describe(graph, units, offer, ground, draft, greedy, rule, judged)


class RegionPlacer:
    """Placements of one graph on one device that are given: for searches, which describe many.

    Whatever is on the device, its connected pieces within one wave can be contracted at once; that is why
    placements can be searched freely, by simulation for example, and not only by what they cost in sequence.

    Args: as `find_regions`. Raises: ConfigError as `find_regions`.
    """

    def __init__(self, graph: OpGraph, units: UnitGraph, offer: Offer) -> None:
        _verify_offer(graph, offer)
        self._graph, self._units, self._offer = graph, units, offer
        self._ground = lay_ground(graph, units, offer)
        self._greedy = _greedy(self._ground)

    @property
    def takes(self) -> tuple[bool, ...]:
        """Which units the device takes."""
        return self._ground.takes

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
            on_device: the units wanted there; those the device does not take stay on the CPU.
            regions: the regions themselves instead, such as another offer led to; units as above.
            cut_after: units after which a region ends although the device goes on: what the host does with their
                results begins earlier, for one more launch.
            cut_before: units before which one ends, so that the device need not wait for what they read of the
                host's.

        Raises: InternalError if ``regions`` cannot be contracted at once.
        """
        ground, units = self._ground, self._units
        if regions is not None:
            on_device = frozenset(unit for region in regions for unit in region)
        wanted = [taken and unit in on_device for unit, taken in enumerate(ground.takes)]
        draft = Draft(ground)
        pieces = regions
        if pieces is None:
            cuts = Cuts(after=cut_after, before=cut_before)
            pieces = find_pieces(ground.dag, wanted, find_waves(ground.dag, wanted, cuts), cuts)
        for number, piece in enumerate(pieces):
            draft.place([unit for unit in piece if wanted[unit]], number)
        judged = {
            node: NodeVerdict(node=node, verdict=Verdict.BALANCED_TO_CPU)
            for unit, taken in enumerate(ground.takes)
            if taken and not wanted[unit]
            for node in units.units[unit]
        }
        return _describe(self._graph, units, self._offer, ground, draft, self._greedy, RegionRule.GIVEN, judged)


@dataclass(frozen=True, slots=True)
class _Greedy:
    """The placement with everything that is supported, for comparison."""

    draft: Draft
    fragments: list[list[int]]
    traffic: Traffic


def _greedy(ground: Ground) -> _Greedy:
    fragments = find_fragments(find_waves(ground.dag, ground.takes), ground.takes)
    draft = Draft(ground)
    for number, fragment in enumerate(fragments):
        draft.place(fragment, number)
    return _Greedy(draft, fragments, _traffic(draft, _tally(draft)))


def _verify_offer(graph: OpGraph, offer: Offer) -> None:
    counts = {len(offer.declined), len(offer.device_ns), len(offer.cpu_ns), len(offer.flops)}
    if counts != {len(graph.nodes)}:
        raise ConfigError(
            f"an offer of {offer.device!r} for {sorted(counts)} nodes, where the graph has {len(graph.nodes)}",
            fix="give one entry per node of the graph",
        )
    if any(declined is not None and not declined.verdict.is_refusal for declined in offer.declined):
        raise ConfigError(
            f"an offer of {offer.device!r} that declines a node for what is no reason of a device's",
            fix="decline with a verdict for which is_refusal holds",
        )
    least = min((*offer.cpu_ns, *offer.device_ns, offer.launch_ns, offer.transfer.fixed_ns, 0))
    if least < 0 or not 0 <= offer.transfer.ns_per_byte < float("inf"):
        raise ConfigError(
            f"an offer of {offer.device!r} with a negative or endless cost", fix="times are finite and at least 0"
        )


def _fails_threshold(
    ground: Ground, offer: Offer, fragment: Sequence[int], nodes: Sequence[int], bounds: PaperThresholds
) -> tuple[Verdict, float, float] | None:
    members = set(fragment)
    crossing = {
        number for unit in fragment for number in ground.reads[unit] if ground.freight[number].home not in members
    }
    for unit in fragment:
        for number in ground.writes[unit]:
            item = ground.freight[number]
            inside = sum(number in ground.reads[other] for other in ground.dag.successors[unit] if other in members)
            if item.returned or inside < item.readers:
                crossing.add(number)
    moved = sum(ground.freight[number].size_bytes for number in crossing)
    macs = sum(offer.flops[node] for node in nodes) / 2
    if len(nodes) < bounds.min_nodes:
        return Verdict.TOO_FEW_NODES, len(nodes), bounds.min_nodes
    if macs < bounds.min_macs:
        return Verdict.TOO_LITTLE_WORK, macs, bounds.min_macs
    if moved > bounds.max_bytes_per_mac * macs:
        return Verdict.TOO_MUCH_TRAFFIC, moved / macs, bounds.max_bytes_per_mac
    return None


def _judge_pieces(units: UnitGraph, draft: Draft, pieces: Sequence[Sequence[int]]) -> dict[int, NodeVerdict]:
    """For what was supported and is not taken: the costs of the two ways, given where all else is."""
    found: dict[int, NodeVerdict] = {}
    ground, region_of = draft.ground, draft.region_of
    spare = max((region for region in region_of if region >= 0), default=-1) + 1
    for piece in pieces:
        dropped = [unit for unit in piece if region_of[unit] < 0]
        if not dropped:
            continue
        neighbours = {region_of[unit] for unit in piece} - {HOST}
        verdict = Verdict.CHEAPER_ON_CPU if neighbours else Verdict.GAINS_NOTHING
        # All of the piece that was dropped is judged at once where none is taken, else each stretch by itself.
        for stretch in (dropped,) if not neighbours else _stretches(ground.dag, dropped):
            cpu = sum(ground.cpu_ns[unit] for unit in stretch)
            beside = {
                region_of[other]
                for unit in stretch
                for other in (*ground.dag.predecessors[unit], *ground.dag.successors[unit])
            } & neighbours
            added = draft.place(stretch, min(beside) if beside else spare)
            draft.place(stretch, HOST)
            for node in units.nodes_of(stretch):
                found[node] = NodeVerdict(node=node, verdict=verdict, device_ns=cpu + added, cpu_ns=cpu)
    return found


def _stretches(dag: Dag, members: Sequence[int]) -> list[list[int]]:
    """Connected parts of a set of units, ascending."""
    label: dict[int, int] = {}
    parts: dict[int, list[int]] = {}
    inside = set(members)
    for start in members:
        if start in label:
            continue
        stack = [start]
        label[start] = start
        while stack:
            unit = stack.pop()
            parts.setdefault(start, []).append(unit)
            for other in (*dag.predecessors[unit], *dag.successors[unit]):
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


def _tally(draft: Draft) -> dict[int, _Tally]:
    ground, region_of = draft.ground, draft.region_of
    tallies = {region: _Tally() for region in draft.members}
    readers: list[list[int]] = [[] for _ in ground.freight]
    for unit, numbers in enumerate(ground.reads):
        for number in numbers:
            readers[number].append(unit)
    for number, item in enumerate(ground.freight):
        home = region_of[item.home] if item.home >= 0 else HOST
        reading = [region_of[unit] for unit in readers[number]]
        others = dict.fromkeys(region for region in reading if region not in (HOST, home))
        if home != HOST:
            if item.returned or HOST in reading:
                tallies[home].downloads.append(number)
            if others:
                for region in (home, *others):
                    tallies[region].kept.append(number)
        elif others:
            # Readers ascend, which is an order of execution: the first to read it brings it over.
            first, *rest = others
            tallies[first].uploads.append(number)
            for region in rest:
                tallies[region].kept.append(number)
    return tallies


def _traffic(draft: Draft, tallies: dict[int, _Tally]) -> Traffic:
    moved = [number for tally in tallies.values() for number in (*tally.uploads, *tally.downloads)]
    return Traffic(
        fragments=len(draft.members),
        tensors=len(moved),
        bytes=sum(draft.ground.freight[number].size_bytes for number in moved),
    )


def _describe(
    graph: OpGraph,
    units: UnitGraph,
    offer: Offer,
    ground: Ground,
    draft: Draft,
    greedy: _Greedy,
    rule: RegionRule,
    judged: dict[int, NodeVerdict],
) -> RegionPlan:
    by_region: dict[int, list[int]] = {}
    for unit, region in enumerate(draft.region_of):
        if region != HOST:
            by_region.setdefault(region, []).append(unit)
    leaders = contracted_order(ground.dag.predecessors, by_region.values())
    if leaders is None:
        raise InternalError(f"contracting the regions of {offer.device!r} closes a cycle")
    labels = sorted(by_region, key=lambda label: by_region[label][0])
    rank = {leader: index for index, leader in enumerate(leaders)}
    labels.sort(key=lambda label: rank[by_region[label][0]])
    group_of = [
        rank[by_region[region][0]] if region != HOST else rank[unit] for unit, region in enumerate(draft.region_of)
    ]
    groups: list[list[int]] = [[] for _ in leaders]
    for unit, group in enumerate(group_of):
        groups[group].append(unit)
    tallies = _tally(draft)
    freight = ground.freight
    regions: list[Region] = []
    index_of = {label: index for index, label in enumerate(labels)}
    for index, label in enumerate(labels):
        members = by_region[label]
        tally = tallies[label]
        gain = draft.place(members, HOST)
        draft.place(members, label)
        nodes = units.nodes_of(members)
        regions.append(
            Region(
                index=index,
                units=tuple(members),
                nodes=nodes,
                compute_ns=sum(ground.device_ns[unit] for unit in members),
                launch_ns=ground.launch_ns,
                transfer_ns=sum(freight[number].up_ns for number in tally.uploads)
                + sum(freight[number].down_ns for number in tally.downloads),
                cpu_ns=sum(ground.cpu_ns[unit] for unit in members),
                gain_ns=gain,
                flops=sum(offer.flops[node] for node in nodes),
                uploads=tuple(freight[number].name for number in tally.uploads),
                downloads=tuple(freight[number].name for number in tally.downloads),
                kept=tuple(freight[number].name for number in tally.kept),
            )
        )
    return RegionPlan(
        device=offer.device,
        rule=rule,
        regions=tuple(regions),
        verdicts=_verdicts(graph, units, offer, ground, draft, index_of, judged, regions),
        dag=ground.dag.quotient(group_of, len(groups)),
        groups=tuple(map(tuple, groups)),
        group_of=tuple(group_of),
        region_groups=tuple(rank[by_region[label][0]] for label in labels),
        cpu_only_ns=sum(ground.cpu_ns),
        greedy_ns=greedy.draft.cost_ns,
        chosen_ns=draft.cost_ns,
        before=greedy.traffic,
        after=_traffic(draft, tallies),
    )


def _verdicts(
    graph: OpGraph,
    units: UnitGraph,
    offer: Offer,
    ground: Ground,
    draft: Draft,
    index_of: dict[int, int],
    judged: dict[int, NodeVerdict],
    regions: Sequence[Region],
) -> tuple[NodeVerdict, ...]:
    copied = ground.folded
    found: list[NodeVerdict] = []
    for node in graph.nodes:
        index = node.index
        unit = units.unit_of[index]
        region = draft.region_of[unit]
        declined = offer.declined[index]
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
                other for other in units.units[unit] if offer.declined[other] is not None and other not in copied
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
