"""Plans that compute a model in slices of its rows, one after the other, so that a run holds less at once.

Where a chain is split by rows (`parallax.model.split_rows`) and one part runs to its end before the other begins, the
tensors between its operators are held for one part only. Split again, it is a quarter. What is computed is the same.
At the rims of convolutions each part needs rows of the other, and waits for them: models of convolutions gain little.

Constants are computed before: operators that ask for shapes would hold what they ask, and reshapes to shapes that are
not known end a cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Final

from parallax.errors import BackendError
from parallax.graph import OpGraph
from parallax.model import Model, split_rows
from parallax.partition import FusionGroups
from parallax.partition.candidates import Cause, DraftSegment, assemble
from parallax.planner._candidates import PlanningContext, Proposal
from parallax.planner._constants import with_constants
from parallax.planner._request import PlannedModel
from parallax.planner._rows import can_share_rows
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import make_provenance
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Assignment, Schedule

ROUNDS: Final = 3
"""So many times a model is split at most: into eight slices."""

HALF: Final = 500
"""Thousandths of the rows that are in the first part."""

_Slice = tuple[int, ...]
"""In which part a node is, round by round; () for what is computed once, for all."""


def sliced_plans(model: Model, *, cores: int, reason: str) -> Iterator[PlannedModel]:
    """Plans in two, four and eight slices, each with less memory and more time than the one before.

    They end where nothing more can be split, or the runtime refuses what came out. There are none of a model that must
    stay whole, or of open shapes.

    Args:
        model: in the shapes to plan for.
        cores: each segment's threads.
        reason: why slices are asked for, for the plan's provenance.
    """
    if why_model_stays_whole(model) is not None or not can_share_rows(model):
        return
    computed = with_constants(model)
    made = model if computed is None else computed.model
    slices: dict[str, _Slice] = {}
    for rounds in range(1, ROUNDS + 1):
        split = split_rows(made, HALF / 1000, joins_once=True)
        if split is None:
            return
        nodes = made.graph.nodes
        before, slices = slices, {}
        for part, names in enumerate(split.parts):
            for name in names:
                origin = split.origins.get(name)
                slices[name] = (*(() if origin is None else before.get(nodes[origin].name, ())), part)
        made = split.model
        for node in made.graph.nodes:
            if node.name not in slices and node.name in before:
                slices[node.name] = before[node.name]
        try:
            context = PlanningContext(made, cores=cores, fusion_safe=fusion_safe_tensors(made))
        except BackendError:
            return
        proposal = _one_by_one(context, slices)
        provenance = make_provenance(
            "memory",
            f"{reason}: computed in {2**rounds} slices of rows, one after the other",
            whole_ns=context.whole_ns,
            chosen_ns=proposal.simulated_ns,
        )
        plan = replace(
            context.plan(proposal, provenance),
            structure_digest=model.structure_digest,
            rows_permille=HALF,
            rows_rounds=rounds,
            rows_joined=True,
            constants_shapes=None if computed is None else (),
        )
        yield PlannedModel(plan=plan, model=made)


def _one_by_one(context: PlanningContext, slices: Mapping[str, _Slice]) -> Proposal:
    """Each slice as far as it goes, before the next begins."""
    groups = context.groups
    slice_of = [_slice_of(context.graph, groups, group, slices) for group in range(len(groups))]
    order = depth_first(groups, slice_of)
    drafts = [
        DraftSegment(groups=tuple(sorted(run)), width=context.cores, cause=Cause.MEMORY)
        for run in (list(group) for _, group in groupby(order, key=slice_of.__getitem__))
    ]
    partition = assemble(groups, drafts, label="slices of rows", lanes=1)
    group_ns = context.group_ns(context.cores)
    durations = tuple(sum(group_ns[group] for group in draft.groups) for draft in drafts)
    return Proposal(
        partition=partition,
        schedule=Schedule(
            policy="sequential",
            cores=context.cores,
            lanes=1,
            assignments=tuple(
                Assignment(segment=index, width=draft.width, priority=-index, lane=0)
                for index, draft in enumerate(drafts)
            ),
            backfill=False,
        ),
        durations_ns=durations,
        simulated_ns=sum(durations),
    )


def _slice_of(graph: OpGraph, groups: FusionGroups, group: int, slices: Mapping[str, _Slice]) -> _Slice:
    """A fusion group may hold what is computed for all slices beside nodes of one. What nobody else reads, such as rows
    of a constant, is of the slice that reads it."""
    inside = set(groups.members[group])
    found = {
        slices.get(graph.nodes[node].name, ())
        for node in inside - groups.replicated
        if graph.nodes[node].name in slices or not inside.issuperset(graph.successors[node])
    }
    return found.pop() if len(found) == 1 else ()


def depth_first(groups: FusionGroups, slice_of: list[_Slice]) -> list[int]:
    """A topological order of groups that stays with a slice as long as anything of it is ready. O((V + E) log V).

    Then comes what is computed for all, since slices may wait for it, then the slice that is ready first.
    """
    waiting = [len(before) for before in groups.dag.predecessors]
    ready: dict[_Slice, list[int]] = {}
    for group, count in enumerate(waiting):
        if not count:
            heapq.heappush(ready.setdefault(slice_of[group], []), group)
    order: list[int] = []
    current: _Slice = ()
    while any(ready.values()):
        if not ready.get(current):
            current = min((key for key, queue in ready.items() if queue), key=lambda key: (key != (), ready[key][0]))
        group = heapq.heappop(ready[current])
        order.append(group)
        for after in groups.dag.successors[group]:
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready.setdefault(slice_of[after], []), after)
    return order
