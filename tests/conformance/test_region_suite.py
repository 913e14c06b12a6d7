"""ONNX's backend tests with regions forced: what WebGPU takes runs there, the rest on the CPU, in one plan.

Every node that the plugin takes is in a segment of its own backend, whatever that costs, and what it does not take in
segments beside them; the engine runs the plan, and the answers must be ONNX Runtime's within tolerance.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.backends import Backend, DeviceSpeed, FaultPolicy
from parallax.backends._guard import GuardedModel
from parallax.backends.ort import RuntimeOptions
from parallax.engine import compile_plan
from parallax.errors import BackendError, ParallaxError
from parallax.graph import Capability
from parallax.model import Model, load_model
from parallax.partition import find_constants, group_fusions
from parallax.partition.candidates import Cause, DraftSegment, assemble, find_boundaries
from parallax.partition.regions import RegionRule, estimate_device_costs, find_regions
from parallax.profile import estimate_costs
from parallax.schedule import (
    CPU_BACKEND,
    PLAN_FORMAT_VERSION,
    Granularity,
    Plan,
    Provenance,
    Segment,
    region_tasks,
    verify_plan,
)
from tests.backends._backends import obstacle, opened, value
from tests.conformance._expected import difference_of, expectations
from tests.conformance._onnx_suite import Case, load_cases, shard_of

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
SHARDS = 8
"""One shard of the cases is run by default; the others are slow tests."""

KNOWN_FAILURES = {
    "requires f16 but the device does not support it": "SwiftShader has no float16",
    "BatchNormalization trainingMode is not supported yet": "the plugin takes it, and then does not",
    "The antialias attribute of Resize operator is NOT implemented": "likewise",
    "reduction_ops.h": "it does not reduce empty tensors",
}
"""Words of errors with which the plugin fails at what it said it takes -> what that is. The processor computes it."""


@dataclass(slots=True)
class Tally:
    """What became of the cases."""

    equal: Counter[str] = field(default_factory=Counter)
    """By how much of the model was on the device: "all", "some", "nothing"."""
    left_out: Counter[str] = field(default_factory=Counter)
    """By reason."""
    fallbacks: int = 0
    """Cases in which the processor computed for the device."""
    differences: list[str] = field(default_factory=list)


FREE = DeviceSpeed(launch_ns=0, flops_per_s=math.inf, memory_bytes_per_s=math.inf, link_bytes_per_s=math.inf)


def forced_plan(model: Model, backend: Backend, name: str) -> tuple[Plan, Capability]:
    """Everything the backend takes on its queue (as runtimes' own placements have it), the rest on the CPU."""
    graph = model.inferred()
    groups = group_fusions(graph, may_cross=model.can_split_at, tiny_elements=0)
    capability = backend.capability(model)
    costs = estimate_costs(graph, cores=1)
    device_costs = estimate_device_costs(graph, capability, FREE, cpu_ns=costs.node_ns(1))
    assert device_costs is not None
    regions = find_regions(graph, groups, device_costs, rule=RegionRule.GREEDY)
    made = region_tasks(groups, regions, costs, widths=(1,), granularity=Granularity.COARSE)
    drafts = [
        DraftSegment(groups=inside, width=1, cause=Cause.FORCED if region is None else Cause.DEVICE)
        for inside, region in zip(made.groups, made.region_of, strict=True)
    ]
    partition = assemble(groups, drafts, label="everything it takes", lanes=2)
    boundaries = find_boundaries(graph, groups, partition)
    read = {tensor for boundary in boundaries for tensor in boundary.inputs}
    unread = tuple(info.name for info in (*graph.inputs, *graph.overridable) if info.name not in read)
    segments = [
        Segment(
            index=index,
            name=f"segment_{index}",
            nodes=boundary.nodes,
            inputs=boundary.inputs + (unread if index == 0 else ()),
            outputs=boundary.outputs,
            predecessors=partition.dag.predecessors[index],
            width=1 if region is None else 0,
            priority=-index,
            lane=0 if region is None else 1,
            cost_ns=0,
            backend=CPU_BACKEND if region is None else name,
            reason=drafts[index].reason,
        )
        for index, (boundary, region) in enumerate(zip(boundaries, made.region_of, strict=True))
    ]
    provenance = Provenance(
        source="forced", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
    )
    plan = Plan(
        format_version=PLAN_FORMAT_VERSION,
        structure_digest=model.structure_digest,
        policy="adaptive",
        cores=1,
        lanes=2,
        backfill=True,
        segments=tuple(segments),
        provenance=provenance,
    )
    verify_plan(plan, len(graph.nodes))
    return plan, capability


def _params() -> list[Any]:
    reason = obstacle("webgpu")
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return [
        pytest.param(("webgpu", 0), id="webgpu", marks=marks),
        *(
            pytest.param(("webgpu", shard), id=f"webgpu-{shard}", marks=[*marks, pytest.mark.slow])
            for shard in range(1, SHARDS)
        ),
    ]


@pytest.fixture(scope="module", params=_params())
def sampled(request: pytest.FixtureRequest) -> Iterator[tuple[str, Backend, int]]:
    name, shard = request.param
    with opened(name) as backend:
        yield name, backend, shard


@pytest.mark.timeout(600)
def test_sessions_forced_onto_a_device_give_onnxruntimes_answers(
    sampled: tuple[str, Backend, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The same through the front door, for models of several operators: smaller ones are left to the CPU there."""
    name, _, shard = sampled
    cases = [case for kind in KINDS for case in load_cases(kind) if shard_of(case, SHARDS) == shard]
    tally = Tally()
    for case in cases:
        _examine_session(name, case, tally)
    print(len(cases), "cases;", dict(tally.equal), dict(tally.left_out))
    assert not tally.differences, "\n".join(tally.differences)
    # Of a few, all lies in one branch.
    assert tally.equal["all"] + tally.equal["some"] > 0.5 * (len(cases) - tally.left_out[_NO_CASE])
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [message for message in warned if not any(words in message for words in KNOWN_FAILURES)]


_NO_CASE = "one operator, or ONNX Runtime refuses it, or not all are tensors of numbers"


def _examine_session(name: str, case: Case, tally: Tally) -> None:
    proto = case.read_model()
    prepared = expectations(proto, case) if len(proto.graph.node) > 1 else None
    if prepared is None:
        tally.left_out[_NO_CASE] += 1
        return
    feeds, expected = prepared
    try:
        session = parallax.InferenceSession(proto.SerializeToString(), providers=[name], min_gain=0, threads=2)
        made = session.run(None, feeds)
    except Exception as error:
        tally.differences.append(f"{case.id}: {error}")
        return
    elsewhere = [segment for segment in session.plan.segments if segment.backend != CPU_BACKEND]
    difference = difference_of(expected, made)
    if difference is not None:
        tally.differences.append(f"{case.id} ({len(elsewhere)} of {len(session.plan.segments)} segments): {difference}")
    elif not elsewhere:
        tally.left_out[session.plan.provenance.reason] += 1
    else:
        tally.equal["all" if len(elsewhere) == len(session.plan.segments) else "some"] += 1


@pytest.mark.timeout(600)
def test_regions_on_a_device_give_onnxruntimes_answers(
    sampled: tuple[str, Backend, int], caplog: pytest.LogCaptureFixture
) -> None:
    name, backend, shard = sampled
    cases = [case for kind in KINDS for case in load_cases(kind) if shard_of(case, SHARDS) == shard]
    tally = Tally()
    for case in cases:
        _examine(name, backend, case, tally)
    print(len(cases), "cases;", dict(tally.equal), dict(tally.left_out), "fell back:", tally.fallbacks)
    assert not tally.differences, "\n".join(tally.differences)
    # Leaving everything to the processor is right and worth nothing.
    assert tally.equal["all"] > 0.2 * len(cases)
    assert tally.equal["some"] > 0.02 * len(cases)
    assert tally.fallbacks <= math.ceil(0.02 * len(cases))
    warned = [record.message for record in caplog.records if record.name == "parallax.backends._guard"]
    assert not [message for message in warned if not any(words in message for words in KNOWN_FAILURES)]


def _examine(name: str, backend: Backend, case: Case, tally: Tally) -> None:
    proto = case.read_model()
    prepared = expectations(proto, case)
    if prepared is None:
        tally.left_out["ONNX Runtime refuses it, or not all are tensors of numbers"] += 1
        return
    feeds, expected = prepared
    try:
        model = load_model(proto)
        plan, capability = forced_plan(model, backend, name)
    except BackendError:
        tally.left_out["the provider cannot open it"] += 1
        return
    on_device = [segment for segment in plan.segments if segment.backend == name]
    if not on_device:
        tally.left_out["the provider takes nothing of it"] += 1
        return
    if plan.segments and any(info.name not in model.graph.producers for info in model.graph.outputs):
        tally.left_out["an output is computed by no operator"] += 1
        return
    try:
        executor = compile_plan(
            model, plan, RuntimeOptions(log_severity_level=4), backends={name: backend}, faults=FaultPolicy()
        )
        fed = {key: value(array) for key, array in feeds.items()}
        outputs = [info.name for info in model.graph.outputs]
        made = [np.array(got.numpy()) for got in executor.run(fed, outputs)]
    except ParallaxError as error:
        tally.differences.append(f"{case.id}: {error}")
        return
    guards = [executor.segments[segment.index].session.model for segment in on_device]
    if any(not isinstance(guard, GuardedModel) or guard.fallbacks for guard in guards):
        tally.fallbacks += 1
    placed = {node for segment in on_device for node in segment.nodes}
    difference = difference_of(expected, made)
    if difference is None:
        tally.equal["all" if len(placed) == len(model.graph.nodes) else "some"] += 1
        tally.equal["nodes on the device"] += len(placed)
        folded = find_constants(model.inferred())
        tally.equal["nodes taken, but not to be separated from others"] += len(set(capability.taken) - placed - folded)
    else:
        tally.differences.append(f"{case.id} ({len(on_device)} of {len(plan.segments)} segments): {difference}")
