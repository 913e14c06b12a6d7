"""Plans from the tables of costs: split where these promise enough, at every branch where that is asked for."""

from __future__ import annotations

import math
from dataclasses import replace

from parallax.engine import is_feedable
from parallax.errors import BackendError
from parallax.graph import OpGraph
from parallax.model import Model
from parallax.partition.candidates import by_branches
from parallax.planner._candidates import PlanningContext, Proposal
from parallax.planner._default_policy import DENSE, DENSE_ELEMENTS, KNOWN_DOMAINS, ONE_CORE, PRECOMPILED, SCALABLE
from parallax.planner._small import LEAST_SAVING_NS, longest_path_ns, small_by_costs
from parallax.planner._whole import make_provenance, whole_plan
from parallax.profile import estimate_costs, fusion_safe_tensors
from parallax.schedule import Plan

DEFAULT_MIN_GAIN = 0.15
"""Without measurement the tables must promise this much: they are right about orders, not percents."""


def why_model_stays_whole(model: Model) -> str | None:
    """Why this model cannot be cut at all, or None."""
    if model.why_whole is not None:
        return f"only the runtime itself knows what the model says: {model.why_whole}"
    graph = model.graph
    if len(graph.nodes) < 2 and not any(node.bodies for node in graph.nodes):
        return "fewer than two operators: nothing to run side by side"
    for info in (*graph.inputs, *graph.overridable, *graph.outputs):
        if not is_feedable(info):
            return f"{info.name!r} is not a tensor of a type that numpy has; only the whole session converts it"
    for info in graph.outputs:
        if info.name not in graph.producers:
            return f"output {info.name!r} is computed by no operator"
    if any(node.op_type == PRECOMPILED for _, node in graph.walk()):
        return "it holds parts that were compiled for an execution provider; only the whole session opens those"
    foreign = {node.domain for _, node in graph.walk()} - KNOWN_DOMAINS
    if foreign:
        return f"operators of domain {min(foreign)!r} are the caller's own; only the whole session knows them"
    return None


def forced_plan(model: Model, *, cores: int) -> Plan:
    """Every branch a segment, whether it gains or not: for tests, and to see what cutting costs."""
    try:
        fusion_safe = fusion_safe_tensors(model)
    except BackendError as error:
        return whole_plan(model, f"the runtime refuses the model: {error}", cores=cores)
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe)
    lanes = max(2, cores)
    proposal = context.propose(by_branches(context.groups, lanes=lanes))
    # Hand-overs are what a forced cut is there to show, even where one lane would be quicker.
    proposal = replace(proposal, schedule=replace(proposal.schedule, lanes=lanes))
    reason = 'split at every branch because split="always" asks for it'
    if proposal.partition.is_whole:
        return whole_plan(model, "the model cannot be split: one branch", cores=cores)
    return context.plan(
        proposal,
        make_provenance("forced", reason, whole_ns=context.whole_ns, chosen_ns=proposal.simulated_ns),
    )


def forced_body_plan(body: Model, *, cores: int) -> Plan:
    obstacle = why_model_stays_whole(body)
    return forced_plan(body, cores=cores) if obstacle is None else whole_plan(body, obstacle, cores=cores)


def plan_from_tables(model: Model, *, cores: int, min_gain: float | None = None) -> Plan:
    """Cut only where the tables, unmeasured, promise at least ``min_gain``. Must not delay opening.

    Args:
        min_gain: as the caller named it. None: `DEFAULT_MIN_GAIN`, and a saving that is clear in microseconds too.
    """
    if cores < 2:
        return whole_plan(model, ONE_CORE, cores=cores)
    if not may_gain_clearly(model.graph):
        return whole_plan(
            model,
            DENSE,
            cores=cores,
        )
    context = PlanningContext(model, cores=cores)
    least_ns = 0
    if min_gain is None:
        min_gain, least_ns = DEFAULT_MIN_GAIN, LEAST_SAVING_NS
        obstacle = small_by_costs(context.graph, context.costs, cores=cores)
        if obstacle is not None:
            return whole_plan(model, obstacle, cores=cores)
    best = context.best
    if best is not None and _promises(context, best, min_gain, least_ns):
        # Only now is the runtime's optimiser worth asking: a cut may lie only where it leaves tensors alone, and what
        # it merges or drops (equal chains, say) is not there to be run side by side.
        context = PlanningContext(model, cores=cores, costs=context.costs, fusion_safe=fusion_safe_tensors(model))
        best = context.best
    if best is None:
        return whole_plan(model, "no branches worth running side by side", cores=cores)
    gain = _gain(context, best)
    if not _promises(context, best, min_gain, least_ns):
        asked = f"{min_gain:.0%} is asked for" + (f", and {least_ns / 1e3:.0f} µs" if least_ns else "")
        saving_us = (context.whole_ns - best.simulated_ns) / 1e3
        return whole_plan(
            model, f"the best split promises {gain:.0%} less latency ({saving_us:.0f} µs); {asked}", cores=cores
        )
    return context.plan(
        best,
        make_provenance(
            "tables",
            f"{best.partition.label}: tables promise {gain:.0%} less latency than the whole model",
            whole_ns=context.whole_ns,
            chosen_ns=best.simulated_ns,
        ),
    )


def _promises(context: PlanningContext, proposal: Proposal, min_gain: float, least_ns: int) -> bool:
    return _gain(context, proposal) >= min_gain and context.whole_ns - proposal.simulated_ns >= least_ns


def _gain(context: PlanningContext, proposal: Proposal) -> float:
    return 1 - proposal.simulated_ns / max(1, context.whole_ns)


def may_gain_clearly(graph: OpGraph) -> bool:
    """A cheap necessary condition for a clear gain from tables: no dense layers to speak of.

    Looks at operator types and weight shapes only, so that opening a model that will not be cut costs no
    shape inference. A model with dense layers may still gain from a cut, but only measuring can tell.
    """
    dense = 0
    for node in graph.nodes:
        if node.op_type in SCALABLE:
            for name in node.inputs:
                weight = graph.initializers.get(name)
                if weight is not None:
                    dense += math.prod(dim for dim in weight.shape or () if isinstance(dim, int))
            if dense > DENSE_ELEMENTS:
                return False
    return True


def least_share(graph: OpGraph, *, cores: int) -> float:
    """The share of a graph's time that remains at best if work runs side by side, by the tables: a lower bound.

    Nothing ends before the longest path through the graph does; operators with bodies take the least share of those.
    Dense layers gain nothing clearly (`may_gain_clearly`). For graphs whose types are inferred; no model is made.
    """
    costs = estimate_costs(graph, cores=cores)
    narrow, wide = costs.node_ns(1), costs.node_ns(cores)
    weights = [
        min(narrow[node.index], wide[node.index])
        * min((least_share(body, cores=cores) for _, body in node.bodies), default=1.0)
        for node in graph.nodes
    ]
    best = longest_path_ns(graph, weights) if may_gain_clearly(graph) else sum(weights)
    return best / max(1, min(sum(narrow), sum(wide)))
