"""Plans that were measured, compared by joules: those of a meter, where one tells, else modelled from measured times.

A meter tells where one covers all that plans run on: the whole board or machine, or the processor for plans that use
nothing else. Else the times that were measured are turned into joules as predicted ones are (see
`parallax.planner._by_energy`), with the bands of the constants.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from parallax.energy import EnergyComparison, Usage
from parallax.errors import BackendError
from parallax.machine import EnergyMeter, EnergyRecorder, FoundMeter, find_meters
from parallax.planner._by_energy import show_joules, why_not_by_energy
from parallax.planner._measuring import Variant, pick_winner
from parallax.planner._power import ModelledMachine, modelled_machine, touched_bytes
from parallax.planner._request import PlanRequest
from parallax.planner._rows import feed_shapes, in_rows_shapes, open_shapes
from parallax.schedule import Candidate, Plan, simulate_plan

logger = logging.getLogger(__name__)

METERED_ROUNDS: Final = 7
"""So often each plan runs for its meters, in turn."""

STRETCH_S: Final = 0.25
"""So long each time: counters of processors move every millisecond, meters that show power are read 50 times a
second."""

Costs = Sequence[Sequence[float]]
"""Per plan and round what a run costs. The plan of index 0 is the whole model on all threads."""


class EnergyJudge(Protocol):
    """Says what measured plans cost."""

    def costs(self, variants: Sequence[Variant], times: Sequence[Sequence[int]]) -> Costs:
        """Of plans that were timed in rounds; less is better."""
        ...

    def best(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> int:
        """Which of them to keep, if that is confirmed."""
        ...

    def notes(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> Mapping[str, str]:
        """By label of the plan, what it costs, for people."""
        ...

    @property
    def what(self) -> str:
        """Where the figures are from."""
        ...


def energy_judge(request: PlanRequest, feeds: Mapping[str, Any]) -> EnergyJudge | str:
    """What compares the measured plans of a request by joules; or why nothing can.

    Args:
        feeds: that they are measured with.
    """
    why = why_not_by_energy(request)
    if why is not None:
        return why
    with_delay = request.objective == "edp"
    meters = judging_meters(find_meters(), has_devices=bool(request.devices))
    is_emulated = any(device.backend.info.is_emulated for device in request.devices.values())
    if meters and not is_emulated:
        return MeteredJudge(meters, with_delay=with_delay)
    machine = modelled_machine(request.devices, cores=request.cores)
    if isinstance(machine, str):
        return f"{machine}, and no meter here covers it"
    shaped = in_rows_shapes(request.model, open_shapes(request.model, feed_shapes(feeds)))
    return ModelledJudge(
        machine,
        {device.backend.info.name for device in request.devices.values()},
        touched=touched_bytes(shaped.inferred()),
        with_delay=with_delay,
    )


def judging_meters(found: Sequence[FoundMeter], *, has_devices: bool) -> tuple[EnergyMeter, ...]:
    """The meters that together cover all that plans run on, and nothing of it twice; none where there are no such."""
    readable = [entry.meter for entry in found if entry.meter is not None]
    processors = tuple(meter for meter in readable if meter.info.name.startswith("rapl:package"))
    boards = tuple(meter for meter in readable if meter.info.covers == "the whole board")
    # A battery tells what was drawn some seconds ago.
    boards = tuple(meter for meter in boards if meter.info.name.startswith("ina3221:"))
    return boards[:1] if has_devices or not processors else processors


class MeteredJudge:
    """Compares by joules that meters told while plans ran.

    Args:
        meters: their joules are added.
        with_delay: whether joules are multiplied by the seconds of a run.
    """

    def __init__(self, meters: Sequence[EnergyMeter], *, with_delay: bool) -> None:
        self._meters = meters
        self._with_delay = with_delay

    @property
    def what(self) -> str:
        """The meters."""
        return f"measured by {' and '.join(meter.info.name for meter in self._meters)}"

    def costs(self, variants: Sequence[Variant], times: Sequence[Sequence[int]]) -> Costs:
        """Runs the plans once more, in turn, while the meters are read. Raises: BackendError if one fails."""
        series: list[list[float]] = [[] for _ in variants]
        for number in range(METERED_ROUNDS):
            for offset in range(len(variants)):
                index = (number + offset) % len(variants)
                series[index].append(self._run(variants[index]))
        return series

    def _run(self, variant: Variant) -> float:
        variant.run()
        runs = 0
        with EnergyRecorder(self._meters) as recorder:
            begin = time.perf_counter()
            while not runs or time.perf_counter() - begin < STRETCH_S:
                variant.run()
                runs += 1
            seconds = time.perf_counter() - begin
        told = recorder.energy()
        for entry in told:
            if entry.failure is not None:
                raise BackendError(
                    f"the meter {entry.meter} was not read to the end: {entry.failure}", fix="tune again"
                )
        joules = sum(entry.joules for entry in told) / runs
        return joules * seconds / runs if self._with_delay else joules

    def best(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> int:
        """The one of the least joules."""
        medians = [statistics.median(series) for series in costs]
        return min(range(len(medians)), key=medians.__getitem__)

    def notes(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> Mapping[str, str]:
        """Medians of the rounds."""
        unit = "mJ x s" if self._with_delay else "mJ"
        return {
            variant.label: f"{1e3 * statistics.median(series):.3g} {unit}"
            for variant, series in zip(variants, costs, strict=True)
        }


class ModelledJudge:
    """Compares by joules that measured times amount to, by the model.

    Args:
        machine: that is modelled.
        devices: the backends that are devices of that machine; others compute on the processor.
        touched: bytes that the model's operators read and write.
        with_delay: whether joules are multiplied by the seconds of a run.
    """

    def __init__(self, machine: ModelledMachine, devices: Collection[str], *, touched: int, with_delay: bool) -> None:
        self._machine = machine
        self._devices = devices
        self._touched = touched
        self._with_delay = with_delay
        self._comparison: EnergyComparison | None = None

    @property
    def what(self) -> str:
        """The model."""
        return f"modelled from measured times, on {self._machine.what}"

    def costs(self, variants: Sequence[Variant], times: Sequence[Sequence[int]]) -> Costs:
        """At the worst constants within their bands, in shares of the least baseline.

        Yardsticks are the whole model on all threads, what a device was given by itself, and the quickest plan; those
        that were measured first, where some are measured again.
        """
        medians = _medians(times)
        comparison = self._comparison
        if comparison is None:
            marked = {0, medians.index(min(medians))}
            marked |= {
                index for index, variant in enumerate(variants) if self._is_given_by_itself(variant.plan, variant.label)
            }
            baselines = [self._usage(variants[index].plan, medians[index]) for index in sorted(marked)]
            comparison = EnergyComparison(self._machine.power, baselines, with_delay=self._with_delay)
            self._comparison = comparison
        return [
            [comparison.most_share(self._usage(variant.plan, ns)) for ns in series]
            for variant, series in zip(variants, times, strict=True)
        ]

    def best(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> int:
        """The first by `EnergyComparison.rank` of the median times."""
        assert self._comparison is not None  # costs come first
        rank = self._comparison.rank
        usages = [self._usage(variant.plan, ns) for variant, ns in zip(variants, _medians(times), strict=True)]
        return min(range(len(usages)), key=lambda index: rank(usages[index]))

    def notes(self, variants: Sequence[Variant], times: Sequence[Sequence[int]], costs: Costs) -> Mapping[str, str]:
        """Joules with their bands, and how they stand to the baselines."""
        assert self._comparison is not None  # costs come first
        found = {}
        for variant, ns in zip(variants, _medians(times), strict=True):
            usage = self._usage(variant.plan, ns)
            most = self._comparison.most_share(usage)
            standing = "never above a baseline" if most <= 1 else f"up to {most - 1:.0%} above the least baseline"
            found[variant.label] = f"{show_joules(usage.energy(self._machine.power).total)}; {standing}"
        return found

    def _is_given_by_itself(self, plan: Plan, label: str) -> bool:
        """Whether a plan is a device's own placement."""
        on_devices = any(segment.backend in self._devices for segment in plan.segments)
        return on_devices and label.startswith(("greedy on ", "whole model, "))

    def _usage(self, plan: Plan, ns: float) -> Usage:
        """A run that took so long: segments are busy for as long as they were traced, in proportion."""
        if len(plan.segments) == 1:
            costs = [round(ns)]
        else:
            ratio = ns / max(1, simulate_plan(plan).makespan_ns)
            costs = [round(segment.cost_ns * ratio) for segment in plan.segments]
        usage = Usage.of_plan(plan, makespan_ns=round(ns), cost_ns=costs, touched_bytes=self._touched)
        kept = {name: busy for name, busy in usage.device_ns.items() if name in self._devices}
        if len(kept) < len(usage.device_ns):
            # Another library that computes on the processor keeps all of the plan's threads busy.
            others = sum(busy for name, busy in usage.device_ns.items() if name not in kept)
            usage = replace(usage, device_ns=kept, core_ns=usage.core_ns + others * plan.cores)
        return usage.times(self._machine.time_factor)


def _medians(times: Sequence[Sequence[int]]) -> list[float]:
    return [statistics.median(series) for series in times]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyDecision:
    """Which of the measured plans is kept."""

    winner: int
    reasons: tuple[str, ...]
    """Per plan, why it is the one, if it is."""
    notes: Mapping[str, str]
    """By label, what a plan costs."""

    def noted(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The candidates with what they cost."""
        return tuple(
            replace(entry, note="; ".join(part for part in (entry.note, self.notes.get(entry.label, "")) if part))
            for entry in candidates
        )


def decide(
    judge: EnergyJudge,
    variants: Sequence[Variant],
    times: Sequence[Sequence[int]],
    *,
    objective: str,
    is_noisy: bool,
) -> EnergyDecision:
    """The plan to keep, if it is confirmed: it must cost clearly less than the whole model on all threads in most
    rounds, as a plan by time must take clearly less.

    Raises: BackendError if a meter fails.
    """
    costs = judge.costs(variants, times)
    best = judge.best(variants, times, costs)
    winner = best if best and not is_noisy and is_confirmed(costs[0], costs[best]) else 0
    notes = judge.notes(variants, times, costs)
    reasons = tuple(
        f'objective="{objective}": {variant.label}, {notes[variant.label]}; {judge.what}' for variant in variants
    )
    return EnergyDecision(winner=winner, reasons=reasons, notes=notes)


def is_confirmed(default: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a plan costs clearly less than the default in most rounds: as `pick_winner` has it of times."""
    scale = 1e9 / max(statistics.median(default), 1e-30)
    return bool(pick_winner([[round(scale * cost) for cost in series] for series in (default, other)]))


def confirms(judge: EnergyJudge, pair: Sequence[Variant], times: Sequence[Sequence[int]]) -> bool:
    """Whether the second of two plans, measured again, still costs clearly less than the first."""
    try:
        default, other = judge.costs(pair, times)
    except BackendError as error:
        logger.warning("a plan is not confirmed: %s", error)
        return False
    return is_confirmed(default, other)
