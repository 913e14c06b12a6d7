"""Sessions that may use other backends than the runtime's CPU kernels: found by measuring, dropped where they fail."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends import FaultPolicy, open_backend
from parallax.backends.openvino import openvino_table_digest
from parallax.errors import ConfigError
from parallax.model import load_model
from parallax.opening._plan_choice import plan_request
from parallax.options._options import Options, PlanningOptions
from parallax.options._providers import make_device
from parallax.planner import PlanDevice
from parallax.planner._kept import plan_key, remember_plan
from parallax.planner._placing import plan_whole_on
from tests.engine._faulty import installed

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install openvino"
)
TWIN = "CPUExecutionProvider"
"""A backend like any other, except that it is always there."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((64, 64), dtype=np.float32), name) for name in ("w0", "w1")
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w1"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        weights,
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def feeds(rows: int = 8) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 64), dtype=np.float32)}


def remember_whole_on(backend: str, path: Path, cache: Path, *, as_backend: str | None = None) -> None:
    """As if tuning had found the backend best."""
    model = load_model(path)
    plan, obstacle = plan_whole_on(backend, model, cores=1)
    assert plan is not None, obstacle
    if as_backend is not None:
        plan = replace(plan, segments=(replace(plan.segments[0], backend=as_backend),))
    options = PlanningOptions.of(Options(threads=1, cache_dir=cache, backends=(backend,)))
    remember_plan(plan_request(model, options, None), plan)


def test_plans_with_openvino_are_kept_for_one_table_of_what_it_computes_right(model: Path) -> None:
    """Whichever way it was named: with another table, other nodes may go there."""
    loaded = load_model(model)

    def key(backends: tuple[str, ...], device: str | None) -> str:
        options = PlanningOptions.of(Options(backends=backends, threads=1))
        key_of_device = "" if device is None else make_device(device, {}).key
        # What it is opened as does not count: that is its name's and its options' affair.
        devices = {} if device is None else {device: PlanDevice(backend=open_backend("cpu"), key=key_of_device)}
        return plan_key(replace(plan_request(loaded, options, None), devices=devices))

    digest = openvino_table_digest()
    assert digest in key(("openvino",), None)
    assert digest in key((), "openvino")
    assert digest in key((), "openvino:GPU")
    assert digest not in key((), None)
    assert digest not in key((TWIN,), None)


def test_tuning_compares_the_backends_it_is_given(model: Path, tmp_path: Path) -> None:
    session = parallax.InferenceSession(
        model, threads=1, tune=True, calibration=feeds(), cache_dir=tmp_path / "cache", backends=(TWIN,)
    )
    labels = {candidate.label: candidate for candidate in session.plan.provenance.candidates}
    assert labels[f"whole model, {TWIN}"].measured_ns is not None
    assert labels[f"whole model, {TWIN}"].note == ""
    plain = onnxruntime.InferenceSession(model)
    np.testing.assert_array_equal(session.run(None, feeds())[0], plain.run(None, feeds())[0])


@pytest.mark.parametrize("backend", [TWIN, pytest.param("openvino", marks=needs_openvino)])
def test_a_plan_on_a_backend_is_kept_and_gives_the_same_answers(backend: str, model: Path, tmp_path: Path) -> None:
    remember_whole_on(backend, model, tmp_path)
    session = parallax.InferenceSession(model, threads=1, cache_dir=tmp_path, backends=(backend,))
    assert session.plan.segments[0].backend == backend
    plain = onnxruntime.InferenceSession(model)
    for rows in (1, 8, 3):
        (ours,), (theirs,) = session.run(None, feeds(rows)), plain.run(None, feeds(rows))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_what_a_kept_plan_needs_may_be_gone(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remember_whole_on(TWIN, model, tmp_path, as_backend="nowhere")
    session = parallax.InferenceSession(model, threads=1, cache_dir=tmp_path, backends=(TWIN,))
    assert session.plan.is_whole
    assert any("nowhere" in text for text in caplog.messages)
    plain = onnxruntime.InferenceSession(model)
    np.testing.assert_array_equal(session.run(None, feeds())[0], plain.run(None, feeds())[0])


@pytest.mark.parametrize(
    "asked", [{}, {"backends": ()}, {"backends": (TWIN,), "threads": 2}, {"sess_options": onnxruntime.SessionOptions()}]
)
def test_a_plan_on_a_backend_is_for_those_who_ask_for_it(asked: dict[str, Any], model: Path, tmp_path: Path) -> None:
    remember_whole_on(TWIN, model, tmp_path)
    session = parallax.InferenceSession(model, cache_dir=tmp_path, **({"threads": 1} | asked))
    assert session.plan.is_whole


@pytest.mark.parametrize("backends", ["openvino", 3, ("",), (None,)])
def test_backends_are_names(backends: Any, model: Path) -> None:
    with pytest.raises(ConfigError, match="backends"):
        parallax.InferenceSession(model, backends=backends)


@needs_openvino
def test_providers_that_are_named_leave_other_backends_out(model: Path, tmp_path: Path) -> None:
    remember_whole_on("openvino", model, tmp_path)
    named = parallax.InferenceSession(model, threads=1, cache_dir=tmp_path, providers=["CPUExecutionProvider"])
    assert named.plan.is_whole
    unnamed = parallax.InferenceSession(model, threads=1, cache_dir=tmp_path)
    assert unnamed.plan.segments[0].backend == "openvino"


@pytest.mark.parametrize(
    ("device", "faults"),
    [
        ("fails", None),
        ("nans", FaultPolicy(checks_nan=True, tolerated=1000)),
        ("hangs", FaultPolicy(deadline_s=0.2)),
    ],
)
def test_a_backend_that_misbehaves_changes_no_answer(
    device: str, faults: FaultPolicy | None, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = f"faulty:{device}"
    with installed(tmp_path):
        remember_whole_on(backend, model, tmp_path / "cache")
        session = parallax.InferenceSession(
            model, threads=1, cache_dir=tmp_path / "cache", backends=(backend,), faults=faults
        )
        assert session.plan.segments[0].backend == backend
        reference = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for rows in range(1, 20):
            np.testing.assert_allclose(
                session.run(None, feeds(rows))[0], reference.run(None, feeds(rows))[0], rtol=1e-5, atol=1e-5
            )
    assert [backend in record.message for record in caplog.records if record.levelname == "WARNING"] == [True]


def test_a_copy_keeps_what_is_done_about_faults(model: Path) -> None:
    faults = FaultPolicy(deadline_s=2.0)
    copy = pickle.loads(pickle.dumps(parallax.InferenceSession(model, faults=faults)))
    assert copy._parallax_options.faults == faults


def test_faults_are_a_policy(model: Path) -> None:
    wrong: Any = 2.0
    with pytest.raises(ConfigError, match=r"faults=2\.0 is no FaultPolicy; write faults="):
        parallax.InferenceSession(model, faults=wrong)
