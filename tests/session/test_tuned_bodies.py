"""Tuning plans bodies of control flow too, and measures what that gains."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

import parallax
from tests._threads import in_threads
from tests._tuning import let_the_last_win
from tests.engine._flow_models import BOOL, FLOAT, INT64, body, constant, info, model

PHONE = "emulated:pixel-6-gpu"
SIZE = 192


def busy_loop(chains: int = 2, steps: int = 6) -> bytes:
    """A Loop whose body has chains that run on one thread each, side by side if planned so."""
    nodes, ends = [], []
    for chain in range(chains):
        last = f"v{chain}"
        # Equal chains would be merged.
        nodes.append(helper.make_node("Neg" if chain else "Abs", ["v"], [last], name=f"begin_{chain}"))
        for step in range(steps):
            name = f"c{chain}_{step}"
            nodes.append(helper.make_node("Softmax", [last], [name], axis=0, name=name))
            last = name
        ends.append(last)
    nodes += [
        helper.make_node("Sum", ends, ["v_out"], name="sum"),
        helper.make_node("Identity", ["c"], ["go"], name="go"),
    ]
    looped = body(
        nodes,
        [info("i", INT64, []), info("c", BOOL, []), info("v", FLOAT, [SIZE, SIZE])],
        [info("go", BOOL), info("v_out", FLOAT, [SIZE, SIZE])],
        [],
    )
    proto = model(
        [helper.make_node("Loop", ["M", "", "x"], ["y"], name="loop", body=looped)],
        [info("M", INT64, []), info("x", FLOAT, [SIZE, SIZE])],
        [info("y", FLOAT, [SIZE, SIZE])],
        [],
    )
    made: bytes = proto.SerializeToString()
    return made


def product_loop() -> bytes:
    """A Loop over matrix products, which the phone takes, and error functions, which it does not."""
    nodes, weights, last = [], [], "v"
    for step in range(4):
        values = np.random.default_rng(step).standard_normal((SIZE, SIZE)) / SIZE**0.5
        weights.append(constant(f"w{step}", values))
        nodes.append(helper.make_node("MatMul", [last, f"w{step}"], [f"p{step}"], name=f"product_{step}"))
        nodes.append(helper.make_node("Erf", [f"p{step}"], [f"e{step}"], name=f"erf_{step}"))
        last = f"e{step}"
    nodes.append(helper.make_node("Identity", ["c"], ["go"], name="go"))
    looped = body(
        nodes,
        [info("i", INT64, []), info("c", BOOL, []), info("v", FLOAT, [SIZE, SIZE])],
        [info("go", BOOL), info(last, FLOAT, [SIZE, SIZE])],
        weights,
    )
    proto = model(
        [helper.make_node("Loop", ["M", "", "x"], ["y"], name="loop", body=looped)],
        [info("M", INT64, []), info("x", FLOAT, [SIZE, SIZE])],
        [info("y", FLOAT, [SIZE, SIZE])],
        [],
    )
    made: bytes = proto.SerializeToString()
    return made


def busy_feeds(seed: int = 0, count: int = 3) -> dict[str, Any]:
    values = np.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(np.float32)
    return {"M": np.array(count, np.int64), "x": values}


@pytest.fixture(autouse=True)
def bodies_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, whatever else the machine is doing: plans with bodies come last."""
    let_the_last_win(monkeypatch)


def check(session: parallax.InferenceSession, proto: bytes, feeds: list[dict[str, Any]]) -> None:
    stock = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    for fed in feeds:
        for mine, theirs in zip(session.run(None, fed), stock.run(None, fed), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_bodies_are_planned_for_cores_measured_and_remembered(tmp_path: Path) -> None:
    proto = busy_loop()
    options: dict[str, Any] = {"threads": 2, "cache_dir": tmp_path, "backends": ()}
    session = parallax.InferenceSession(proto, tune=True, calibration=busy_feeds(), **options)
    plan = session.plan
    (lowered,) = [segment for segment in plan.segments if segment.bodies]
    assert len(lowered.bodies[0].plan.segments) > 1
    label = plan.provenance.candidates[-1].label
    assert label.endswith("bodies planned")
    assert plan.provenance.candidates[-1].measured_ns
    assert plan.provenance.source == "measured"
    feeds = [busy_feeds(seed, count) for seed, count in ((0, 3), (1, 0), (2, 1), (3, 7))]
    later = parallax.InferenceSession(proto, **options)
    assert later.plan == plan
    for one in (session, later, pickle.loads(pickle.dumps(later))):
        assert any(segment.bodies for segment in one.plan.segments)
        check(one, proto, feeds)


def test_a_bundle_is_not_given_a_plan_with_bodies_and_a_session_keeps_its_own(tmp_path: Path) -> None:
    proto = busy_loop()
    options: dict[str, Any] = {"threads": 2, "cache_dir": tmp_path, "backends": ()}
    tuned = parallax.InferenceSession(proto, tune=True, calibration=busy_feeds(), **options)
    source = tmp_path / "loop.onnx"
    source.write_bytes(proto)
    folder = parallax.compile(source, tmp_path / "loop.plx", threads=2, cache_dir=tmp_path)
    bundled = parallax.InferenceSession(str(folder))
    assert not any(segment.bodies for segment in bundled.plan.segments)
    check(bundled, proto, [busy_feeds()])
    assert parallax.InferenceSession(proto, **options).plan == tuned.plan


def test_eight_threads_run_tuned_bodies_within_a_budget(tmp_path: Path) -> None:
    proto = busy_loop()
    session = parallax.InferenceSession(
        proto, tune=True, calibration=busy_feeds(), threads=2, cache_dir=tmp_path, backends=(), memory_budget="64MiB"
    )
    assert any(segment.bodies for segment in session.plan.segments)
    stock = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    answers = [stock.run(None, busy_feeds(seed, seed % 4))[0] for seed in range(8)]

    def work(seed: int) -> None:
        for _ in range(4):
            answer = session.run(None, busy_feeds(seed, seed % 4))[0]
            np.testing.assert_allclose(answer, answers[seed], rtol=1e-5, atol=1e-6)

    in_threads(8, work)


def test_bodies_are_planned_for_a_device(tmp_path: Path) -> None:
    proto = product_loop()
    options: dict[str, Any] = {
        "providers": [(PHONE, {"speed": 1000, "host_flops": 100e9})],
        "threads": 2,
        "cache_dir": tmp_path,
    }
    session = parallax.InferenceSession(proto, tune=True, calibration=busy_feeds(), **options)
    assert session.plan.provenance.candidates[-1].label == f"whole model beside {PHONE}, bodies planned"
    inside = {
        segment.backend for outer in session.plan.segments for one in outer.bodies for segment in one.plan.segments
    }
    assert PHONE in inside
    later = parallax.InferenceSession(proto, **options)
    assert later.plan == session.plan
    for one in (session, later):
        check(one, proto, [busy_feeds(seed, seed) for seed in range(4)])
