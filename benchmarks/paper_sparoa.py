"""SparOA's question (arXiv 2511.19457) in twelve states of the machine, **simulated**: nothing here was timed.

The paper's five models on two Jetson boards and three phones; the CPU as predicted, twice and five times slower, the
device as predicted, two, four and eight times slower. In each state: every yardstick's own placement; the plan of the
nominal state, kept as it is; the best of a few plans kept ready (chosen once, for all states); ours, which also plans
anew in the background; and the best that anything found. Operators are priced on the processor's own cores where these
are alike (12 and 6 of the boards), else on four equal ones that together are as fast; accelerators by the device's
profile, and what runs at the same time is decided by the dispatcher that the engine runs. Any machine gives the same
figures.

The paper's own figures cannot be compared: it does not say what its baselines' plans are, in which state they ran, or
how it counts sparsity. They stand beside the table for the reader, not for a ratio.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import describe_machine, make_parser, ms, say
from _figures import Figure, counted
from _paper import load_converted
from _paper_simulated import CORES, PHONE, phone_costs
from _phones import Study
from _sections import Section, publish_sections

from parallax.adapt import NOMINAL, HardwareState, ReadyPlan, choose_portfolio, in_state, nominal_costs_ns, state_grid
from parallax.backends.emulated import DeviceProfile, load_profile
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.model import Model
from parallax.planner import PlanningContext
from parallax.planner._devices import plan_of_regions
from parallax.planner._states import STATE_PLACERS, describe
from parallax.schedule.placement import (
    PLACERS,
    Machine,
    Placement,
    PlacementProblem,
    Placer,
    find_placement,
)
from parallax.schedule.placement._judge import Judge, JudgedPlacement, LocalSearch
from parallax.schedule.placement._shared_regions import find_shared_regions

MODELS = ("resnet18", "mobilenetv2", "mobilenetv3-s", "vit-b16", "swin-t")
BOARDS = ("jetson-agx-orin", "jetson-orin-nano")
PHONES = ("pixel-6-gpu", "p30-pro-gpu", "redmi-k50-gpu")
QUICK = "mobilenetv3-s"

NOT_YARDSTICKS = frozenset({"shard-rows", "local-search", "descent", "exact"})
"""Placers that split the model, or that are what ours is made of."""

OURS = (*STATE_PLACERS, "cpu")
"""What plans are made with in the background, and what the stored ones are made with."""

MEAN_REGRET, WORST_REGRET, AGAINST_NOMINAL = 1.01, 1.05, 1.10


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on a device."""

    name: str
    device: str
    problem: PlacementProblem
    context: PlanningContext

    @classmethod
    def of(cls, name: str, device: str, model: Model) -> Subject:
        profile = load_profile(device)
        machine = machine_of(profile)
        costs = phone_costs(model.inferred(), profile, cores=machine.cores)
        study = Study.of(model, costs, EmulatedBackend(profile, speed=1.0), machine)
        problem = PlacementProblem(
            graph=study.graph, groups=study.groups, devices=(study.device_costs,), costs=costs, machine=machine
        )
        context = PlanningContext(model, cores=machine.cores, costs=costs)
        return cls(name=name, device=device, problem=problem, context=context)

    def answer(self, judged: JudgedPlacement, state: HardwareState) -> ReadyPlan:
        names = [self.problem.devices[device].device for device in judged.regions.device_of]
        plan = plan_of_regions(self.context, judged.plan, names, judged.tasks, judged.schedule)
        return ReadyPlan(label=judged.label, plan=plan, cost_ns=nominal_costs_ns(plan, state))


def machine_of(profile: DeviceProfile) -> Machine:
    """A processor whose cores are all alike as it is; else as many equal ones as stand for a phone's."""
    (first, *others) = profile.cpu
    return PHONE if others else dataclasses.replace(PHONE, cores=first.count)


def own_ns(problem: PlacementProblem, placer: Placer) -> int | None:
    """What the best of a placer's own proposals takes, whether the CPU alone is quicker or not; None without any."""
    judge = Judge(problem)
    times = []
    for placement in placer.propose(problem):
        regions = find_shared_regions(problem, placement)
        if regions is not None:
            times.append(judge.simulated(placement, regions).makespan_ns)
    return min(times, default=None)


def device_alone(problem: PlacementProblem) -> Placement:
    """All that the device takes on it."""
    takes = problem.takes[0]
    return Placement(label="device", devices=tuple(0 if taken else None for taken in takes))


class _DeviceAlone:
    def propose(self, problem: PlacementProblem) -> Sequence[Placement]:
        return [device_alone(problem)]


def yardsticks() -> dict[str, Placer]:
    """By name."""
    found: dict[str, Placer] = {name: make() for name, make in PLACERS.items() if name not in NOT_YARDSTICKS}
    found.setdefault("device", _DeviceAlone())
    return found


def study(subject: Subject, states: Sequence[HardwareState]) -> list[dict[str, Any]]:
    """One row per state."""
    problem = subject.problem
    began = time.perf_counter()
    slow = [in_state(problem, state) for state in states]
    found = [find_placement(of_state, [PLACERS[name]() for name in OURS]).best for of_state in slow]
    answers = [subject.answer(judged, state) for judged, state in zip(found, states, strict=True)]
    table = [[answer.predict_ns(state, problem.machine) for state in states] for answer in answers]
    portfolio = choose_portfolio(table)
    stored = [answers[index] for index in portfolio.chosen]
    own = {name: [own_ns(of_state, placer) for of_state in slow] for name, placer in yardsticks().items()}
    searched = [
        find_placement(of_state, [*(PLACERS[name]() for name in OURS), LocalSearch()]).best.makespan_ns
        for of_state in slow
    ]
    say(f"{subject.name} on {subject.device}: {time.perf_counter() - began:.1f} s")
    rows = []
    for number, state in enumerate(states):
        by_name = {name: times[number] for name, times in own.items() if times[number] is not None}
        kept = min(answer.predict_ns(state, problem.machine) for answer in stored)
        ours = min(kept, found[number].makespan_ns)
        best = min([ours, searched[number], *(ns for ns in by_name.values() if ns is not None)])
        rows.append(
            {
                "model": subject.name,
                "device": subject.device,
                "state": describe(state),
                "is_calm": not dict(state.slowdowns),
                "calm_plan_ns": answers[0].predict_ns(state, problem.machine),
                "stored_ns": kept,
                "ours_ns": ours,
                "best_known_ns": best,
                "yardsticks_ns": by_name,
                "stored_plans": [answer.label for answer in stored],
            }
        )
    return rows


def study_pair(name: str, device: str) -> list[dict[str, Any]]:
    """The rows of one model on one device; what a process of its own does."""
    states = state_grid([f"emulated:{device}"])
    assert states[0] == NOMINAL
    return study(Subject.of(name, device, load_converted(name)), states)


def study_all(models: Sequence[str], devices: Sequence[str], *, jobs: int) -> list[dict[str, Any]]:
    """All rows, so many pairs of a model and a device at a time."""
    pairs = [(name, device) for name in models for device in devices]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(jobs, len(pairs)), mp_context=context) as pool:
        return [row for rows in pool.map(study_pair, *zip(*pairs, strict=True)) for row in rows]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def make_figures(rows: Sequence[Mapping[str, Any]], places: str) -> list[Figure]:
    """Of one kind of device; simulated, so that a value is its own interval."""

    def figure(name: str, what: str, value: float, bound: float | None, *, at_least: bool = False) -> Figure:
        return Figure(
            name=f"paper_sparoa.{places}.{name}",
            what=f"simulated, {len(rows)} rows on {places}: {what}",
            value=value,
            unit="ratio",
            interval=(value, value),
            bound=bound,
            at_least=at_least,
            headline=name in ("ours_mean", "against_calm"),
        )

    ours = [row["ours_ns"] / row["best_known_ns"] for row in rows]
    stored = [row["stored_ns"] / row["best_known_ns"] for row in rows]
    nominal_plan = [row["calm_plan_ns"] / row["ours_ns"] for row in rows]
    above = sum(any(row["ours_ns"] > ns for ns in row["yardsticks_ns"].values()) for row in rows)
    device = [row["ours_ns"] / row["yardsticks_ns"]["device"] for row in rows if row["is_calm"]]
    figures = [
        figure("ours_mean", "ours against the best known, geometric mean", geometric_mean(ours), MEAN_REGRET),
        figure("ours_worst", "ours against the best known, the worst row", max(ours), WORST_REGRET),
        figure("stored_mean", "plans kept ready against the best known, geometric mean", geometric_mean(stored), None),
        figure("stored_worst", "plans kept ready against the best known, the worst row", max(stored), None),
        figure(
            "against_calm",
            "the plan of the calm state, kept as it is, against ours, geometric mean",
            geometric_mean(nominal_plan),
            AGAINST_NOMINAL,
            at_least=True,
        ),
        figure("calm_worst", "the plan of the calm state, kept, against ours, the worst row", max(nominal_plan), None),
        figure(
            "calm_device",
            "in the calm state, ours against the device alone, geometric mean",
            geometric_mean(device),
            None,
        ),
        counted(
            f"paper_sparoa.{places}.above",
            f"simulated, of {len(rows)} rows on {places}: those in which ours takes longer than some yardstick",
            above,
            bound=0,
            headline=False,
        ),
    ]
    for name in sorted({name for row in rows for name in row["yardsticks_ns"]}):
        shares = [row["yardsticks_ns"][name] / row["best_known_ns"] for row in rows if name in row["yardsticks_ns"]]
        figures.append(
            figure(f"yardstick.{name}", f"{name} against the best known, geometric mean", geometric_mean(shares), None)
        )
    return figures


def section(rows: Sequence[Mapping[str, Any]], title: str, places: str) -> Section:
    names = sorted({name for row in rows for name in row["yardsticks_ns"]})
    cells = [
        [
            row["model"],
            row["device"],
            row["state"],
            *(ms(row["yardsticks_ns"][name]) if name in row["yardsticks_ns"] else "-" for name in names),
            *(ms(row[key]) for key in ("calm_plan_ns", "stored_ns", "ours_ns", "best_known_ns")),
        ]
        for row in rows
    ]
    return Section(
        title=title,
        method=(
            f"Milliseconds, simulated on the processor's own cores where these are alike, else on {CORES} equal ones "
            "that are together as fast. "
            "Yardsticks are what their own placement takes; the CPU alone is not put beside them."
        ),
        columns=["model", "device", "state", *names, "nominal plan kept", "plans kept ready", "ours", "best known"],
        rows=cells,
        data={"results": list(rows)},
        figures=make_figures(rows, places),
        remarks=[
            "the paper claims 1.22 to 1.31 times less latency than all its baselines on average, on both Jetson "
            "boards: not comparable, since neither its baselines' plans nor the state they ran in are known, and "
            "in the nominal state the best plan of these models is nearly the device alone",
            "no mean over yardsticks is given: one that includes the CPU alone can be made as large as one likes",
        ],
    )


def main() -> None:
    parser = make_parser(__doc__, "paper_sparoa")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--devices", nargs="+", default=[*BOARDS, *PHONES], metavar="PROFILE")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} on the boards")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="pairs at a time, each in a process of its own"
    )
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"argument --jobs: {arguments.jobs} is below 1")
    if arguments.quick:
        arguments.models, arguments.devices = [QUICK], list(BOARDS)
    machine = describe_machine()
    rows = study_all(arguments.models, arguments.devices, jobs=arguments.jobs)
    sections = {}
    for places, devices in (("Jetson boards", BOARDS), ("phones", PHONES)):
        of_places = [row for row in rows if row["device"] in devices]
        if of_places:
            key = places.replace(" ", "_").lower()
            sections[key] = section(of_places, f"Simulated: {places}", places)
    title = "Plans that follow the machine, on emulated devices, simulated"
    publish_sections(title, sections, Path(arguments.output), machine, json_copy=None)


if __name__ == "__main__":
    main()
