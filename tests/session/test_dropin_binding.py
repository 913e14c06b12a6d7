"""IO binding, OrtValues and the inner session work as they do on ONNX Runtime's class."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime import OrtDevice, OrtValue
from onnxruntime.capi import onnxruntime_pybind11_state as native
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.session._dropin import (
    RESHAPING,
    TWO_OUTPUTS,
    SessionClass,
    assert_cut,
    on_every_session,
    open_session,
    ramp,
    two_outputs_answer,
)

X, Y = ramp(2, 4), ramp(2, 4, start=0.3)
LEFT, RIGHT, BOTH = two_outputs_answer(X, Y)
ORT_VALUE = OrtValue.ortvalue_from_numpy


@pytest.fixture
def session(session_class: SessionClass) -> onnxruntime.InferenceSession:
    session = open_session(session_class, TWO_OUTPUTS)
    assert_cut(session)
    return session


def _close(actual: Any, wanted: Any) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


def _bind_inputs(binding: Any, x: Any = X, y: Any = Y) -> Any:
    binding.bind_cpu_input("x", x)
    binding.bind_cpu_input("y", y)
    return binding


# --- IO binding -----------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("make", [onnxruntime.IOBinding, lambda session: session.io_binding()], ids=["class", "method"])
def test_bound_arrays_are_run(session: onnxruntime.InferenceSession, make: Any) -> None:
    binding = _bind_inputs(make(session))
    assert isinstance(binding, onnxruntime.IOBinding)
    for name in ("left", "right", "both"):
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    left, right, both = binding.copy_outputs_to_cpu()
    _close(left, LEFT)
    _close(right, RIGHT)
    _close(both, BOTH)


@on_every_session
def test_outputs_come_in_the_order_they_were_bound(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding())
    binding.bind_output("both")
    binding.bind_output("left")
    session.run_with_iobinding(binding)
    assert [value.shape() for value in binding.get_outputs()] == [[2, 8], [2, 4]]
    assert [value.data_type() for value in binding.get_outputs()] == ["tensor(float)"] * 2
    assert len(binding.get_outputs_as_ortvaluevector()) == 2
    _close(binding.copy_outputs_to_cpu()[1], LEFT)


@on_every_session
def test_an_output_is_written_into_the_callers_buffer(session: onnxruntime.InferenceSession) -> None:
    buffer = np.zeros((2, 4), np.float32)
    binding = _bind_inputs(session.io_binding())
    binding.bind_output("right", "cpu", 0, np.float32, [2, 4], buffer.ctypes.data)
    session.run_with_iobinding(binding)
    _close(buffer, RIGHT)
    assert binding.get_outputs()[0].data_ptr() == buffer.ctypes.data


@on_every_session
def test_a_bound_buffer_is_read_and_written_anew_in_each_run(session: onnxruntime.InferenceSession) -> None:
    x, y, out = X.copy(), Y.copy(), np.zeros((2, 8), np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_input("y", "cpu", 0, 1, y.shape, y.ctypes.data)
    binding.bind_output("both", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    for start in (-1.0, 0.5, 3.0):
        x[...], y[...] = ramp(2, 4, start=start), ramp(2, 4, start=-start)
        session.run_with_iobinding(binding)
        _close(out, two_outputs_answer(x, y)[2])


@on_every_session
def test_ort_values_are_bound_without_a_copy(session: onnxruntime.InferenceSession) -> None:
    target = OrtValue.ortvalue_from_shape_and_type([2, 8], np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ORT_VALUE(X))
    binding.bind_ortvalue_input("y", ORT_VALUE(Y))
    binding.bind_ortvalue_output("both", target)
    session.run_with_iobinding(binding)
    _close(target.numpy(), BOTH)


@on_every_session
def test_the_output_of_one_run_feeds_the_next(session: onnxruntime.InferenceSession) -> None:
    # The loop of every decoder with a key-value cache.
    state, wanted = ORT_VALUE(X), X
    for _ in range(4):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", state)
        binding.bind_ortvalue_input("y", ORT_VALUE(Y))
        binding.bind_output("left")
        session.run_with_iobinding(binding)
        state = binding.get_outputs()[0]
        wanted = np.sin(wanted) + np.float32(1)
    _close(state.numpy(), wanted)


@on_every_session
def test_inputs_may_be_rebound_to_another_shape(session: onnxruntime.InferenceSession) -> None:
    binding = session.io_binding()
    for rows in (1, 5, 2):
        x, y = ramp(rows, 4), ramp(rows, 4, start=1)
        _bind_inputs(binding, x, y)
        binding.bind_output("both")
        session.run_with_iobinding(binding)
        _close(binding.copy_outputs_to_cpu()[0], two_outputs_answer(x, y)[2])


@on_every_session
def test_a_non_contiguous_array_may_be_bound(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding(), np.asfortranarray(X), np.repeat(Y, 2, axis=1)[:, ::2])
    binding.bind_output("both")
    session.run_with_iobinding(binding)
    _close(binding.copy_outputs_to_cpu()[0], BOTH)


@on_every_session
def test_synchronisation_and_run_options_are_accepted(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding())
    binding.bind_output("both")
    binding.synchronize_inputs()
    session.run_with_iobinding(binding, onnxruntime.RunOptions())
    binding.synchronize_outputs()
    _close(binding.copy_outputs_to_cpu()[0], BOTH)


@on_every_session
def test_two_bindings_of_a_session_do_not_mix(session: onnxruntime.InferenceSession) -> None:
    first, second = _bind_inputs(session.io_binding()), _bind_inputs(session.io_binding(), Y, X)
    for binding in (first, second):
        binding.bind_output("left")
    session.run_with_iobinding(first)
    session.run_with_iobinding(second)
    _close(first.copy_outputs_to_cpu()[0], LEFT)
    _close(second.copy_outputs_to_cpu()[0], np.sin(Y) + 1)


@on_every_session
def test_run_and_bound_runs_alternate(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding())
    binding.bind_output("both")
    for _ in range(3):
        _close(session.run(["both"], {"x": X, "y": Y})[0], BOTH)
        session.run_with_iobinding(binding)
        _close(binding.copy_outputs_to_cpu()[0], BOTH)


@on_every_session
def test_a_binding_of_another_session_is_refused(session: onnxruntime.InferenceSession) -> None:
    other = open_session(type(session), TWO_OUTPUTS)
    binding = _bind_inputs(other.io_binding())
    binding.bind_output("both")
    with pytest.raises(ValueError, match="session that created it"):
        session.run_with_iobinding(binding)


@on_every_session
def test_a_name_that_is_no_input_can_not_be_bound(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(RuntimeError, match="nothing"):
        session.io_binding().bind_cpu_input("nothing", X)


@on_every_session
@pytest.mark.parametrize(
    ("x", "outputs", "message"),
    [
        (X, ["nothing"], "nothing"),
        (X, [], "output"),
        (X.astype(np.float64), ["left"], r"tensor\(float\)"),
        (X[0], ["left"], r"rank.*x"),
        (ramp(2, 3), ["left"], r"dimension.*x"),
    ],
    ids=["unknown-output", "no-output", "type", "rank", "dimension"],
)
def test_a_wrong_binding_fails_when_it_is_run(
    session: onnxruntime.InferenceSession, x: Any, outputs: list[str], message: str
) -> None:
    binding = _bind_inputs(session.io_binding(), x)
    for name in outputs:
        binding.bind_output(name)
    with pytest.raises(RuntimeError, match=f"(?is){message}"):
        session.run_with_iobinding(binding)
    _close(session.run(["both"], {"x": X, "y": Y})[0], BOTH)


@on_every_session
def test_a_missing_bound_input_is_named(session: onnxruntime.InferenceSession) -> None:
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("both")
    with pytest.raises(RuntimeError, match=r"\by\b"):
        session.run_with_iobinding(binding)


@on_every_session
def test_a_buffer_of_the_wrong_size_is_refused(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding())
    binding.bind_ortvalue_output("both", OrtValue.ortvalue_from_shape_and_type([3, 8], np.float32))
    with pytest.raises(RuntimeError, match=r"(?i)shape"):
        session.run_with_iobinding(binding)


@on_every_session
def test_a_failure_while_running_a_binding_leaves_the_session_usable(session_class: SessionClass) -> None:
    session = open_session(session_class, RESHAPING)
    assert_cut(session)
    binding = session.io_binding()
    for shape, works in (([2, 4], True), ([3, 3], False), ([8, 1], True)):
        binding.bind_cpu_input("x", X)
        binding.bind_cpu_input("shape", np.array(shape))
        binding.bind_output("bad")
        if works:
            session.run_with_iobinding(binding)
            _close(binding.copy_outputs_to_cpu()[0], np.tanh(X).reshape(shape))
        else:
            with pytest.raises(RuntimeError, match="BadReshape"):
                session.run_with_iobinding(binding)


@on_every_session
def test_cleared_bindings_are_gone(session: onnxruntime.InferenceSession) -> None:
    binding = _bind_inputs(session.io_binding())
    binding.bind_output("left")
    session.run_with_iobinding(binding)
    binding.clear_binding_outputs()
    with pytest.raises(RuntimeError, match=r"(?i)output"):
        session.run_with_iobinding(binding)
    binding.bind_output("left")
    binding.clear_binding_inputs()
    with pytest.raises(RuntimeError):
        session.run_with_iobinding(binding)


# --- OrtValues ------------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("names", [None, [], ["both", "left"], ["right"]], ids=repr)
def test_ort_values_in_ort_values_out(session: onnxruntime.InferenceSession, names: Any) -> None:
    answers = {"left": LEFT, "right": RIGHT, "both": BOTH}
    values = session.run_with_ort_values(names, {"x": ORT_VALUE(X), "y": ORT_VALUE(Y)})
    assert type(values) is list
    assert len(values) == len(names or answers)
    for name, value in zip(names or answers, values, strict=True):
        assert isinstance(value, OrtValue)
        assert value.data_type() == "tensor(float)"
        assert value.device_name() == "cpu"
        assert value.is_tensor()
        _close(value.numpy(), answers[name])


@on_every_session
def test_ort_values_of_a_result_feed_the_next_run(session: onnxruntime.InferenceSession) -> None:
    (left,) = session.run_with_ort_values(["left"], {"x": ORT_VALUE(X), "y": ORT_VALUE(Y)})
    (again,) = session.run_with_ort_values(["left"], {"x": left, "y": ORT_VALUE(Y)})
    _close(again.numpy(), np.sin(LEFT) + 1)
    _close(left.numpy(), LEFT)


@on_every_session
def test_held_ort_values_are_not_overwritten(session: onnxruntime.InferenceSession) -> None:
    held = [
        session.run_with_ort_values(["both"], {"x": ORT_VALUE(X + shift), "y": ORT_VALUE(Y)})[0]
        for shift in np.arange(8, dtype=np.float32)
    ]
    for shift, value in enumerate(held):
        _close(value.numpy(), two_outputs_answer(X + np.float32(shift), Y)[2])


@on_every_session
@pytest.mark.parametrize(
    ("names", "feed", "error"),
    [
        (None, {"x": ORT_VALUE(X)}, ValueError),
        (["nothing"], {"x": ORT_VALUE(X), "y": ORT_VALUE(Y)}, InvalidArgument),
        (None, {"x": ORT_VALUE(X.astype(np.float64)), "y": ORT_VALUE(Y)}, InvalidArgument),
        (None, {"x": ORT_VALUE(X[0]), "y": ORT_VALUE(Y)}, InvalidArgument),
        (None, {"x": ORT_VALUE(X), "y": ORT_VALUE(Y), "z": ORT_VALUE(Y)}, InvalidArgument),
        (None, {"x": X, "y": Y}, AttributeError),
    ],
    ids=["missing", "unknown-output", "type", "rank", "unknown-input", "arrays"],
)
def test_wrong_ort_values_are_refused(
    session: onnxruntime.InferenceSession, names: Any, feed: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        session.run_with_ort_values(names, feed)
    _close(session.run(["both"], {"x": X, "y": Y})[0], BOTH)


@on_every_session
def test_vectors_of_ort_values_are_run(session: onnxruntime.InferenceSession) -> None:
    feeds, results = native.OrtValueVector(), native.OrtValueVector()
    for array in (X, Y):
        feeds.push_back(ORT_VALUE(array)._ortvalue)
    cpu = OrtDevice.make("cpu", 0)._get_c_device()
    session.run_with_ortvaluevector(onnxruntime.RunOptions(), ["x", "y"], feeds, ["both", "left"], results, [cpu, cpu])
    both, left = (value.numpy() for value in results)
    _close(both, BOTH)
    _close(left, LEFT)


@on_every_session
def test_the_session_makes_ort_values_of_its_own(session: onnxruntime.InferenceSession) -> None:
    value = session.create_ortvalue_from_shape_and_type([2, 4], np.float32, "cpu")
    value.update_inplace(X)
    _close(session.run_with_ort_values(["left"], {"x": value, "y": ORT_VALUE(Y)})[0].numpy(), LEFT)


# --- The inner session ----------------------------------------------------------------------------


@on_every_session
def test_the_inner_session_is_there_for_those_who_reach_for_it(session: onnxruntime.InferenceSession) -> None:
    inner = session._sess
    assert isinstance(inner, native.InferenceSession)
    assert session._sess is inner
    assert [value.name for value in inner.inputs_meta] == ["x", "y"]
    left, both = inner.run(["left", "both"], {"x": X, "y": Y}, None)
    _close(left, LEFT)
    _close(both, BOTH)
    assert isinstance(native.SessionIOBinding(inner), native.SessionIOBinding)


@on_every_session
def test_asking_for_the_inner_session_changes_no_answer(session: onnxruntime.InferenceSession) -> None:
    before = session.run(None, {"x": X, "y": Y})
    assert session._sess is not None
    for earlier, later in zip(before, session.run(None, {"x": X, "y": Y}), strict=True):
        np.testing.assert_array_equal(earlier, later)
