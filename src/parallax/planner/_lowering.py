"""Bodies of If, Loop and Scan taken into the plan, where that pays.

A lowered operator is a segment of its own, whose bodies have plans of their own: made by whoever plans graphs, the same
way as for the model around them. What is in its segment before, beside and after it becomes segments of its own too;
what is beside it runs at the same time, if that promises to end sooner. An operator whose bodies gain nothing by that
stays in its segment. Either way the segment's reason says so, with both figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Protocol

from parallax.errors import BackendError
from parallax.graph import Node, OpGraph
from parallax.model import Body, Model
from parallax.partition import FusionGroups, bodies_cast_back, group_fusions, groups_of, is_isolated, split_around
from parallax.partition.candidates import Cause, DraftSegment, assemble, find_boundaries
from parallax.planner._candidates import HANDOVER_NS, SEGMENT_OVERHEAD_NS
from parallax.profile import estimate_costs, fusion_safe_tensors
from parallax.schedule import CPU_BACKEND, BodyPlan, Plan, Segment

LOWERING_NS: Final = 45_000
"""What an iteration, or an If, takes longer in the engine than in the runtime. Measured with bodies of one and two
trivial operators on two cores: 30 to 47 us, where the runtime's own kernels take 1 (Loop) and 4 (If)."""


class BodyPlanner(Protocol):
    """Plans a body as any other model; the plan's provenance tells what the body takes whole and as planned."""

    def __call__(self, body: Model, *, cores: int) -> Plan:
        """A plan for at most ``cores`` cores; one segment where nothing gains."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lowered:
    """An operator that is to be lowered, and what that gains."""

    node: int
    bodies: tuple[BodyPlan, ...]
    width: int
    beside: bool
    """Whether what does not depend on it runs at the same time."""
    cost_ns: int
    saved_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A segment in the making: an old one, or a part of it."""

    origin: Segment
    groups: tuple[int, ...]
    width: int
    lowered: _Lowered | None = None
    place: str = ""
    """Where it lies with regard to an operator that was taken out of the same segment."""


def lower_bodies(
    model: Model,
    plan: Plan,
    *,
    plan_body: BodyPlanner,
    min_gain: float,
    promises: Callable[[OpGraph], bool] | None = None,
    as_barriers: bool = False,
) -> Plan:
    """The plan with those operators lowered whose bodies gain by it.

    Args:
        model: which the plan is for.
        plan: split or whole. What other backends run is left to them.
        plan_body: plans each body. Operators inside bodies are lowered by the same rule.
        min_gain: the least share of the time of a whole run that lowering an operator must promise to save. 0 lowers
            whatever can be lowered, whether it gains or not.
        promises: a quick look at a body's graph, before it becomes a model of its own: False where its plan will gain
            nothing. Default: always ask for the plan.
        as_barriers: whether nothing runs beside a lowered operator, and one stays whose bodies all stay whole.

    Raises: what ``plan_body`` raises.
    """
    found = [
        (segment, model.graph.nodes[index])
        for segment in plan.segments
        if segment.backend == CPU_BACKEND and not segment.bodies
        for index in segment.nodes
        if model.graph.nodes[index].bodies
    ]
    if not found:
        return plan
    lowering = _Lowering(model, plan, plan_body, min_gain, promises, as_barriers=as_barriers)
    all_lowered: dict[int, _Lowered] = {}
    notes: dict[int, tuple[str, ...]] = {}
    for segment, node in found:
        verdict = lowering.examine(segment, node)
        if isinstance(verdict, _Lowered):
            all_lowered[node.index] = verdict
        else:
            notes[segment.index] = (*notes.get(segment.index, ()), verdict)
    noted = [
        replace(segment, reason="; ".join((segment.reason, *notes.get(segment.index, ())))) for segment in plan.segments
    ]
    plan = replace(plan, segments=tuple(noted))
    return lowering.apply(plan, all_lowered) if all_lowered else plan


class _Lowering:
    """Examines operators of one model."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        plan_body: BodyPlanner,
        min_gain: float,
        promises: Callable[[OpGraph], bool] | None,
        *,
        as_barriers: bool,
    ) -> None:
        self._model = model
        self._graph = model.inferred()
        self._cores = plan.cores
        self._plan_body = plan_body
        self._min_gain = min_gain
        self._promises = promises
        self._as_barriers = as_barriers
        self._costs = estimate_costs(self._graph, cores=plan.cores)
        stated = plan.provenance.chosen_ns or plan.provenance.whole_ns
        self._total_ns = stated or sum(self._costs.node_ns(plan.cores))
        self._segment_nodes = [segment.nodes for segment in plan.segments]

    @cached_property
    def _groups(self) -> FusionGroups:
        """The finest pieces between which a cut may lie. Raises: BackendError if the runtime refuses the model."""
        # The runtime fuses nothing with an operator that has bodies, so a cut right before or after it undoes nothing:
        # what does not survive there is a node without effect that it drops.
        around = {name for node in self._graph.nodes if node.bodies for name in (*node.inputs, *node.outputs)}
        fusion_safe = fusion_safe_tensors(self._model) | around
        return group_fusions(self._graph, fusion_safe=fusion_safe, may_cross=self._model.can_split_at, tiny_elements=0)

    def examine(self, segment: Segment, node: Node) -> _Lowered | str:
        """How to lower an operator of a segment, or why it stays."""
        stays = f"{node.op_type} {node.name!r} stays in it: "
        obstacle = self._model.why_no_bodies(node.index)
        if obstacle is not None:
            return stays + obstacle
        typed = self._graph.nodes[node.index].bodies
        if self._promises is not None and not any(self._promises(body) for _, body in typed):
            return stays + "nothing in it is worth running side by side"
        if bodies_cast_back(self._graph.nodes[node.index]):
            return stays + "what it casts there and back for a body inside comes from outside"
        bodies = self._model.bodies(node.index)
        lowered = self._lower(node, bodies, width=max(1, segment.width), beside=False)
        if isinstance(lowered, str):
            return stays + lowered
        try:
            groups = self._groups
        except BackendError as error:
            return stays + error.what
        if not is_isolated(self._graph, groups, node.index):
            return stays + "the runtime fuses it with what is around it, or what lies between cannot be handed over"
        if any(groups_of(groups, nodes) is None for nodes in self._segment_nodes):
            return stays + "the plan splits where the runtime would fuse"
        return lowered if self._as_barriers else self._put_beside(segment, node, bodies, lowered)

    def _lower(self, node: Node, bodies: Sequence[Body[Model]], *, width: int, beside: bool) -> _Lowered | str:
        planned = []
        plain_ns = lowered_ns = 0
        for body in bodies:
            plan = self._plan_body(body.model, cores=width)
            plan = lower_bodies(
                body.model,
                plan,
                plan_body=self._plan_body,
                min_gain=self._min_gain,
                promises=self._promises,
                as_barriers=self._as_barriers,
            )
            planned.append(BodyPlan(attribute=body.attribute, plan=plan))
            whole_ns = plan.provenance.whole_ns
            if whole_ns is None:
                whole_ns = sum(estimate_costs(body.model.inferred(), cores=width).node_ns(width))
            chosen_ns = plan.provenance.chosen_ns
            plain_ns += whole_ns
            lowered_ns += LOWERING_NS + (whole_ns if plan.is_whole or chosen_ns is None else chosen_ns)
        if self._as_barriers and all(entry.plan.is_whole for entry in planned):
            return "nothing in its bodies is divided"
        cost_ns = self._costs.node_ns(width)[node.index]
        saved_ns = round(cost_ns * (1 - lowered_ns / max(1, plain_ns)))
        what = "an arm" if node.op_type == "If" else "an iteration"
        count = max(1, len(bodies)) * 1e3
        figures = (
            f"{lowered_ns / count:.1f} us for {what} by a plan of its own, {plain_ns / count:.1f} us in the runtime"
        )
        share = saved_ns / max(1, self._total_ns)
        if self._min_gain > 0 and share < self._min_gain:
            asked = f"{max(0.0, share):.0%} of a run is saved where {self._min_gain:.0%} is asked for"
            return f"{figures}, so that {asked}"
        return _Lowered(
            node=node.index,
            bodies=tuple(planned),
            width=width,
            beside=beside,
            cost_ns=max(0, cost_ns - saved_ns),
            saved_ns=saved_ns,
            reason=f"{node.op_type} {node.name!r} is run by the engine: {figures}",
        )

    def _put_beside(self, segment: Segment, node: Node, bodies: Sequence[Body[Model]], lowered: _Lowered) -> _Lowered:
        """The same on one core less, if what is beside it can then run at the same time and all ends sooner."""
        narrow = self._cores - 1
        if segment.lane is not None or not 1 <= narrow < segment.width:
            return lowered
        members = groups_of(self._groups, segment.nodes) or ()
        _, beside, _ = split_around(self._groups, members, self._groups.group_of[node.index], beside=True)
        alone_ns = self._cost_ns(beside, 1)
        if alone_ns <= HANDOVER_NS + SEGMENT_OVERHEAD_NS:
            return lowered
        side = self._lower(node, bodies, width=narrow, beside=True)
        if isinstance(side, str):
            return lowered
        together_ns = max(side.cost_ns, alone_ns) + HANDOVER_NS + SEGMENT_OVERHEAD_NS
        serial_ns = lowered.cost_ns + self._cost_ns(beside, segment.width)
        if together_ns >= serial_ns:
            return lowered
        figures = f"{together_ns / 1e3:.1f} us side by side, {serial_ns / 1e3:.1f} us serially"
        return replace(side, reason=f"{side.reason}; others run beside it ({figures})")

    def _cost_ns(self, groups: Sequence[int], width: int) -> int:
        costs = self._groups.group_costs(self._costs.node_ns(width))
        return sum(costs[group] for group in groups)

    def apply(self, plan: Plan, all_lowered: Mapping[int, _Lowered]) -> Plan:
        """The plan with these operators in segments of their own."""
        pieces: list[_Piece] = []
        for segment in plan.segments:
            members = groups_of(self._groups, segment.nodes) or ()
            parts = [_Piece(origin=segment, groups=members, width=segment.width)]
            for index in segment.nodes:
                lowered = all_lowered.get(index)
                if lowered is not None:
                    parts = self._take_out(parts, lowered)
            pieces.extend(parts)
        return self._rebuilt(plan, pieces, list(all_lowered.values()))

    def _take_out(self, parts: Sequence[_Piece], lowered: _Lowered) -> list[_Piece]:
        group = self._groups.group_of[lowered.node]
        made: list[_Piece] = []
        for part in parts:
            if group not in part.groups:
                made.append(part)
                continue
            name = self._graph.nodes[lowered.node].name
            before, beside, after = split_around(self._groups, part.groups, group, beside=lowered.beside)
            if before:
                made.append(replace(part, groups=before, place=f"before {name!r}"))
            made.append(replace(part, groups=(group,), width=lowered.width, lowered=lowered))
            if beside:
                made.append(replace(part, groups=beside, width=1, place=f"beside {name!r}"))
            if after:
                made.append(replace(part, groups=after, place=f"after {name!r}"))
        return made

    def _rebuilt(self, plan: Plan, pieces: Sequence[_Piece], all_lowered: Sequence[_Lowered]) -> Plan:
        drafts = [DraftSegment(groups=piece.groups, width=max(1, piece.width), cause=Cause.FORCED) for piece in pieces]
        partition = assemble(self._groups, drafts, label="lowered", lanes=plan.lanes)
        boundaries = find_boundaries(self._graph, self._groups, partition)
        read = {name for boundary in boundaries for name in boundary.inputs}
        unread = tuple(name for segment in plan.segments for name in segment.inputs if name not in read)
        homes: dict[int, list[int]] = {}
        for position, piece in enumerate(pieces):
            homes.setdefault(piece.origin.index, []).append(position)
        segments = []
        for index, (piece, boundary) in enumerate(zip(pieces, boundaries, strict=True)):
            origin, lowered = piece.origin, piece.lowered
            whole = len(homes[origin.index]) == 1
            # What an order was asked for though no tensor passes, as keeping memory small does.
            ordered = {
                position
                for before in origin.predecessors
                if self._as_barriers or not set(plan.segments[before].outputs) & set(origin.inputs)
                for position in homes[before]
            }
            if self._as_barriers:
                ordered.update(position for position in homes[origin.index] if position < index)
            reason = origin.reason if not piece.place else f"{piece.place}; {origin.reason}"
            segments.append(
                replace(
                    origin,
                    index=index,
                    name=origin.name if whole else f"{origin.name}.{homes[origin.index].index(index)}",
                    nodes=boundary.nodes,
                    inputs=boundary.inputs + (unread if index == 0 else ()),
                    outputs=boundary.outputs,
                    predecessors=tuple(sorted(ordered.union(partition.dag.predecessors[index]))),
                    width=piece.width,
                    cost_ns=lowered.cost_ns
                    if lowered
                    else origin.cost_ns
                    if whole
                    else self._cost_ns(piece.groups, piece.width),
                    bodies=lowered.bodies if lowered else (),
                    reason=lowered.reason if lowered else reason,
                )
            )
        before_ns = plan.provenance.whole_ns or self._total_ns
        provenance = replace(
            plan.provenance,
            source="forced" if self._min_gain == 0 else "tables" if plan.is_whole else plan.provenance.source,
            whole_ns=before_ns,
            chosen_ns=max(0, self._total_ns - sum(lowered.saved_ns for lowered in all_lowered)),
            reason="; ".join((plan.provenance.reason, *(lowered.reason for lowered in all_lowered))),
        )
        return replace(
            plan,
            policy=plan.policy if plan.has_branch_arenas else "adaptive",
            lanes=max(plan.lanes, 2) if any(lowered.beside for lowered in all_lowered) else plan.lanes,
            segments=tuple(segments),
            provenance=provenance,
        )
