"""Ways to place that others bring along: used by sessions and on the command line, on several devices at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends import open_backend
from parallax.errors import ConfigError
from parallax.model import Model, load_model
from parallax.planner import DeviceStudy, PlanDevice, PlanningContext, PlanRequest, open_placer, plan_model
from parallax.planner import _tuning as tuning
from parallax.planner._kept import remembered_plan
from parallax.planner._measuring import Variant
from parallax.planner._placers import ENTRY_POINTS, placer_names
from parallax.planner._shared import plan_shared
from parallax.profile import fusion_safe_tensors
from parallax.schedule import CPU_BACKEND
from parallax.schedule.placement import PLACERS, Machine, Placement, PlacementProblem, find_placement
from parallax.schedule.placement._shared_regions import find_shared_regions
from tests.cli._models import invoke

PHONE, BOARD = "emulated:pixel-6-gpu", "emulated:jetson-orin-nano"
CPU = "CPUExecutionProvider"
SIZE, DEPTH = 512, 6

MINE = '''
from parallax.schedule.placement import Placement

class Mine:
    """Chains of fusion groups, each on the next device; and the same beginning with another device."""

    def propose(self, problem):
        count = len(problem.devices)
        for first in range(count):
            devices, chains = [], first
            for group, before in enumerate(problem.groups.dag.predecessors):
                takes = [ns is not None for ns in problem.features[group].device_ns]
                wanted = devices[before[0]] if len(before) == 1 else None
                if not before:
                    wanted, chains = chains % count, chains + 1
                devices.append(wanted if wanted is not None and takes[wanted] else None)
            yield Placement(label=f"chains, first on {first}", devices=tuple(devices))
'''


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with placers: one of 20 lines, one that is broken, one that would replace ours."""
    info = tmp_path / "acme_placers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-placers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nmine = acme_placers:Mine\nbroken = acme_placers:nothing\nheft = acme_placers:Mine\n"
    )
    (tmp_path / "acme_placers.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("acme_placers", None)


def serialised(graph: Any) -> bytes:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def two_chains() -> bytes:
    """Two chains of matrix products, neither of which needs the other, and their sum."""
    nodes, weights, ends = [], [], []
    for side in "ab":
        last = "x"
        for step in range(DEPTH):
            name = f"{side}{step}"
            values = np.random.default_rng(step).normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE**0.5
            weights.append(numpy_helper.from_array(values, f"w_{name}"))
            nodes.append(helper.make_node("MatMul", [last, f"w_{name}"], [name], name=f"product_{name}"))
            last = name
        ends.append(last)
    nodes.append(helper.make_node("Add", ends, ["y"], name="join"))
    shape = [SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "two_chains",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return made


def problem_of(model: Model, *names: str) -> PlacementProblem:
    """How to share a model between two cores and these devices."""
    context = PlanningContext(model, cores=2, fusion_safe=fusion_safe_tensors(model))
    # At a stated speed: one that is measured while the machine is busy would be another each time.
    backends = [open_backend(name, {"host_flops": 250e9}) for name in names]
    costs_of_devices = [DeviceStudy(context, backend, context.costs).device_costs for backend in backends]
    return PlacementProblem(
        graph=context.graph,
        groups=context.groups,
        devices=tuple(device_costs for device_costs in costs_of_devices if device_costs is not None),
        costs=context.costs,
        machine=Machine(cores=2, handover_ns=10_000, segment_overhead_ns=5_000),
    )


def test_a_session_places_as_a_registered_placer_says_on_two_devices_at_once(registered: None) -> None:
    model = two_chains()
    session = parallax.InferenceSession(model, providers=[PHONE, BOARD, CPU], policy="mine", threads=2)
    plan = session.plan
    assert {PHONE, BOARD} <= {segment.backend for segment in plan.segments}
    assert "as mine places them" in plan.provenance.reason
    assert plan.provenance.chosen_ns is not None
    assert plan.provenance.whole_ns is not None
    assert plan.provenance.chosen_ns < plan.provenance.whole_ns
    # Each device has a queue of its own, so that both compute at the same time.
    queues = {segment.backend: segment.lane for segment in plan.segments if segment.width == 0}
    assert queues[PHONE] != queues[BOARD]
    fed = {"x": np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)}
    (want,) = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, fed)
    for _ in range(3):
        (got,) = session.run(None, fed)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_inspect_shows_the_plan_of_the_session(registered: None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_chains())
    words = ("inspect", path, "--provider", PHONE, "--provider", BOARD, "--policy", "mine", "--threads", "2")
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.stdout)["session"]
    session = parallax.InferenceSession(path, providers=[PHONE, BOARD, CPU], policy="mine", threads=2)
    assert [row["backend"] for row in shown["segments"]] == [segment.backend for segment in session.plan.segments]
    assert [row["ms"] for row in shown["segments"]] == [segment.cost_ns / 1e6 for segment in session.plan.segments]
    assert shown["reason"] == session.plan.provenance.reason
    assert shown["devices"] == [PHONE, BOARD]
    assert "policy 'mine'" in invoke(*words).stdout


class Badly:
    """Everything on the device it is told, be it the worst of them."""

    def __init__(self, device: int) -> None:
        self.device = device

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        yield Placement.on_device(problem, "badly", range(len(problem.groups)), device=self.device)


@pytest.mark.parametrize("name", [*PLACERS, "mine"])
def test_no_placer_is_ever_worse_than_the_cpu_alone(registered: None, name: str) -> None:
    placer = open_placer(name)
    assert placer is not None
    for model in (two_chains(), tiny()):
        problem = problem_of(load_model(model), PHONE, BOARD)
        alone = find_placement(problem, ()).best.makespan_ns
        assert find_placement(problem, (placer,)).best.makespan_ns <= alone


def tiny() -> bytes:
    """A model that no device is worth launching for."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return made


def test_what_a_placer_wants_is_not_done_where_the_cpu_is_quicker() -> None:
    session = parallax.InferenceSession(tiny(), providers=[PHONE, CPU], policy=Badly(0), threads=2)
    assert {segment.backend for segment in session.plan.segments} == {CPU_BACKEND}
    assert "nothing that" in session.plan.provenance.reason


def test_a_placer_may_be_given_as_an_object() -> None:
    model = load_model(two_chains())
    devices = {name: PlanDevice(backend=open_backend(name)) for name in (PHONE, BOARD)}
    for device, name in enumerate(devices):
        request = PlanRequest(model=model, cores=2, policy="badly", placer=Badly(device), devices=devices)
        assert {name} <= {segment.backend for segment in plan_model(request).plan.segments} <= {name, CPU_BACKEND}


def test_tuning_measures_what_a_placer_makes_beside_all_else(
    registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(variants: Sequence[Variant], *, rounds: int = 25, **_: Any) -> tuple[list[list[int]], float]:
        return [[50 if variant.label == "placed by mine" else 100] * rounds for variant in variants], 0.0

    monkeypatch.setattr(tuning, "measure_again_if_noisy", measured)
    devices = {name: PlanDevice(backend=open_backend(name)) for name in (PHONE, BOARD)}
    request = PlanRequest(
        model=load_model(two_chains()),
        cores=1,
        policy="mine",
        placer=open_placer("mine"),
        tune=True,
        cache_dir=tmp_path,
        backends=(),
        devices=devices,
        shares_rows=False,
    )
    plan = plan_model(request).plan
    assert plan.provenance.reason.startswith("placed by mine: ")
    assert {PHONE, BOARD} <= {segment.backend for segment in plan.segments}
    # It is kept for this placer alone.
    assert remembered_plan(request) == plan
    assert remembered_plan(replace(request, policy="adaptive", placer=None)) is None


def test_two_devices_together_are_predicted_quicker_than_each_alone() -> None:
    """Each chain on a device of its own, which both work at the same time: the time of one, not of both."""
    problem = problem_of(load_model(two_chains()), PHONE, PHONE)
    groups = problem.groups
    left = {group for group, nodes in enumerate(groups.members) if problem.graph.nodes[nodes[0]].name[8:9] == "a"}
    right = {group for group, nodes in enumerate(groups.members) if problem.graph.nodes[nodes[0]].name[8:9] == "b"}
    devices = tuple(0 if group in left else 1 if group in right else None for group in range(len(groups)))

    class Both:
        def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
            yield Placement(label="both", devices=devices, ends_early=True)  # the sum is fused into a chain

    class One:
        def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
            yield Placement.on_device(problem, "one", left | right)

    both, one = (find_placement(problem, (placer,)).best for placer in (Both(), One()))
    assert (both.label, one.label) == ("both", "one")
    assert both.makespan_ns < 0.75 * one.makespan_ns
    placed = sorted(node for region in both.plan.regions for node in region.nodes)
    assert placed == list(range(len(problem.graph.nodes)))


def test_regions_that_wait_for_each_other_are_left_out() -> None:
    problem = problem_of(load_model(two_chains()), PHONE)
    first, *_, last = (group for group in range(len(problem.groups)) if problem.takes[0][group])
    ends = Placement.on_device(problem, "ends", (first, last))
    circle = Placement(label="circle", devices=ends.devices, regions=((first, last),))
    assert find_shared_regions(problem, circle) is None
    assert find_shared_regions(problem, ends) is not None


@pytest.mark.parametrize(
    ("devices", "words"), [((None,), "is for 1 fusion groups"), ((7,) * (2 * DEPTH + 1), "names device 7")]
)
def test_what_is_no_placement_is_refused(devices: tuple[int | None, ...], words: str) -> None:
    context = PlanningContext(load_model(two_chains()), cores=2)

    class Wrong:
        def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
            yield Placement(label="wrong", devices=devices)

    with pytest.raises(ConfigError, match=words):
        plan_shared(context, {PHONE: PlanDevice(backend=open_backend(PHONE))}, Wrong(), name="wrong")


def test_names_of_ours_keep_their_meaning(registered: None) -> None:
    assert type(open_placer("heft")) is PLACERS["heft"]
    assert open_placer("adaptive") is None
    assert open_placer("sequential") is None
    assert set(PLACERS) < set(placer_names())
    assert "mine" in placer_names()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("nobodys", "unknown policy 'nobodys'"),
        ("broken", "the placer 'broken' cannot be loaded"),
        (3, "policy=3 is no placer"),
        (Badly, "is no placer"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_remedy(registered: None, policy: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parallax.Options(policy=policy)
    assert refused.value.fix


def test_without_devices_a_placer_has_nothing_to_say() -> None:
    model = two_chains()
    named, default = (parallax.InferenceSession(model, policy=name, threads=2).plan for name in ("heft", "adaptive"))
    assert [(one.nodes, one.width, one.backend) for one in named.segments] == [
        (one.nodes, one.width, one.backend) for one in default.segments
    ]
    assert 'policy="heft" is of no effect' in named.provenance.reason
