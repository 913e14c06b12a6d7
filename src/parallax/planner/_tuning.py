"""The plan search: simulate many plans, measure the best few against the whole model, keep the winner."""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallax.backends.ort import StockSession
from parallax.engine import FeedBinder, FeedSpec, compile_plan, trace_durations
from parallax.errors import BackendError, ConfigError, ParallaxError
from parallax.machine import NOISY_SHARE
from parallax.model import Model
from parallax.planner._backends import wanted_backends
from parallax.planner._by_energy import of_no_effect
from parallax.planner._candidates import PlanningContext, Proposal
from parallax.planner._kept import remember_plan, remembered_plan
from parallax.planner._measuring import (
    ROUNDS,
    Variant,
    difference,
    measure_again_if_noisy,
    pick_winner,
    promising,
)
from parallax.planner._placing import plan_whole_on
from parallax.planner._request import PlanRequest
from parallax.planner._rows import feed_shapes, graph_for_backends, planned_model
from parallax.planner._tuned_bodies import BasePlan, plans_with_bodies
from parallax.planner._tuned_devices import all_device_plans
from parallax.planner._tuned_energy import confirms, decide, energy_judge
from parallax.planner._whole import make_provenance, whole_plan
from parallax.profile import Cache, measure_costs, random_feeds
from parallax.schedule import CPU_BACKEND, Candidate, Plan

logger = logging.getLogger(__name__)

MEASURED_CANDIDATES = 3
"""Of the simulated cuts, how many are compiled and timed."""

MEASURED_SLACK = 1.25
"""A cut predicted to take longer than this times the whole model is not worth compiling."""

CONFIRMING_ROUNDS = 2
"""So many times the rounds decide about the whole model on another backend, against the default alone."""


def tune(request: PlanRequest) -> Plan:
    """Search, measure, keep on disk, and return the plan to run with.

    A plan kept by an earlier search is returned as it is. With devices, the CPU alone, each device's own greedy
    placement and regions by cost are compared. Where other processes kept the machine busy meanwhile, the plan says so
    (`Provenance.is_conclusive`) and is not kept.

    Raises:
        ConfigError: the model does not run on the calibration feeds.
    """
    kept = remembered_plan(request)
    if kept is not None:
        return kept
    model, cores = request.model, request.cores
    progress = request.progress or _silent
    feeds = dict(request.calibration) if request.calibration is not None else random_feeds(model.graph)
    widths = sorted({1, *(2**k for k in range(1, cores.bit_length()) if 2**k < cores), cores})
    source = model.whole()
    measure = functools.partial(
        measure_costs,
        widths=widths,
        feeds=feeds,
        session_options=request.runtime.to_session_options,
        cache=None if request.has_runtime_options else Cache(request.cache_dir),
    )
    progress("profile", 0, 1)
    try:
        costs = measure(
            model,
            progress=lambda done, total: progress("profile", done, total),
        )
    except BackendError as error:
        raise ConfigError(
            f"the model does not run on the feeds it was to be tuned with: {error}",
            fix="give feeds that it accepts with calibration={name: array, ...}, or shapes={name: (...)}",
        ) from error
    judge = energy_judge(request, feeds) if request.objective in Plan.ENERGY_OBJECTIVES else None
    context = PlanningContext(model, cores=cores, costs=costs)
    proposals = context.candidates()
    progress("search", 1, 1)

    variants = [_whole_candidate(source, request, feeds, width) for width in reversed(widths)]
    candidates: list[Candidate] = [
        Candidate(
            label=variant.label,
            segments=1,
            lanes=1,
            simulated_ns=sum(costs.node_ns(variant.plan.segments[0].width)),
            measured_ns=None,
        )
        for variant in variants
    ]
    reference = variants[0].run()
    limit = context.whole_ns * MEASURED_SLACK
    chosen = [proposal for proposal in proposals if proposal.simulated_ns <= limit][:MEASURED_CANDIDATES]
    for number, proposal in enumerate(chosen):
        progress("compile", number, len(chosen))
        label = _label(proposal)
        plan = context.plan(proposal, make_provenance("measured", "being measured"))
        variant, note = _try_variant(label, model, plan, request, feeds, reference)
        if variant is not None:
            # What its segments really take says more than what their operators add up to.
            proposal = context.resimulate(proposal, [segment.cost_ns for segment in variant.plan.segments])
            if not note:
                variants.append(variant)
        candidates.append(
            Candidate(
                label=label,
                segments=len(plan.segments),
                lanes=plan.lanes,
                simulated_ns=proposal.simulated_ns,
                measured_ns=None,
                note=note,
            )
        )
    for proposal in proposals:
        if proposal not in chosen:
            candidates.append(
                Candidate(
                    label=_label(proposal),
                    segments=len(proposal.partition.segments),
                    lanes=proposal.schedule.lanes,
                    simulated_ns=proposal.simulated_ns,
                    measured_ns=None,
                    note="predicted too slow to be worth measuring",
                )
            )
    for name in wanted_backends(request.backends):
        progress(f"compile for {name}", 0, 1)
        label = f"whole model, {name}"
        variant = None
        plan_there, note = plan_whole_on(name, model, cores=cores)
        if plan_there is not None:
            variant, note = _try_variant(label, model, plan_there, request, feeds, reference, spins=True)
        if variant is not None and not note:
            variants.append(variant)
        simulated_ns = 0 if variant is None else variant.plan.segments[0].cost_ns
        candidates.append(
            Candidate(label=label, segments=1, lanes=1, simulated_ns=simulated_ns, measured_ns=None, note=note)
        )
    for name, made, note in all_device_plans(request, context, measure, progress, feed_shapes(feeds)):
        variant = None
        if made is not None:
            variant, note = _try_variant(
                made.label,
                planned_model(model, made.plan),
                made.plan,
                request,
                feeds,
                reference,
                spins=True,
            )
        if variant is not None and not note:
            variants.append(variant)
        candidates.append(
            Candidate(
                label=made.label if made is not None else name,
                segments=0 if made is None else len(made.plan.segments),
                lanes=0 if made is None else made.plan.lanes,
                simulated_ns=0 if made is None else made.simulated_ns,
                measured_ns=None,
                note=note,
            )
        )
    # What plans of bodies would draw is not known of their segments.
    with_bodies = request if judge is None or isinstance(judge, str) else replace(request, plans_bodies=False)
    for label, planned in plans_with_bodies(with_bodies, _bases(variants, request)):
        progress("compile bodies", 0, 1)
        variant, note = _try_variant(label, model, planned, request, feeds, reference, spins=bool(request.devices))
        if variant is not None and not note:
            variants.append(variant)
        candidates.append(
            Candidate(
                label=label,
                segments=len(planned.segments),
                lanes=planned.lanes,
                simulated_ns=0,
                measured_ns=None,
                note=note,
            )
        )
    times, others = measure_again_if_noisy(variants, cores=cores, progress=progress)
    is_noisy = others > NOISY_SHARE * cores
    medians = [round(statistics.median(series)) for series in times]
    measured = {variant.label: median for variant, median in zip(variants, medians, strict=True)}
    candidates = [replace(c, measured_ns=measured.get(c.label)) for c in candidates]
    whole = [
        index
        for index, variant in enumerate(variants)
        if len(variant.plan.segments) == 1 and variant.plan.segments[0].backend != CPU_BACKEND
    ]
    decision = None
    if judge is not None and not isinstance(judge, str):
        try:
            decision = decide(judge, variants, times, objective=request.objective, is_noisy=is_noisy)
        except BackendError as error:
            judge = error.what
    if decision is None:
        winner = 0 if is_noisy else pick_winner(times, whole=whole) or promising(times, whole)
    else:
        winner, candidates = decision.winner, list(decision.noted(candidates))
    if winner:
        rounds = ROUNDS * (CONFIRMING_ROUNDS if winner in whole else 1)
        pair = [variants[0], variants[winner]]
        again, others = measure_again_if_noisy(pair, cores=cores, progress=progress, rounds=rounds)
        is_noisy = others > NOISY_SHARE * cores
        if judge is None or isinstance(judge, str):
            confirmed = bool(pick_winner(again, whole=[1] if winner in whole else []))
        else:
            confirmed = confirms(judge, pair, again)
        winner = 0 if is_noisy or not confirmed else winner
    reason = None if decision is None else decision.reasons[winner]
    plan = _finish(variants[winner], medians, winner, tuple(candidates), reason)
    if isinstance(judge, str):
        plan = of_no_effect(request.objective, plan, judge)
    if is_noisy:
        plan = _undecided(plan, others)
        logger.warning("%s; tune again when the machine is idle", plan.provenance.reason)
    else:
        remember_plan(request, plan)
    return plan


def _bases(variants: Sequence[Variant], request: PlanRequest) -> list[BasePlan]:
    """The plans in which bodies of control flow may be planned: the whole model, the first cut and, of each device, the
    first that shares the model with it, else the whole model beside it."""
    whole = next(variant for variant in variants if variant.plan.is_whole)
    bases = [BasePlan(label="whole model", plan=whole.plan)]
    cut = next(
        (variant for variant in variants if not variant.plan.is_whole and not _devices_of(variant.plan, request)), None
    )
    if cut is not None and all(segment.backend == CPU_BACKEND for segment in cut.plan.segments):
        bases.append(BasePlan(label=cut.label, plan=cut.plan))
    for name in request.devices:
        shared = next(
            (
                variant
                for variant in variants
                if name in _devices_of(variant.plan, request) and len(variant.plan.segments) > 1
            ),
            None,
        )
        if shared is None:
            bases.append(BasePlan(label=f"whole model beside {name}", plan=whole.plan, device=name))
        else:
            bases.append(BasePlan(label=shared.label, plan=shared.plan, device=name))
    return bases


def _devices_of(plan: Plan, request: PlanRequest) -> list[str]:
    """Names that the devices were asked for by, of those that a plan uses."""
    used = {segment.backend for segment in plan.segments}
    return [name for name, device in request.devices.items() if used & {name, device.backend.info.name}]


def _label(proposal: Proposal) -> str:
    return f"{proposal.partition.label}, {proposal.schedule.lanes} lanes"


def _try_variant(
    label: str,
    model: Model,
    plan: Plan,
    request: PlanRequest,
    feeds: Mapping[str, Any],
    reference: object,
    *,
    spins: bool = False,
) -> tuple[Variant | None, str]:
    """The plan, compiled and run; None if it cannot be. And why it must not be timed against the others, or ""."""
    try:
        variant = _split_candidate(label, model, plan, request, feeds, spins=spins)
        return variant, difference(reference, variant.run())
    except ParallaxError as error:
        logger.warning("%s does not run and is left out: %s", label, error)
        return None, f"does not run: {error}"


def _undecided(plan: Plan, others: float) -> Plan:
    reason = f"other processes kept {others:.1f} cores busy while plans were measured, so nothing is concluded"
    segment = replace(plan.segments[0], reason=reason)
    return replace(plan, segments=(segment,), provenance=replace(plan.provenance, reason=reason, is_noisy=True))


def _whole_candidate(
    source: str | bytes,
    request: PlanRequest,
    feeds: Mapping[str, Any],
    width: int,
) -> Variant:
    made = request.runtime.to_session_options()
    made.intra_op_num_threads = width
    session = StockSession(source, made, providers=["CPUExecutionProvider"])
    label = f"whole model, {width} thread{'s' if width > 1 else ''}"
    return Variant(
        label=label,
        run=lambda: session.run(None, feeds),
        plan=whole_plan(request.model, label, cores=request.cores, width=width),
        spins=width > 1,
    )


def _split_candidate(
    label: str,
    model: Model,
    plan: Plan,
    request: PlanRequest,
    feeds: Mapping[str, Any],
    *,
    spins: bool,
) -> Variant:
    planned = graph_for_backends(model, plan, feed_shapes(feeds))  # as the session does, so that what runs is measured
    executor = compile_plan(
        model, plan, request.runtime, backends=request.open_backends, planned=planned, faults=request.faults
    )
    graph = model.graph
    binder = FeedBinder(
        [
            *(FeedSpec.from_tensor(info, required=True) for info in graph.inputs),
            *(FeedSpec.from_tensor(info, required=False) for info in graph.overridable),
        ]
    )
    names = [info.name for info in graph.outputs]

    def run() -> list[Any]:
        bound = binder.bind(feeds)
        return [value.numpy() for value in executor.run(bound.values, names)]

    durations = trace_durations(executor, run)
    segments = tuple(
        replace(segment, cost_ns=duration) for segment, duration in zip(plan.segments, durations, strict=True)
    )
    return Variant(label=label, run=run, plan=replace(plan, segments=segments), spins=spins)


def _finish(
    variant: Variant, medians: Sequence[int], winner: int, candidates: tuple[Candidate, ...], reason: str | None
) -> Plan:
    """The plan that is kept. ``reason``: why it is, where something beside time decided."""
    whole_ns, chosen_ns = medians[0], medians[winner]
    if reason is None:
        reason = _reason_by_time(variant, medians, winner)
    provenance = make_provenance("measured", reason, whole_ns=whole_ns, chosen_ns=chosen_ns, candidates=candidates)
    plan = variant.plan
    if plan.is_whole:
        plan = replace(plan, segments=(replace(plan.segments[0], cost_ns=chosen_ns, reason=reason),))
    return replace(plan, provenance=provenance)


def _reason_by_time(variant: Variant, medians: Sequence[int], winner: int) -> str:
    if winner:
        return f"{variant.label}: took {medians[winner] / medians[0]:.2f} of the whole model's time"
    best = min(medians[1:], default=None)
    if best is None:
        return "nothing else was measured"
    return f"nothing beat the whole model: the best alternative took {best / medians[0]:.2f} of its time"


def _silent(stage: str, done: int, total: int) -> None:
    """No progress was asked for."""
