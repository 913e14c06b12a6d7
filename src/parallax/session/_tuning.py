"""The plan search: simulate many plans, measure the best few against the uncut model, keep the winner.

The contract is that a kept plan is never slower than the uncut model beyond noise: a cut is kept only
where it wins in the median by a margin, and in most rounds, of one interleaved run.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parallax.backends import DEFAULT_POLICY, Backend, FaultPolicy
from parallax.backends.ort import StockSession
from parallax.engine import compile_plan, trace_durations
from parallax.errors import BackendError, ConfigError, ParallaxError
from parallax.graph import CostModel
from parallax.machine import DISTURBED_SHARE, CoreMeter, LoadMeter
from parallax.model import Model, split_rows
from parallax.profile import Cache, measure_costs, random_feeds
from parallax.schedule import CPU_BACKEND, Candidate, Plan
from parallax.session._backends import wanted_backends
from parallax.session._candidates import PlanningContext, Proposal
from parallax.session._devices import DevicePlan, DeviceStudy, with_price
from parallax.session._feeds import FeedBinder, FeedSpec
from parallax.session._options import PlanningOptions, Progress
from parallax.session._planning import (
    device_rooms,
    feed_shapes,
    graph_for_backends,
    may_share_rows,
    plan_whole_on,
    plan_whole_within,
    planned_model,
    remember_plan,
    remembered_plan,
)
from parallax.session._runtime_options import runtime_options
from parallax.session._whole import make_provenance, uncut_plan

logger = logging.getLogger(__name__)

MEASURED_CANDIDATES = 3
"""Of the simulated cuts, how many are compiled and timed."""

MEASURED_SLACK = 1.25
"""A cut predicted to take longer than this times the uncut model is not worth compiling."""

ROUNDS = 25
TURN_NS = 4_000_000
"""Least time of one peer's turn within a round; quick models run several times per turn."""

LONGEST_NS = 30_000_000_000
"""Measuring stops after this, if at least MIN_ROUNDS are done."""

MIN_ROUNDS = 7

KEEP_RATIO = 0.95
"""A plan other than the default must take at most this share of its time, in two measurements: less is noise, and
the best of several figures flatters itself."""

STEADY_RATIO = 0.85
"""... or, where it is no slower in the median, at most this share of the default's mean."""

KEEP_WINS = 2 / 3
"""... and be the quicker one in at least this share of the rounds."""

WHOLE_KEEP_RATIO = 0.98
"""The same for the whole model on another backend: nothing is handed over and it is one figure, not the best of
several, so a small gain that two measurements show is one."""

WHOLE_KEEP_WINS = 0.6
"""Likewise: where single rounds differ by as much as the two libraries, to ask for more misses gains of 7%."""

CONFIRMING_ROUNDS = 2
"""So many times the rounds decide about the whole model on another backend, against the default alone."""

SHARES = (0.75, 1.0, 1.25)
"""Shares of the rows that a device is tried with, times the one at which both sides alone would end together ..."""
LEAST_SHARE = 0.1
"""... within this of none and of all."""

# How long ONNX Runtime's idle pool may go on spinning after a run (measured: some 40 ms of CPU at most); the
# next peer waits it out, or it would share its cores with a pool that does nothing.
SPIN_PAUSE_S = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to run the model, to be timed against others."""

    label: str
    run: Callable[[], object]
    plan: Plan
    spins: bool


def tune(
    model: Model,
    options: PlanningOptions,
    session_options: Any,
    *,
    cores: int,
    devices: Mapping[str, Backend] | None = None,
) -> Plan:
    """Search, measure, keep on disk, and return the plan to run with.

    A plan kept by an earlier search is returned as it is.

    Args:
        devices: those of the options, opened. With them, the CPU alone, each device's own greedy placement and
            regions by cost are compared.

    Raises:
        ConfigError: the model does not run on the calibration feeds.
    """
    kept = remembered_plan(model, options, session_options, cores=cores)
    if kept is not None and not kept.provenance.disturbed:
        return kept
    progress = options.progress or _silent
    feeds = dict(options.calibration) if options.calibration is not None else random_feeds(model.graph)
    widths = sorted({1, *(2**k for k in range(1, cores.bit_length()) if 2**k < cores), cores})
    source = model.whole()
    progress("profile", 0, 1)
    try:
        costs = measure_costs(
            model,
            widths=widths,
            feeds=feeds,
            session_options=runtime_options(session_options).to_session_options,
            cache=Cache(options.cache_dir) if session_options is None else None,
            progress=lambda done, total: progress("profile", done, total),
        )
    except BackendError as error:
        raise ConfigError(
            f"the model does not run on the feeds it was to be tuned with: {error}",
            fix="give feeds that it accepts with calibration={name: array, ...}, or shapes={name: (...)}",
        ) from error
    context = PlanningContext(model, cores=cores, costs=costs)
    proposals = context.candidates()
    progress("search", 1, 1)

    peers = [_uncut_peer(source, session_options, feeds, width, model, cores) for width in reversed(widths)]
    candidates: list[Candidate] = [
        Candidate(
            label=peer.label,
            segments=1,
            lanes=1,
            simulated_ns=sum(costs.node_ns(peer.plan.segments[0].width)),
            measured_ns=None,
        )
        for peer in peers
    ]
    reference = peers[0].run()
    limit = context.uncut_ns * MEASURED_SLACK
    chosen = [proposal for proposal in proposals if proposal.simulated_ns <= limit][:MEASURED_CANDIDATES]
    for number, proposal in enumerate(chosen):
        progress("compile", number, len(chosen))
        label = _label(proposal)
        plan = context.plan(proposal, make_provenance("measured", "being measured"))
        peer, note = _try_peer(label, model, plan, session_options, feeds, reference)
        if peer is not None:
            # What its segments really take says more than what their operators add up to.
            proposal = context.resimulate(proposal, [segment.cost_ns for segment in peer.plan.segments])
            if not note:
                peers.append(peer)
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
    for name in wanted_backends(options.backends):
        progress(f"compile for {name}", 0, 1)
        label = f"uncut, {name}"
        peer = None
        plan_there, note = plan_whole_on(name, model, cores=cores)
        if plan_there is not None:
            peer, note = _try_peer(
                label, model, plan_there, session_options, feeds, reference, spins=True, faults=options.faults
            )
        if peer is not None and not note:
            peers.append(peer)
        simulated_ns = 0 if peer is None else peer.plan.segments[0].cost_ns
        candidates.append(
            Candidate(label=label, segments=1, lanes=1, simulated_ns=simulated_ns, measured_ns=None, note=note)
        )
    for name, backend in (devices or {}).items():
        progress(f"compile for {name}", 0, 1)
        room = device_rooms(options).get(name)
        proposed = _device_plans(name, backend, context, model, cores=cores, room_bytes=room)
        if may_share_rows(model, options):
            shared = _shared_rows(
                name,
                backend,
                context,
                room_bytes=room,
                cost=functools.partial(
                    measure_costs,
                    widths=widths,
                    feeds=feeds,
                    session_options=runtime_options(session_options).to_session_options,
                    cache=Cache(options.cache_dir) if session_options is None else None,
                ),
                progress=functools.partial(progress, f"share rows with {name}"),
            )
            proposed += [(shared, "")] if shared is not None else []
        for made, note in proposed:
            peer = None
            if made is not None:
                peer, note = _try_peer(
                    made.label,
                    planned_model(model, made.plan),
                    made.plan,
                    session_options,
                    feeds,
                    reference,
                    spins=True,
                    devices=devices,
                    faults=options.faults,
                )
            if peer is not None and not note:
                peers.append(peer)
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
    times, others = _measure_undisturbed(peers, cores=cores, progress=progress)
    disturbed = others > DISTURBED_SHARE * cores
    medians = [round(statistics.median(series)) for series in times]
    measured = {peer.label: median for peer, median in zip(peers, medians, strict=True)}
    candidates = [replace(c, measured_ns=measured.get(c.label)) for c in candidates]
    whole = [
        index
        for index, peer in enumerate(peers)
        if len(peer.plan.segments) == 1 and peer.plan.segments[0].backend != CPU_BACKEND
    ]
    winner = 0 if disturbed else pick_winner(times, whole=whole) or _promising(times, whole)
    if winner:
        rounds = ROUNDS * (CONFIRMING_ROUNDS if winner in whole else 1)
        again, others = _measure_undisturbed([peers[0], peers[winner]], cores=cores, progress=progress, rounds=rounds)
        disturbed = others > DISTURBED_SHARE * cores
        confirmed = pick_winner(again, whole=[1] if winner in whole else [])
        winner = 0 if disturbed or not confirmed else winner
    plan = _finish(peers[winner], medians, winner, tuple(candidates))
    if disturbed:
        plan = _undecided(plan, others)
        logger.warning("%s; tune again when the machine is idle", plan.provenance.reason)
    remember_plan(model, plan, options, session_options, cores=cores)
    return plan


def _device_plans(
    name: str, backend: Backend, context: PlanningContext, model: Model, *, cores: int, room_bytes: int | None
) -> list[tuple[DevicePlan | None, str]]:
    """What to measure of one device: its own greedy placement, and regions by cost; or None, and why there is none."""
    found: list[tuple[DevicePlan | None, str]] = []
    try:
        study = DeviceStudy(context, with_price(backend, width=cores), room_bytes=room_bytes)
        if backend.info.is_emulated:
            # It computes with the processor's kernels, so that what it does not take cannot be left to itself.
            greedy = study.greedy
        else:
            plan, why = plan_whole_within(study, name, model, cores=cores)
            greedy = None if plan is None else DevicePlan(label=f"uncut, {name}", plan=plan, simulated_ns=0)
            if greedy is None:
                found.append((None, why))
        plans = [greedy, study.best, study.in_sequence]
        for made in plans:
            if made is not None and all(other is None or other.plan != made.plan for other, _ in found):
                found.append((made, ""))
        if study.best is None:
            found.append((None, study.reason))
    except ParallaxError as error:
        logger.warning("%s is left out: %s", name, error)
        found.append((None, str(error)))
    return found


def _shared_rows(
    name: str,
    backend: Backend,
    context: PlanningContext,
    *,
    room_bytes: int | None,
    cost: Callable[[Model], CostModel],
    progress: Callable[[int, int], None],
) -> DevicePlan | None:
    """The best plan in which rows of single operators are shared by device and processor; None where none is to be had.

    So even what follows one another in the model runs side by side (see `parallax.model.split_rows`). A few shares
    around the one that balances both sides are costed and simulated.

    Args:
        cost: measures a model.
    """
    model = context.model
    best: DevicePlan | None = None
    try:
        priced = with_price(backend, width=context.cores)
        offer = DeviceStudy(context, priced).offer
        if offer is None:
            return None
        for number, factor in enumerate(SHARES):
            progress(number, len(SHARES))
            permille = round(1000 * min(max(offer.balanced_share * factor, LEAST_SHARE), 1 - LEAST_SHARE))
            split = split_rows(model, permille / 1000)
            if split is None:
                return None
            own = PlanningContext(split.model, cores=context.cores, costs=cost(split.model))
            found = DeviceStudy(own, priced, split=split, room_bytes=room_bytes).best
            if found is not None and (best is None or found.simulated_ns < best.simulated_ns):
                # It is a plan for the model as it is, which is split when the plan is compiled.
                plan = replace(found.plan, structure_digest=model.structure_digest, rows_permille=permille)
                label = f"rows shared with {name}, {permille / 10:g}% of them there"
                best = replace(found, label=label, plan=plan)
    except ParallaxError as error:
        logger.warning("rows are not shared with %s: %s", name, error)
    return best


def _label(proposal: Proposal) -> str:
    return f"{proposal.partition.label}, {proposal.schedule.lanes} lanes"


def _try_peer(
    label: str,
    model: Model,
    plan: Plan,
    session_options: Any,
    feeds: Mapping[str, Any],
    reference: object,
    *,
    spins: bool = False,
    devices: Mapping[str, Backend] | None = None,
    faults: FaultPolicy = DEFAULT_POLICY,
) -> tuple[Peer | None, str]:
    """The plan, compiled and run; None if it cannot be. And why it must not be timed against the others, or ""."""
    try:
        peer = _cut_peer(label, model, plan, session_options, feeds, spins=spins, devices=devices, faults=faults)
        return peer, difference(reference, peer.run())
    except ParallaxError as error:
        logger.warning("%s does not run and is left out: %s", label, error)
        return None, f"does not run: {error}"


def _promising(times: Sequence[Sequence[int]], whole: Collection[int]) -> int:
    """The quickest of the series ``whole``, if only the share of rounds won speaks against it; else 0."""
    medians = {index: statistics.median(times[index]) for index in whole}
    best = min(medians, key=lambda index: medians[index], default=0)
    return best if best and medians[best] <= WHOLE_KEEP_RATIO * statistics.median(times[0]) else 0


def _measure_undisturbed(
    peers: Sequence[Peer], *, cores: int, progress: Progress, rounds: int = ROUNDS
) -> tuple[list[list[int]], float]:
    """Times per peer, and how many cores others kept busy meanwhile; a disturbed measurement is done once more."""
    others = 0.0
    times: list[list[int]] = []
    for stage in ("measure", "measure again: the machine was busy"):
        meter = LoadMeter()
        times = measure_interleaved(peers, progress=functools.partial(progress, stage), rounds=rounds)
        others = meter.disturbance(cores)
        if others <= DISTURBED_SHARE * cores:
            break
    return times, others


def _undecided(plan: Plan, others: float) -> Plan:
    reason = f"other processes kept {others:.1f} cores busy while plans were measured, so nothing is concluded"
    segment = replace(plan.segments[0], reason=reason)
    return replace(plan, segments=(segment,), provenance=replace(plan.provenance, reason=reason, disturbed=True))


def pick_winner(times: Sequence[Sequence[int]], *, whole: Collection[int] = ()) -> int:
    """Index of the series to keep. Series 0 is the default and stays unless another clearly beats it.

    Compared round by round: the median of the ratios must be at most KEEP_RATIO (and so must the ratio of
    the medians), and a share KEEP_WINS of them below 1, so that neither a few lucky rounds nor a hair's
    breadth decide. Or it must be no slower in the median and clearly steadier. For the series ``whole``,
    WHOLE_KEEP_RATIO and WHOLE_KEEP_WINS take their places.
    """
    best, best_ratio = 0, 1.0
    for index in range(1, len(times)):
        ratios = [mine / base for mine, base in zip(times[index], times[0], strict=True)]
        median = statistics.median(ratios)
        wins = sum(ratio < 1 for ratio in ratios)
        # Where times fall into two clusters, the ratios by round and that of the medians can disagree.
        overall = max(median, statistics.median(times[index]) / statistics.median(times[0]))
        needed, share = (WHOLE_KEEP_RATIO, WHOLE_KEEP_WINS) if index in whole else (KEEP_RATIO, KEEP_WINS)
        quicker = overall <= needed and wins >= share * len(ratios)
        # A quick model on several threads can be quick or slow by turns; what is as quick and steady is better.
        mean = statistics.fmean(times[index]) / statistics.fmean(times[0])
        steadier = overall <= 1 and mean <= STEADY_RATIO
        if (quicker or steadier) and median < best_ratio:
            best, best_ratio = index, median
    return best


def measure_interleaved(
    peers: Sequence[Peer], *, progress: Callable[[int, int], None], rounds: int = ROUNDS
) -> list[list[int]]:
    """Time the peers in turn, round after round; returns per peer the ns of one run, per round.

    Within a round each peer has one turn: a run that is not counted, then enough runs to fill TURN_NS,
    of which the median counts. The order rotates, so that no peer always follows the same one. Turns on several cores
    begin when the machine gives them all.
    """
    repeats = []
    for peer in peers:
        peer.run()
        begin = time.perf_counter_ns()
        peer.run()
        repeats.append(max(1, min(100, TURN_NS // max(1, time.perf_counter_ns() - begin))))
    series: list[list[int]] = [[] for _ in peers]
    used = [max(peer.plan.lanes, *(segment.width for segment in peer.plan.segments)) for peer in peers]
    meter = CoreMeter(max(used))
    began = time.perf_counter_ns()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter_ns() - began > LONGEST_NS:
            break
        progress(number, rounds)
        for offset in range(len(peers)):
            index = (number + offset) % len(peers)
            run = peers[index].run
            if used[index] > 1:
                meter.await_cores(run)
            run()
            turn = []
            for _ in range(repeats[index]):
                begin = time.perf_counter_ns()
                run()
                turn.append(time.perf_counter_ns() - begin)
            series[index].append(round(statistics.median(turn)))
            if peers[index].spins:
                time.sleep(SPIN_PAUSE_S)
    progress(rounds, rounds)
    return series


def difference(expected: object, actual: object, *, tolerance: float = 1e-4) -> str:
    """How two lists of outputs differ, or "" where they agree.

    Bit for bit, or within ``tolerance`` of the largest magnitude of the output: another cut may let
    the runtime choose another layout, and with it another order of additions.
    """
    if not isinstance(expected, Sequence) or not isinstance(actual, Sequence):
        return "not comparable"
    for position, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.shape != got.shape or want.dtype != got.dtype:
            return f"output {position} is {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        if np.array_equal(want, got, equal_nan=want.dtype.kind == "f"):
            continue
        if want.dtype.kind != "f":
            return f"output {position} differs"
        scale = max(1e-30, float(np.nanmax(np.abs(want.astype(np.float64)), initial=0.0)))
        if not np.allclose(want, got, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"output {position} differs beyond {tolerance:g} of its scale"
    return ""


def _uncut_peer(
    source: str | bytes,
    session_options: Any,
    feeds: Mapping[str, Any],
    width: int,
    model: Model,
    cores: int,
) -> Peer:
    made = runtime_options(session_options).to_session_options()
    made.intra_op_num_threads = width
    session = StockSession(source, made, providers=["CPUExecutionProvider"])
    label = f"uncut, {width} thread{'s' if width > 1 else ''}"
    return Peer(
        label=label,
        run=lambda: session.run(None, feeds),
        plan=uncut_plan(model, label, cores=cores, width=width),
        spins=width > 1,
    )


def _cut_peer(
    label: str,
    model: Model,
    plan: Plan,
    session_options: Any,
    feeds: Mapping[str, Any],
    *,
    spins: bool,
    devices: Mapping[str, Backend] | None = None,
    faults: FaultPolicy = DEFAULT_POLICY,
) -> Peer:
    planned = graph_for_backends(model, plan, feed_shapes(feeds))  # as the session does, so that what runs is measured
    executor = compile_plan(
        model, plan, runtime_options(session_options), backends=devices, planned=planned, faults=faults
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
    return Peer(label=label, run=run, plan=replace(plan, segments=segments), spins=spins)


def _finish(peer: Peer, medians: Sequence[int], winner: int, candidates: tuple[Candidate, ...]) -> Plan:
    uncut_ns, chosen_ns = medians[0], medians[winner]
    if winner == 0:
        best = min(medians[1:], default=None)
        reason = (
            "nothing else was measured"
            if best is None
            else f"nothing beat the uncut model: the best alternative took {best / uncut_ns:.2f} of its time"
        )
    else:
        reason = f"{peer.label}: took {chosen_ns / uncut_ns:.2f} of the uncut model's time"
    provenance = make_provenance("measured", reason, uncut_ns=uncut_ns, chosen_ns=chosen_ns, candidates=candidates)
    plan = peer.plan
    if plan.is_uncut:
        plan = replace(plan, segments=(replace(plan.segments[0], cost_ns=chosen_ns, reason=reason),))
    return replace(plan, provenance=provenance)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress was asked for."""
