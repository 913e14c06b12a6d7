"""Plans for ``objective="energy"`` and ``"edp"``: of all candidates, the one of the least modelled joules.

The constants of the model are bands, so what takes least of all may depend on where in them the truth lies. Candidates
are compared at all corners: one that takes no more than any baseline at any of them is taken, the least by typical
constants where there are several. Yardsticks are what would run otherwise: the whole model on all threads of the CPU,
all that each device takes, and the plan by time. Where no candidate is below all of them everywhere, the one is taken
that exceeds the least of them by the smallest factor, and its reason says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.backends.ort import shared_threads
from parallax.energy import Band, EnergyComparison, Usage
from parallax.errors import BackendError
from parallax.graph import CostModel, OpGraph
from parallax.planner._candidates import HANDOVER_NS, SEGMENT_OVERHEAD_NS, PlanningContext
from parallax.planner._choices import is_split_forced, is_yardstick
from parallax.planner._device_model import DeviceModel, model_for_devices
from parallax.planner._devices import DeviceStudy
from parallax.planner._placing import plan_whole_within
from parallax.planner._power import ModelledMachine, modelled_machine, touched_bytes
from parallax.planner._request import PlanRequest
from parallax.planner._rows import can_share_rows, open_inputs, planned_model
from parallax.planner._shared import SharedPlan, common_costs, device_studies, plan_shared
from parallax.planner._whole import make_provenance, whole_plan
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Candidate, Plan, simulate_plan
from parallax.schedule.placement import JudgedPlacement, Rank

_CUTS: Final = 4
"""Of the cuts for the CPU alone, how many are looked at whole: the best by the costs of their segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyCandidate:
    """A plan and what a run of it keeps busy on the machine that is modelled."""

    label: str
    plan: Plan
    """Without its provenance."""
    usage: Usage
    simulated_ns: int
    """Predicted time of a run here."""
    is_yardstick: bool = False
    """Whether no plan is to take more joules than this one."""


def plan_by_energy(request: PlanRequest, by_time: Callable[[PlanRequest], Plan]) -> Plan:
    """The plan of the least modelled joules, or joules x seconds; the plan by time, and why, where joules are unknown.

    Args:
        by_time: plans by time, from tables and prices alone.

    Raises: BackendError if a device cannot tell what it takes.
    """
    machine = modelled_machine(request.devices, cores=request.cores)
    why = why_not_by_energy(request) or (machine if isinstance(machine, str) else None)
    by_its_time = replace(request, objective="latency")
    if why is None and not isinstance(machine, str):
        # Bodies of control flow run as they come: what plans of theirs would draw is not modelled.
        quickest = by_time(replace(by_its_time, plans_bodies=False))
        try:
            return _EnergyPlanner(request, machine, quickest).plan()
        except BackendError as error:
            why = f"the runtime refuses the model: {error}"
    return of_no_effect(request.objective, by_time(by_its_time), why or "")


def why_not_by_energy(request: PlanRequest) -> str | None:
    """Why joules do not decide about plans of this request, or None."""
    if is_yardstick(request.policy):
        return "the policy is a baseline for comparisons, whose plan runs whatever it takes"
    if is_split_forced(request):
        return 'the plan is the one that was asked for (split="always" or min_gain=0)'
    if request.model.why_whole is not None:
        return f"only the runtime itself knows what the model says: {request.model.why_whole}"
    unknown = open_inputs(request.model)
    if unknown and not request.tune:
        return f"what a run takes depends on the shape of {unknown[0].name!r} (shapes= says for which to plan)"
    return None


def of_no_effect(objective: str, plan: Plan, why: str) -> Plan:
    """A plan that joules had no part in, which says so."""
    reason = f'{plan.provenance.reason}; objective="{objective}" is of no effect: {why}'
    provenance = replace(plan.provenance, reason=reason)
    if not plan.is_whole:
        return replace(plan, provenance=provenance)
    segments = tuple(replace(segment, reason=reason) for segment in plan.segments)
    return replace(plan, segments=segments, provenance=provenance)


def whole_label(width: int) -> str:
    """How the whole model on so many threads of the CPU is told."""
    return f"whole model, {width} thread{'s' if width > 1 else ''}"


def whole_widths(request: PlanRequest, known: Sequence[int]) -> tuple[int, ...]:
    """Numbers of threads that the whole model may be opened with, of those that costs are known for; all first.

    The caller's session options, and a thread pool that all sessions share, have decided it.
    """
    if request.has_runtime_options or shared_threads() is not None:
        return (request.cores,)
    return tuple(sorted({request.cores, *(width for width in known if width <= request.cores)}, reverse=True))


class _EnergyPlanner:
    """Finds the candidates of one request, and chooses."""

    def __init__(self, request: PlanRequest, machine: ModelledMachine, quickest: Plan) -> None:
        self._request = request
        self._machine = machine
        self._quickest = quickest
        self._computed: DeviceModel | None = model_for_devices(request) if request.devices else None
        model = request.model
        shown = model if self._computed is None else self._computed.model
        self._context = PlanningContext(shown, cores=request.cores, fusion_safe=fusion_safe_tensors(shown))
        self._bytes = touched_bytes(self._context.graph)
        backends = [device.backend for device in request.devices.values()]
        self._costs: CostModel = common_costs(self._context, backends)

    def plan(self) -> Plan:
        """The best candidate, with what was compared."""
        request = self._request
        candidates = [*self._wholes(), *self._on_devices(), self._by_time()]
        baselines = [candidate.usage for candidate in candidates if candidate.is_yardstick]
        comparison = EnergyComparison(self._machine.power, baselines, with_delay=request.objective == "edp")
        candidates += [*self._cuts(comparison), *self._placements(comparison)]
        return choose(candidates, comparison, self._machine, objective=request.objective, min_gain=request.min_gain)

    def _wholes(self) -> Iterator[EnergyCandidate]:
        request = self._request
        for width in whole_widths(request, self._costs.widths):
            ns = sum(self._costs.node_ns(width))
            yield self._candidate(
                whole_label(width),
                whole_plan(request.model, "", cores=request.cores, width=width),
                ns,
                is_yardstick=width == request.cores,
            )

    def _studies(self) -> Mapping[str, DeviceStudy]:
        return device_studies(self._context, self._request.devices, self._costs)

    def _on_devices(self) -> Iterator[EnergyCandidate]:
        """What each device would be given by itself."""
        request = self._request
        for name, study in self._studies().items():
            greedy = study.greedy
            if greedy is None:
                continue
            if request.split == "never":
                plan, _ = plan_whole_within(study, name, request.model, cores=request.cores)
                if plan is not None:
                    yield self._candidate(f"whole model on {name}", plan, greedy.simulated_ns, is_yardstick=True)
                continue
            yield self._made(f"all that {name} takes", greedy.plan, greedy.simulated_ns, is_yardstick=True)

    def _by_time(self) -> EnergyCandidate:
        """The plan by time."""
        plan, told = self._quickest, self._quickest.provenance
        if plan.is_whole:
            width = plan.segments[0].width if plan.segments else self._request.cores
            return self._candidate("the plan by time", plan, sum(self._costs.node_ns(width)), is_yardstick=True)
        ns = told.chosen_ns or _simulated_ns(plan)
        return self._candidate("the plan by time", plan, ns, is_yardstick=True)

    def _cuts(self, comparison: EnergyComparison) -> Iterator[EnergyCandidate]:
        """Cuts for the CPU alone, where the plan by time finds that cuts promise enough at all."""
        request = self._request
        if request.devices or self._quickest.is_whole:
            return
        context, rough = self._context, []
        for number, proposal in enumerate(context.candidates()):
            widths = [assignment.width for assignment in proposal.schedule.assignments]
            core_ns = sum(width * ns for width, ns in zip(widths, proposal.durations_ns, strict=True))
            usage = Usage(makespan_ns=proposal.simulated_ns, core_ns=core_ns, touched_bytes=self._bytes)
            rough.append((comparison.rank(usage), number, proposal))
        for _, _, proposal in sorted(rough, key=lambda entry: entry[:2])[:_CUTS]:
            plan = context.serialised(proposal).plan
            yield self._candidate(f"{proposal.partition.label}, cut", plan, _simulated_ns(plan))

    def _placements(self, comparison: EnergyComparison) -> Iterator[EnergyCandidate]:
        """What is found for the devices and the CPU together, on so many cores each."""
        request = self._request
        if not request.devices or request.split == "never":
            return
        if request.policy == "sequential":
            for name, study in self._studies().items():
                found = study.in_sequence
                if found is not None:
                    yield self._made(f"regions on {name}, one after the other", found.plan, found.simulated_ns)
            return
        for cores in whole_widths(replace(request, has_runtime_options=False), self._costs.widths):
            narrow = "" if cores == request.cores else f", on {cores} core{'s' if cores > 1 else ''} of the CPU"
            if request.placer is not None:
                shared = self._placed(comparison, cores)
                if shared.plan is not None:
                    yield self._made(f"placed by {request.policy}{narrow}", shared.plan, shared.chosen_ns)
                continue
            for name, study in self._studies().items():
                made = study.placed_by(self._rank(comparison, [study.name], self._bytes), cores=cores)
                if made is not None:
                    yield self._made(f"regions on {name}{narrow}", made.plan, made.simulated_ns)

    def _placed(self, comparison: EnergyComparison, cores: int) -> SharedPlan:
        request = self._request
        assert request.placer is not None

        def rank(graph: OpGraph, devices: Sequence[str]) -> Rank:
            return self._rank(comparison, devices, touched_bytes(graph))

        return plan_shared(
            self._context,
            request.devices,
            request.placer,
            name=request.policy,
            shares_rows=request.shares_rows and can_share_rows(request.model),
            rank=rank,
            busy_cores=cores,
        )

    def _rank(self, comparison: EnergyComparison, devices: Sequence[str], touched: int) -> Rank:
        factor = self._machine.time_factor

        def rank(judged: JudgedPlacement) -> tuple[float, ...]:
            return comparison.rank(Usage.of_placement(judged, devices, touched_bytes=touched).times(factor))

        return rank

    def _made(self, label: str, plan: Plan, ns: int, *, is_yardstick: bool = False) -> EnergyCandidate:
        """A candidate of the model that devices are planned for, as one of the model that was asked for."""
        computed = self._computed
        of_original = plan if computed is None else computed.plan(plan)
        return self._candidate(label, of_original, ns, is_yardstick=is_yardstick)

    def _candidate(self, label: str, plan: Plan, ns: int, *, is_yardstick: bool = False) -> EnergyCandidate:
        # A plan for the whole model does not say itself what it takes.
        cost_ns = [ns] if [segment.cost_ns for segment in plan.segments] == [0] else None
        touched = self._bytes
        if plan.rows_permille is not None:
            touched = touched_bytes(planned_model(self._request.model, plan).inferred())
        usage = Usage.of_plan(plan, makespan_ns=ns, cost_ns=cost_ns, touched_bytes=touched)
        return EnergyCandidate(
            label=label,
            plan=plan,
            usage=usage.times(self._machine.time_factor),
            simulated_ns=ns,
            is_yardstick=is_yardstick,
        )


def choose(
    candidates: Sequence[EnergyCandidate],
    comparison: EnergyComparison,
    machine: ModelledMachine,
    *,
    objective: str,
    min_gain: float | None = None,
) -> Plan:
    """The best candidate as a plan that tells what was compared.

    Args:
        candidates: the first is the whole model on all threads.
        min_gain: share of what the first costs, by typical constants, that another must save; None: any will do.
    """
    default = candidates[0]
    most = None if min_gain is None else (1 - min_gain) * comparison.typical(default.usage)
    eligible = [
        entry for entry in candidates if entry is default or most is None or comparison.typical(entry.usage) <= most
    ]
    best = min(eligible, key=lambda entry: comparison.rank(entry.usage))
    reason = tell_choice(best, candidates, comparison, machine, objective)
    compared = tuple(
        Candidate(
            label=entry.label,
            segments=len(entry.plan.segments),
            lanes=entry.plan.lanes,
            simulated_ns=entry.simulated_ns,
            measured_ns=None,
            note=f"{show_joules(entry.usage.energy(machine.power).total)}; {_standing(entry, comparison)}",
        )
        for entry in _distinct(candidates)
    )
    provenance = make_provenance(
        "energy", reason, whole_ns=default.simulated_ns, chosen_ns=best.simulated_ns, candidates=compared
    )
    plan = replace(best.plan, provenance=provenance)
    if plan.is_whole:
        plan = replace(plan, segments=tuple(replace(segment, reason=reason) for segment in plan.segments))
    return plan


def tell_choice(
    best: EnergyCandidate,
    candidates: Sequence[EnergyCandidate],
    comparison: EnergyComparison,
    machine: ModelledMachine,
    objective: str,
) -> str:
    """What was chosen and how it compares, for people."""
    joules = best.usage.energy(machine.power).total
    default = candidates[0]
    what = "joules x seconds" if objective == "edp" else "joules"
    parts = [f'objective="{objective}": {best.label}, {show_joules(joules)}, modelled, on {machine.what}']
    if best is not default:
        share = comparison.share_of(best.usage, default.usage)
        parts.append(
            f"{what} {_change(share.typical)} ({_change(share.low)} to {_change(share.high)}) against {default.label}"
        )
    baselines = ", ".join(entry.label for entry in _distinct(candidates) if entry.is_yardstick)
    most = comparison.most_share(best.usage)
    if most <= 1:
        parts.append(f"at no constants within their bands above any of: {baselines}")
    else:
        parts.append(
            f"no plan is below all of these at all constants within their bands: {baselines}; at the worst this one "
            f"is {most - 1:.0%} above the least of them, as little as any"
        )
    return "; ".join(parts)


def show_joules(joules: Band) -> str:
    """Joules with their band, for people."""
    low, typical, high = (f"{1e3 * value:.3g}" for value in (joules.low, joules.typical, joules.high))
    return f"{typical} mJ ({low} to {high})"


def _standing(entry: EnergyCandidate, comparison: EnergyComparison) -> str:
    most = comparison.most_share(entry.usage)
    return "never above a baseline" if most <= 1 else f"up to {most - 1:.0%} above the least baseline"


def _change(share: float) -> str:
    return f"{share - 1:+.0%}"


def _distinct(candidates: Sequence[EnergyCandidate]) -> list[EnergyCandidate]:
    """Without those that run the same as one before."""
    found: dict[object, EnergyCandidate] = {}
    for entry in candidates:
        key = (
            entry.plan.rows_permille,
            entry.simulated_ns,
            tuple((segment.nodes, segment.backend, segment.width, segment.lane) for segment in entry.plan.segments),
        )
        found.setdefault(key, entry)
    return list(found.values())


def _simulated_ns(plan: Plan) -> int:
    return simulate_plan(plan, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS).makespan_ns
