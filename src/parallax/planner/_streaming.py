"""Models whose weights do not fit into the memory they are to run in: when that is so, and the plan for them."""

from __future__ import annotations

import logging
from typing import Final

from parallax.machine import memory_limit_bytes
from parallax.model import Model
from parallax.partition.candidates import Partition, by_weight, crossing_bytes, group_weights
from parallax.planner._candidates import PlanningContext, Proposal
from parallax.planner._choices import is_kept_whole
from parallax.planner._planning import plan_model
from parallax.planner._request import PlannedModel, PlanRequest
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import make_provenance
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Assignment, Plan, Schedule

logger = logging.getLogger(__name__)

PROCESS_BYTES: Final = 96 << 20
"""What a process takes beside mapped weights: code of Python and of the runtime, and what both and a run allocate. On
the zoo 90 to 130 MiB, of which some of the code is rarely used."""

SHARE: Final = 16
"""Segments have at most one in so many of the bytes they are to fit into: one or two of them are being read while
one runs, and all the rest of the budget holds weights that stay."""

MIN_SEGMENT_BYTES: Final = 1 << 20
"""Below this, calls and hand-overs would cost more than the reading."""


def binding_limit(weight_bytes: int, memory_limit: int | None) -> int | None:
    """The limit on the memory of a process, if so many bytes of weights do not fit into it beside the rest.

    Args:
        memory_limit: None for that of this process, by its control groups and the machine.
    """
    limit = memory_limit_bytes() if memory_limit is None else memory_limit
    return limit if weight_bytes + PROCESS_BYTES > limit else None


def plan_model_within(request: PlanRequest, memory_limit: int | None) -> PlannedModel:
    """`plan_model` for a bundle, or a chain of segments if weights do not fit into the memory it is to run in.

    Args:
        memory_limit: as in `binding_limit`.

    Raises: BackendError if the runtime refuses the model.
    """
    model = request.model
    limit = binding_limit(model.weight_bytes, memory_limit)
    if limit is None:
        return plan_model(request)
    shortage = f"{model.weight_bytes >> 20} MiB of weights do not fit into {limit >> 20} MiB of memory beside the rest"
    obstacle = "it is to stay whole" if is_kept_whole(request) else why_model_stays_whole(model)
    if obstacle is not None:
        logger.warning("%s, and cannot be read segment by segment: %s", shortage, obstacle)
        return plan_model(request)
    plan = streamed_plan(model, cores=request.cores, budget_bytes=limit, reason=shortage)
    if request.objective in Plan.ENERGY_OBJECTIVES:
        from parallax.planner._by_energy import of_no_effect  # few ask for it

        plan = of_no_effect(request.objective, plan, "there is no other plan for so little memory")
    return PlannedModel(plan=plan, model=model)


def streamed_plan(model: Model, *, cores: int, budget_bytes: int, reason: str) -> Plan:
    """A chain of segments, each on all cores, with weights of at most a `SHARE`-th of ``budget_bytes`` each.

    Args:
        model: in the shapes to plan for.
        budget_bytes: memory that the model is to run in.
        reason: for the plan's provenance.

    Raises: BackendError if the runtime refuses the model.
    """
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe_tensors(model))
    graph, groups = context.graph, context.groups
    partition = by_weight(
        groups,
        group_weights(graph, groups),
        segment_bytes=max(budget_bytes // SHARE, MIN_SEGMENT_BYTES),
        crossing=crossing_bytes(graph, groups),
        width=cores,
    )
    proposal = _in_order(context, partition)
    provenance = make_provenance(
        "memory", reason, whole_ns=context.whole_ns, chosen_ns=proposal.simulated_ns if len(groups) else None
    )
    return context.plan(proposal, provenance)


def _in_order(context: PlanningContext, partition: Partition) -> Proposal:
    """One after the other, in the order the weights are read in."""
    group_ns = context.group_ns(context.cores)
    durations = tuple(sum(group_ns[group] for group in segment.groups) for segment in partition.segments)
    return Proposal(
        partition=partition,
        schedule=Schedule(
            policy="sequential",
            cores=context.cores,
            lanes=1,
            assignments=tuple(
                Assignment(segment=index, width=segment.width, priority=-index, lane=0)
                for index, segment in enumerate(partition.segments)
            ),
            backfill=False,
        ),
        durations_ns=durations,
        simulated_ns=sum(durations),
    )
