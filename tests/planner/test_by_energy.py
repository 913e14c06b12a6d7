"""Plans by modelled joules: never above a baseline wherever a candidate is so, and told where none is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from parallax.backends.emulated import EmulatedBackend, load_profile
from parallax.energy import Band, EnergyComparison, PowerModel, Usage
from parallax.graph import CostModel, OpGraph
from parallax.model import load_model
from parallax.partition import FusionGroups, group_fusions
from parallax.partition.regions import DeviceCosts
from parallax.planner import PlanDevice, PlannedModel, PlanRequest, open_placer, plan_model, power_of, touched_bytes
from parallax.planner._by_energy import EnergyCandidate, choose
from parallax.planner._candidates import PlanningContext
from parallax.planner._devices import DeviceStudy, on_cores
from parallax.planner._power import ModelledMachine, modelled_machine
from parallax.profile import fusion_safe_tensors
from parallax.schedule import CPU_BACKEND, Plan, simulate_plan
from parallax.schedule.placement import (
    JudgedPlacement,
    Machine,
    PlacementProblem,
    default_placers,
    find_placement,
    quickest,
)
from tests.energy.test_comparison import cost, exactly, is_never_above
from tests.energy.test_model import plan_of
from tests.partition._device_costs import priced_graphs
from tests.planner.test_placers import two_chains
from tests.session.test_devices import SIZE, chain, two_branches

PHONE, OTHER = "emulated:pixel-6-gpu", "emulated:redmi-k50-gpu"
HOST_FLOPS = 60e9
"""Of a processor that is stated, so that every machine makes the same plans."""


def opened(name: str, **options: Any) -> PlanDevice:
    backend = EmulatedBackend(load_profile(name.partition(":")[2]), host_flops=HOST_FLOPS, **options)
    return PlanDevice(backend=backend)


def request_of(model: bytes, *devices: str, **given: Any) -> PlanRequest:
    opened_devices = {name: opened(name) for name in devices}
    return PlanRequest(
        model=load_model(model), **{"cores": 2, "objective": "energy", "devices": opened_devices, **given}
    )


def machine_of(request: PlanRequest) -> ModelledMachine:
    found = modelled_machine(request.devices, cores=request.cores)
    assert isinstance(found, ModelledMachine)
    return found


def usage_of(planned: PlannedModel, request: PlanRequest, machine: ModelledMachine) -> Usage:
    """What a run of a plan keeps busy, by its own segments and their costs."""
    plan, ns = planned.plan, planned.provenance.chosen_ns
    assert ns is not None
    touched = touched_bytes(planned.model.inferred())
    if len(plan.segments) == 1:
        costs: Any = [ns]
    else:
        costs = None
    return Usage.of_plan(plan, makespan_ns=ns, cost_ns=costs, touched_bytes=touched).times(machine.time_factor)


def baselines_of(request: PlanRequest, machine: ModelledMachine) -> dict[str, Usage]:
    """What would run otherwise, found without the planner of joules."""
    model, cores = request.model, request.cores
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe_tensors(model))
    touched = touched_bytes(context.graph)
    studies = {name: DeviceStudy(context, device.backend) for name, device in request.devices.items()}
    costs = next((study.costs for study in studies.values()), context.costs)
    whole_ns = sum(costs.node_ns(cores))
    found = {"CPU": Usage(makespan_ns=whole_ns, core_ns=cores * whole_ns, touched_bytes=touched)}
    for name, study in studies.items():
        made = study.greedy
        if made is not None:
            found[name] = Usage.of_plan(made.plan, makespan_ns=made.simulated_ns, touched_bytes=touched)
    by_time = plan_model(replace(request, objective="latency", plans_bodies=False))
    if by_time.provenance.chosen_ns is not None:
        plan = by_time.plan
        found["by time"] = Usage.of_plan(plan, makespan_ns=by_time.provenance.chosen_ns, touched_bytes=touched)
    return {label: usage.times(machine.time_factor) for label, usage in found.items()}


MODELS: Mapping[str, bytes] = {
    "branches": two_branches(),
    "many rows": two_branches(batch=512),
    "slow fallbacks": two_branches(batch=512, fallbacks=30),
    "chain": chain(),
    "chains": two_chains(),
    "tiny": two_branches(batch=1, depth=2),
    "products": two_branches(batch=512, fallbacks=0),
}


@pytest.mark.parametrize("devices", [(), (PHONE,), (OTHER,), (PHONE, OTHER)], ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", ["energy", "edp"])
def test_joules_are_below_every_baseline_or_the_plan_says_by_how_much_not(
    model: str, devices: tuple[str, ...], objective: str
) -> None:
    request = request_of(MODELS[model], *devices, objective=objective)
    machine = machine_of(request)
    planned = plan_model(request)
    told = planned.provenance
    assert told.source == "energy"
    assert told.reason.startswith(f'objective="{objective}": ')
    usage = usage_of(planned, request, machine)
    baselines = list(baselines_of(request, machine).values())
    with_delay = objective == "edp"
    is_below = is_never_above(usage, baselines, machine.power, with_delay=with_delay)
    assert is_below == ("at no constants within their bands above any of" in told.reason), told.reason
    assert is_below != ("no plan is below all of these" in told.reason)
    # What is compared has a standing each: where the plan is above a baseline, so is everything else.
    assert is_below or not any("never above" in entry.note for entry in told.candidates)
    assert len(told.candidates) >= 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_with_known_constants_joules_are_below_every_baseline(
    model: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(*arguments: Any, **keywords: Any) -> PowerModel:
        power = power_of(*arguments, **keywords)
        bands = [power.static_w, power.core_w, *power.device_w.values(), power.joules_per_byte]
        return exactly(power, tuple(band.low + share * (band.high - band.low) for band in bands))

    monkeypatch.setattr("parallax.planner._power.power_of", known)
    request = request_of(MODELS[model], PHONE)
    machine = machine_of(request)
    planned = plan_model(request)
    usage = usage_of(planned, request, machine)
    assert is_never_above(usage, list(baselines_of(request, machine).values()), machine.power)


bands = (
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3)
    .map(sorted)
    .map(lambda ends: Band(low=ends[0], typical=ends[1], high=ends[2]))
)
powers = st.builds(
    lambda static, core, device: PowerModel(static_w=static, core_w=core, device_w={"toy": device}),
    bands,
    bands,
    bands,
)


@settings(max_examples=60, deadline=None)
@given(case=priced_graphs(max_size=14), power=powers, with_delay=st.booleans(), speed_up=st.floats(1, 2))
def test_of_random_problems_what_is_chosen_is_never_above_a_baseline_if_any_candidate_is(
    case: tuple[OpGraph, DeviceCosts], power: PowerModel, with_delay: bool, speed_up: float
) -> None:
    graph, given_offer = case
    narrow = given_offer.cpu_ns
    wide = tuple(round(ns / speed_up) for ns in narrow)
    device_costs = replace(given_offer, cpu_ns=wide)
    costs = CostModel(
        source="tables",
        widths=(1, 2),
        durations_ns=(narrow, wide),
        latencies_ns=(None, None),
        scales=(1.0, 1.0),
        known_fraction=1.0,
    )
    groups: FusionGroups = group_fusions(graph, tiny_elements=0)
    problem = PlacementProblem(
        graph=graph, groups=groups, devices=(device_costs,), costs=costs, machine=Machine(cores=2, handover_ns=2)
    )
    placers = default_placers(len(groups))

    def used(judged: JudgedPlacement) -> Usage:
        return Usage.of_placement(judged, ["toy"])

    by_time = used(find_placement(problem, placers, rank=quickest).best)
    alone = Usage(makespan_ns=sum(wide), core_ns=2 * sum(wide))
    there = [ns for ns, refused in zip(device_costs.device_ns, device_costs.declined, strict=True) if refused is None]
    baselines = [alone, by_time]
    if len(there) == len(device_costs.device_ns):
        baselines.append(Usage(makespan_ns=sum(there), core_ns=0, device_ns={"toy": sum(there)}))
    comparison = EnergyComparison(power, baselines, with_delay=with_delay)
    tried: list[Usage] = []

    def rank(judged: JudgedPlacement) -> tuple[float, ...]:
        tried.append(used(judged))
        return comparison.rank(tried[-1])

    found = [used(find_placement(on_cores(problem, cores), placers, rank=rank).best) for cores in (2, 1)]
    chosen = min([*baselines, *found], key=comparison.rank)
    never = is_never_above(chosen, baselines, power, with_delay=with_delay)
    if any(is_never_above(usage, baselines, power, with_delay=with_delay) for usage in [*baselines, *found]):
        assert never
    else:
        assert comparison.most_share(chosen) == min(map(comparison.most_share, [*baselines, *found]))
    typical = exactly(power, (power.static_w.typical, power.core_w.typical, power.device_w["toy"].typical, 0.0))
    known = EnergyComparison(typical, baselines, with_delay=with_delay)
    best = min([*baselines, *found], key=known.rank)
    for other in baselines:
        least, theirs = (cost(usage, typical, with_delay=with_delay) for usage in (best, other))
        assert least <= theirs * (1 + 1e-9)


def candidate(label: str, usage: Usage, *, is_yardstick: bool = False) -> EnergyCandidate:
    made: Plan = plan_of(in_turn=True)
    return EnergyCandidate(
        label=label, plan=made, usage=usage, simulated_ns=usage.makespan_ns, is_yardstick=is_yardstick
    )


def test_a_least_gain_is_one_of_joules() -> None:
    power = PowerModel(static_w=Band.exactly(1.0), core_w=Band.exactly(1.0))
    machine = ModelledMachine(power=power, what="a test")
    default = candidate("whole", Usage(makespan_ns=100, core_ns=100), is_yardstick=True)
    other = candidate("other", Usage(makespan_ns=90, core_ns=90))
    comparison = EnergyComparison(power, [default.usage])

    def chosen(min_gain: float | None) -> str:
        plan = choose([default, other], comparison, machine, objective="energy", min_gain=min_gain)
        return plan.provenance.reason.split(": ")[1].split(",")[0]

    assert [chosen(None), chosen(0.05), chosen(0.2)] == ["other", "other", "whole"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"split": "always"}, 'split="always"'),
        ({"min_gain": 0.0}, "min_gain=0"),
        ({"policy": "parallax-paper"}, "baseline"),
        ({"model": load_model(two_branches(batch="n"))}, "depends on the shape of 'x'"),
        ({"devices": {PHONE: opened(PHONE, speed=3.0)}}, "set by hand"),
    ],
)
def test_where_joules_cannot_decide_the_plan_is_that_of_time_and_says_why(given: dict[str, Any], why: str) -> None:
    request = replace(request_of(two_branches()), **given)
    plan = plan_model(request).plan
    assert 'objective="energy" is of no effect' in plan.provenance.reason
    assert why in plan.provenance.reason
    by_time = plan_model(replace(request, objective="latency")).plan
    assert [(one.nodes, one.backend, one.width) for one in plan.segments] == [
        (one.nodes, one.backend, one.width) for one in by_time.segments
    ]


def test_a_device_of_which_nothing_is_known_leaves_the_plan_to_time() -> None:
    class Unknown(EmulatedBackend):
        """A device whose profile has no power block."""

    profile = replace(load_profile("pixel-6-gpu"), power=None)
    device = PlanDevice(backend=Unknown(profile, host_flops=HOST_FLOPS))
    plan = plan_model(request_of(two_branches(), devices={PHONE: device})).plan
    assert 'objective="energy" is of no effect' in plan.provenance.reason
    assert "no power block" in plan.provenance.reason


@pytest.mark.parametrize("policy", ["sequential", "greedy", "heft", "shard-rows"])
def test_other_policies_propose_and_joules_decide(policy: str) -> None:
    request = request_of(two_branches(batch=512), PHONE, policy=policy, placer=open_placer(policy))
    planned = plan_model(request)
    assert planned.provenance.source == "energy"
    machine = machine_of(request)
    usage = usage_of(planned, request, machine)
    alone = baselines_of(request, machine)["CPU"]
    typical = PowerModel(
        static_w=Band.exactly(machine.power.static_w.typical),
        core_w=Band.exactly(machine.power.core_w.typical),
        device_w={name: Band.exactly(band.typical) for name, band in machine.power.device_w.items()},
    )
    assert planned.provenance.candidates
    if "at no constants" in planned.provenance.reason:
        assert cost(usage, typical) <= cost(alone, typical) * 1.01


def test_kept_whole_the_model_is_whole_on_some_number_of_threads() -> None:
    plan = plan_model(request_of(two_branches(batch=512), split="never")).plan
    assert plan.is_whole
    assert {entry.label for entry in plan.provenance.candidates} == {"whole model, 1 thread", "whole model, 2 threads"}


def transposes(count: int = 6) -> bytes:
    """Operators that use one thread, however many there are."""
    names = ["x", *(f"t{step}" for step in range(count - 1)), "y"]
    nodes = [
        helper.make_node("Transpose", [before], [after], perm=[1, 0]) for before, after in itertools.pairwise(names)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE, SIZE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "transposes", ends[:1], ends[1:])
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return made


@pytest.mark.parametrize("objective", ["energy", "edp"])
def test_what_does_not_scale_runs_on_one_thread(objective: str) -> None:
    plan = plan_model(request_of(transposes(), objective=objective)).plan
    assert [segment.width for segment in plan.segments] == [1]
    assert "against whole model, 2 threads" in plan.provenance.reason
    assert "at no constants" in plan.provenance.reason


def test_the_callers_session_options_decide_how_many_threads_there_are() -> None:
    plan = plan_model(request_of(transposes(), has_runtime_options=True)).plan
    assert [segment.width for segment in plan.segments] == [2]


def test_a_plan_for_joules_costs_what_its_segments_say() -> None:
    planned = plan_model(request_of(two_branches(batch=512, fallbacks=30), PHONE))
    plan = planned.plan
    assert {segment.backend for segment in plan.segments} <= {PHONE, CPU_BACKEND}
    if len(plan.segments) > 1:
        # Without hand-overs and the starts of segments, which are some microseconds.
        assert simulate_plan(plan).makespan_ns <= (planned.provenance.chosen_ns or 0)
