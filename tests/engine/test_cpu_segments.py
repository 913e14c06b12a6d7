"""What runs on the CPU is opened in one way, whether it was planned for it or fell back to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import CompiledModel, CompileOptions, compile_guarded
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions, cpu_backend
from parallax.engine._compile import compile_segment
from parallax.errors import BackendError
from parallax.machine import available_cores
from parallax.model import Model, SegmentModel, load_model
from parallax.planner import whole_plan
from tests.backends._backends import model_of, whole

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
KEYS = ("session.force_spinning_stop", "session.intra_op_thread_affinities", "session.use_env_allocators")
CONFIG = (("session.disable_prepacking", "1"),)
INHERITED = RuntimeOptions(
    log_severity_level=3, enable_mem_pattern=False, config=(("session.disable_prepacking", "1"),)
)


class Refusing:
    """A backend that takes no part."""

    info = cpu_backend().info

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions) -> CompiledModel:
        raise BackendError("it is not in the mood")


def weighted() -> Model:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.arange(4 * 300, dtype=np.float32).reshape(4, 300)}
    return load_model(
        model_of([node], {"x": (TensorProto.FLOAT, [3, 4])}, {"y": (TensorProto.FLOAT, [3, 300])}, weights)
    )


def settings(made: Any) -> dict[str, object]:
    told: dict[str, object] = {}
    for key in (*KEYS, *(key for key, _ in INHERITED.config)):
        try:
            told[key] = made.get_session_config_entry(key)
        except RuntimeError:
            told[key] = None
    names = ("intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern", "log_severity_level")
    return told | {name: getattr(made, name) for name in names}


@pytest.mark.parametrize("width", sorted({1, available_cores()}))
def test_planned_and_fallen_back_segments_have_the_same_settings(
    width: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []
    real = onnxruntime.SessionOptions

    def options() -> Any:
        made.append(real())
        return made[-1]

    model = weighted()
    (segment,) = whole_plan(model, "for the test", cores=available_cores(), width=width).segments
    cpu_backend()
    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    planned = compile_segment(model, segment, INHERITED).session
    fallen_back = compile_guarded(
        Refusing(), whole(model), fallback=cpu_backend(), width=width, options=CompileOptions(session_options=INHERITED)
    )
    assert len(made) == 2
    assert settings(made[0]) == settings(made[1])
    assert settings(made[0])["session.use_env_allocators"] == "1"
    assert settings(made[0])["intra_op_num_threads"] == width
    fed = {"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}
    (first,) = planned.run_with_ort_values(fed, ["y"], None)
    (second,) = fallen_back.run_with_ort_values(fed, ["y"])
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_a_segment_that_the_runtime_refuses_says_which_nodes_these_are() -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="nobody")
    proto = model_of([node], {"x": (TensorProto.FLOAT, [3])}, {"y": (TensorProto.FLOAT, [3])}, domains=["nobody"])
    model = load_model(proto)
    (segment,) = whole_plan(model, "for the test", cores=1).segments
    with pytest.raises(BackendError, match="the runtime refuses a part of the model") as caught:
        compile_segment(model, segment, RuntimeOptions(log_severity_level=4))
    assert "odd" in str(caught.value)
    assert isinstance(caught.value.__cause__, C.Fail | C.InvalidGraph | C.NotImplemented)
    assert isinstance(caught.value, type(caught.value.__cause__))
