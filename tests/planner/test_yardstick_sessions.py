"""Yardsticks in sessions: right answers whoever places, models split for the ones that ask, zeros of real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

import parallax
from parallax.backends import open_backend
from parallax.model import load_model
from parallax.planner import PlanDevice, PlanningContext, open_placer
from parallax.planner._shared import plan_shared
from parallax.planner._zeros import WeightZeros
from parallax.profile import fusion_safe_tensors
from parallax.schedule import PAPER_POLICY
from parallax.schedule.placement import PLACERS
from parallax.schedule.placement._thresholds import Sparsity
from tests.model._models import model, node, value, weight
from tests.planner.test_placers import PHONE
from tests.session.test_devices import CPU, expected, feeds, on, two_branches

FAST = (PHONE, {"speed": 1000})
"""So quick that nearly every placement gains."""


@pytest.mark.parametrize("name", [name for name in PLACERS if name != PAPER_POLICY])
def test_answers_are_right_whoever_places(name: str) -> None:
    made = two_branches(batch=512)
    session = parallax.InferenceSession(made, providers=[FAST, CPU], policy=name, threads=2)
    want = expected(made, feeds(512))[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, feeds(512))[0], want, rtol=1e-4, atol=1e-4)


def test_settings_of_a_name_reach_the_session() -> None:
    made = two_branches(batch=512)
    options = {"providers": [FAST, CPU], "threads": 2}
    some = parallax.InferenceSession(made, policy="intensity,min_flops=1e7", **options)
    assert "MatMul" in on(some, PHONE)
    assert "Erf" not in on(some, PHONE)
    none = parallax.InferenceSession(made, policy="intensity,min_flops=1e15", **options)
    assert on(none, PHONE) == []


@pytest.mark.parametrize("share", [None, 0.25])
def test_a_fixed_share_splits_the_rows_of_the_model(share: float | None) -> None:
    rng = np.random.default_rng(0)
    proto = model(
        [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")],
        [value("x", (1, 512, 512))],
        [value("y", (1, 512, 512))],
        {"w": weight((512, 512), 1), "v": weight((512, 512), 2)},
    )
    made = proto.SerializeToString()
    policy = "fixed-share" if share is None else f"fixed-share,share={share}"
    session = parallax.InferenceSession(
        made, providers=[(PHONE, {"speed": 3, "host_flops": 100e9}), CPU], policy=policy, threads=2, min_gain=0.01
    )
    plan = session.plan
    assert plan.rows_permille is not None
    if share is not None:
        assert plan.rows_permille == 250
    assert {PHONE, "cpu"} == {segment.backend for segment in plan.segments}
    fed = {"x": rng.normal(size=(1, 512, 512)).astype(np.float32)}
    want = expected(made, fed)[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, fed)[0], want, rtol=1e-3, atol=1e-3)


def test_zeros_are_those_of_the_models_own_weights(tmp_path: Path) -> None:
    pruned = weight((512, 512), 1)
    pruned[::2] = 0
    small = np.array([0.0], np.float32)
    proto = model(
        [node("MatMul", "x w", "h"), node("MatMul", "h v", "i"), node("Add", "i b", "y")],
        [value("x", (512, 512))],
        [value("y", (512, 512))],
        {"w": pruned, "v": weight((512, 512), 2), "b": small},
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    loaded = load_model(path)
    zeros = WeightZeros(loaded)
    assert set(zeros) == {"w", "v", "b"}
    assert zeros["w"] == 0.5
    assert zeros["v"] == 0.0
    assert zeros["b"] == 1.0
    assert "x" not in zeros
    assert len(zeros) == 3
    held = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    assert all(zeros[name] == 1 - np.count_nonzero(held[name]) / held[name].size for name in zeros)
    context = PlanningContext(loaded, cores=2, fusion_safe=fusion_safe_tensors(loaded))
    devices = {PHONE: PlanDevice(backend=open_backend(PHONE, {"speed": 100_000}))}
    shared = plan_shared(context, devices, Sparsity(max_zeros=0.1), name="sparsity")
    assert shared.plan is not None
    there = [
        loaded.graph.nodes[index].op_type
        for segment in shared.plan.segments
        if segment.backend == PHONE
        for index in segment.nodes
    ]
    # The half of it that is zeros stays on the CPU.
    assert there.count("MatMul") == 1


def test_a_name_is_the_same_placer_every_time() -> None:
    for name in PLACERS:
        assert type(open_placer(name)) is type(open_placer(name))
