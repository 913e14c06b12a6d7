"""How fast a machine is now, against what plans were made for; and what a plan would take on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from parallax.errors import ConfigError
from parallax.graph import CostModel
from parallax.schedule import CPU_BACKEND, Plan, Segment, simulate_plan
from parallax.schedule.placement import Machine, PlacementProblem

CPU_NARROW: Final = CPU_BACKEND
"""The processor "cpu": a core of the CPU, by itself."""

CPU_WIDE: Final = f"{CPU_BACKEND}:wide"
"""The processor "cpu:wide": several cores of the CPU for one segment. Where a competitor has some of the cores, a
segment on all of them is slowed more than one on a single core, since its slowest thread decides."""

_NOMINAL: Final = 1.0
_IDEAL: Final = Machine(cores=1)


def processor_of(segment: Segment) -> str:
    """What computes a segment, as far as slow-downs tell processors apart: `CPU_NARROW`, `CPU_WIDE` or a backend."""
    if segment.backend != CPU_BACKEND:
        return segment.backend
    return CPU_WIDE if segment.width > 1 else CPU_NARROW


def processors_of(plan: Plan) -> frozenset[str]:
    """Return all processors that a plan uses, and so those that its runs tell something of."""
    return frozenset(map(processor_of, plan.segments))


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareState:
    """What the machine is like now. Pure: whoever is asked twice answers alike.

    Estimated from what runs took against what was predicted for them (`SlowdownEstimator`), so no sensor is needed;
    free cores and bytes are hints.
    """

    slowdowns: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Processor -> how many times as long as predicted it takes; 1.0 for those that are not named."""
    free_cores: float | None = None
    """Cores that nobody else uses; None where it is not known."""
    free_bytes: int | None = None
    """Memory that the machine or container could still give; None where it is not known."""

    def __post_init__(self) -> None:
        for processor, factor in self.slowdowns.items():
            if not 0 < factor < math.inf:
                raise ConfigError(
                    f"a slow-down of {factor} for {processor!r}", fix="give a finite factor above 0; 1 is as predicted"
                )

    def slowdown(self, processor: str) -> float:
        """The factor of a processor. A CPU that is known at one width only is taken to be slowed alike at the other."""
        known = self.slowdowns.get(processor)
        if known is None and processor in _OTHER_WIDTH:
            known = self.slowdowns.get(_OTHER_WIDTH[processor])
        return _NOMINAL if known is None else known

    def slowed(self, processor: str, factor: float) -> HardwareState:
        """The same state with another slow-down of one processor."""
        return replace(self, slowdowns=MappingProxyType({**self.slowdowns, processor: factor}))


_OTHER_WIDTH: Final = {CPU_NARROW: CPU_WIDE, CPU_WIDE: CPU_NARROW}

NOMINAL: Final = HardwareState()
"""Everything takes what was predicted."""


def segment_costs_ns(plan: Plan, state: HardwareState, cost_ns: Sequence[int] | None = None) -> tuple[int, ...]:
    """What each segment of a plan would take in a state.

    Args:
        cost_ns: what each takes in the nominal state, in place of the plan's own predictions.
    """
    nominal = [segment.cost_ns for segment in plan.segments] if cost_ns is None else cost_ns
    return tuple(
        round(ns * state.slowdown(processor_of(segment))) for ns, segment in zip(nominal, plan.segments, strict=True)
    )


def nominal_costs_ns(plan: Plan, state: HardwareState) -> tuple[int, ...]:
    """What each segment would take in the nominal state, of a plan whose costs are those of a state: the inverse of
    `segment_costs_ns`."""
    return tuple(round(segment.cost_ns / state.slowdown(processor_of(segment))) for segment in plan.segments)


def predict_ns(
    plan: Plan,
    state: HardwareState,
    *,
    machine: Machine = _IDEAL,
    cost_ns: Sequence[int] | None = None,
) -> int:
    """The makespan of a plan in a state, in ns: the dispatcher's under a virtual clock (`simulate_plan`).

    Args:
        machine: says what segments and hand-overs cost around the kernels; by default nothing.
        cost_ns: what each segment takes in the nominal state, in place of the plan's own predictions.
    """
    run = simulate_plan(
        plan,
        handover_ns=machine.handover_ns,
        # A plan of one segment is one call of its backend, with nothing of the engine's around it.
        segment_overhead_ns=machine.segment_overhead_ns if len(plan.segments) > 1 else 0,
        contention=machine.contention,
        cost_ns=segment_costs_ns(plan, state, cost_ns),
    )
    return run.makespan_ns


def in_state(problem: PlacementProblem, state: HardwareState) -> PlacementProblem:
    """The same placement problem on a machine in this state, for any placer to answer.

    A slow-down is that of whole segments, so all that belongs to one takes longer alike: kernels, launches, transfers
    and what tensors between segments cost. A CPU's segment is slowed by the factor of one core or of several, according
    to its width.
    """
    narrow, wide = state.slowdown(CPU_NARROW), state.slowdown(CPU_WIDE)
    all_cores = wide if problem.machine.cores > 1 else narrow
    devices = []
    for offer in problem.devices:
        factor = state.slowdown(offer.device)
        devices.append(
            replace(
                offer,
                device_ns=tuple(round(ns * factor) for ns in offer.device_ns),
                cpu_ns=tuple(round(ns * all_cores) for ns in offer.cpu_ns),
                launch_ns=round(offer.launch_ns * factor),
                transfer=replace(
                    offer.transfer,
                    fixed_ns=round(offer.transfer.fixed_ns * factor),
                    ns_per_byte=offer.transfer.ns_per_byte * factor,
                ),
            )
        )
    machine = replace(
        problem.machine,
        wide_start_ns=round(problem.machine.wide_start_ns * wide),
        crossing_ns_per_byte=problem.machine.crossing_ns_per_byte * narrow,
    )
    costs = _slowed(problem.costs, narrow=narrow, wide=wide)
    return replace(problem, devices=tuple(devices), costs=costs, machine=machine)


def _slowed(costs: CostModel, *, narrow: float, wide: float) -> CostModel:
    factors = [narrow if width == 1 else wide for width in costs.widths]
    return replace(
        costs,
        durations_ns=tuple(
            tuple(round(ns * factor) for ns in row) for row, factor in zip(costs.durations_ns, factors, strict=True)
        ),
        latencies_ns=tuple(
            None if ns is None else round(ns * factor) for ns, factor in zip(costs.latencies_ns, factors, strict=True)
        ),
    )
