"""What a session says of its model and of itself is what ONNX Runtime's says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.session._dropin import (
    BRANCHING,
    DIAMOND,
    LOOPING,
    SCANNING,
    SEQUENCES,
    TWO_OUTPUTS,
    SessionClass,
    assert_cut,
    branches_model,
    on_every_session,
    open_session,
    parse,
    quiet_options,
    ramp,
)

TYPES = """
g (float x, float16[N,4] h, int64[A,B,A] i, string[] s, bool[1] b, double[N] d, seq(float[N]) q, optional(int64[2]) o)
  => (float x2, float16[N,4] h2, int64[A,B,A] i2, string[] s2, bool[1] b2, double[N] d2, seq(float[N]) q2, bool o2)
{
  x2 = Sin(x)
  h2 = Identity(h)
  i2 = Add(i, i)
  s2 = Identity(s)
  b2 = Not(b)
  d2 = Sin(d)
  q2 = Identity(q)
  o2 = OptionalHasElement(o)
}
"""

OVERRIDABLE = """
g (float[N,4] x, float[4] w) => (float[N,4] a, float[N,4] b)
<float[4] w = {1, 2, 3, 4}, float[4] fixed = {5, 6, 7, 8}>
{
  [SinX] s = Sin(x)
  [AddW] a = Add(s, w)
  [CosX] c = Cos(x)
  [AddFixed] b = Add(c, fixed)
}
"""

MODELS = {
    "two-outputs": parse(TWO_OUTPUTS),
    "diamond": parse(DIAMOND),
    "if": parse(BRANCHING),
    "loop": parse(LOOPING),
    "scan": parse(SCANNING),
    "sequences": parse(SEQUENCES),
    "types": parse(TYPES),
    "overridable": parse(OVERRIDABLE),
    "branches": branches_model(4),
    "no-inputs": parse("g () => (float[2] y) <float[2] w = {1, 2}> { y = Sin(w) }"),
    "passthrough": parse("g (float[N] x) => (float[N] x, float[N] y) { y = Sin(x) }"),
}


def _described(values: Any) -> list[tuple[str, str, Any]]:
    return [(value.name, value.type, value.shape) for value in values]


@on_every_session
@pytest.mark.parametrize("name", MODELS)
def test_inputs_outputs_and_overridable_initializers_are_described_alike(
    session_class: SessionClass, name: str
) -> None:
    model = MODELS[name].SerializeToString()
    plain, session = onnxruntime.InferenceSession(model), session_class(model)
    for question in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        answer = getattr(session, question)()
        assert _described(answer) == _described(getattr(plain, question)())
        assert [str(value) for value in answer] == [str(value) for value in getattr(plain, question)()]
        assert isinstance(answer, list)


@on_every_session
def test_node_args_have_onnxruntimes_type(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    for value in (*session.get_inputs(), *session.get_outputs()):
        assert isinstance(value, onnxruntime.NodeArg)


@on_every_session
def test_a_free_dimension_may_be_fixed_by_the_options(session_class: SessionClass) -> None:
    options = quiet_options()
    options.add_free_dimension_override_by_name("N", 3)
    session = session_class(parse(TWO_OUTPUTS).SerializeToString(), options)
    assert [value.shape for value in session.get_inputs()] == [[3, 4], [3, 4]]
    assert session.run(["both"], {"x": ramp(3, 4), "y": ramp(3, 4)})[0].shape == (3, 8)


@on_every_session
def test_an_overridable_initializer_has_its_value_until_fed(session_class: SessionClass) -> None:
    session = open_session(session_class, OVERRIDABLE)
    assert_cut(session)
    x, own, fed = ramp(2, 4), np.array([1, 2, 3, 4], np.float32), np.full(4, -9, np.float32)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_overridable_initializers()] == ["w"]
    for _ in range(2):
        for w, feed in ((own, {"x": x}), (fed, {"x": x, "w": fed})):
            a, b = session.run(None, feed)
            np.testing.assert_allclose(a, np.sin(x) + w, rtol=1e-6)
            np.testing.assert_allclose(b, np.cos(x) + np.float32([5, 6, 7, 8]), rtol=1e-6)


@on_every_session
@pytest.mark.parametrize("w", [ramp(5), ramp(1, 4), np.zeros(4)], ids=["dimension", "rank", "type"])
def test_a_wrong_value_for_an_overridable_initializer_is_refused(session_class: SessionClass, w: Any) -> None:
    session = open_session(session_class, OVERRIDABLE)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(None, {"x": ramp(2, 4), "w": w})


@on_every_session
def test_an_initializer_that_is_no_input_can_not_be_fed(session_class: SessionClass) -> None:
    session = open_session(session_class, OVERRIDABLE)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="fixed"):
        session.run(None, {"x": ramp(2, 4), "fixed": ramp(4)})


@on_every_session
def test_metadata_of_the_model_is_kept(session_class: SessionClass) -> None:
    model = parse(TWO_OUTPUTS)
    model.producer_name, model.model_version, model.domain = "a producer", 7, "org.example"
    model.doc_string, model.graph.doc_string = "what the model does", "what the graph does"
    onnx.helper.set_model_props(model, {"classes": "cat,dog", "author": "Zoë", "empty": ""})
    meta = open_session(session_class, model).get_modelmeta()
    assert isinstance(meta, onnxruntime.ModelMetadata)
    assert meta.custom_metadata_map == {"classes": "cat,dog", "author": "Zoë", "empty": ""}
    assert (meta.producer_name, meta.version, meta.domain) == ("a producer", 7, "org.example")
    assert (meta.description, meta.graph_description) == ("what the model does", "what the graph does")
    assert meta.graph_name == "g"


@on_every_session
def test_a_model_without_metadata_has_empty_metadata(session_class: SessionClass) -> None:
    meta = open_session(session_class, TWO_OUTPUTS).get_modelmeta()
    assert meta.custom_metadata_map == {}
    assert meta.producer_name == ""


@on_every_session
def test_providers_and_their_options_are_told(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_provider_options() == {"CPUExecutionProvider": {}}


@on_every_session
def test_session_options_are_told_as_they_were_given(session_class: SessionClass) -> None:
    options = quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.logid = "mine"
    options.add_session_config_entry("session.disable_prepacking", "1")
    told = session_class(parse(TWO_OUTPUTS).SerializeToString(), options).get_session_options()
    assert isinstance(told, onnxruntime.SessionOptions)
    assert told.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert told.logid == "mine"
    assert told.intra_op_num_threads == 1
    assert told.get_session_config_entry("session.disable_prepacking") == "1"


@on_every_session
def test_session_options_are_there_where_none_were_given(session_class: SessionClass) -> None:
    told = session_class(parse(TWO_OUTPUTS).SerializeToString()).get_session_options()
    assert isinstance(told, onnxruntime.SessionOptions)
    assert told.enable_profiling is False


@on_every_session
def test_setting_providers_keeps_a_working_session(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    feed = {"x": ramp(2, 4), "y": ramp(2, 4)}
    before = session.run(None, feed)
    for arguments in ((["CPUExecutionProvider"],), (["CPUExecutionProvider"], [{}]), ()):
        session.set_providers(*arguments)
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert [value.name for value in session.get_inputs()] == ["x", "y"]
        for earlier, later in zip(before, session.run(None, feed), strict=True):
            np.testing.assert_array_equal(earlier, later)


@on_every_session
def test_setting_providers_that_do_not_exist_is_refused(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    with (
        pytest.warns(UserWarning, match="NoSuchExecutionProvider"),
        pytest.raises(RuntimeError, match=r"NoSuchExecutionProvider|Unknown Provider"),
    ):
        session.set_providers(["NoSuchExecutionProvider"])


@on_every_session
def test_devices_and_memory_of_inputs_and_outputs_are_told(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    assert len(session.get_input_memory_infos()) == 2
    assert len(session.get_output_memory_infos()) == 3
    assert len(session.get_input_epdevices()) == 2
    for info in (*session.get_input_memory_infos(), *session.get_output_memory_infos()):
        assert isinstance(info, onnxruntime.OrtMemoryInfo)
        assert info.name == "Cpu"


@on_every_session
def test_fallback_can_be_switched_off_and_on(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    session.disable_fallback()
    session.enable_fallback()
    assert session.run(["both"], {"x": ramp(2, 4), "y": ramp(2, 4)})[0].shape == (2, 8)


@on_every_session
def test_tuning_results_can_be_read_back(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    assert session.get_tuning_results() == []
    session.set_tuning_results([])


@on_every_session
def test_the_assignment_of_nodes_to_providers_is_told_when_recorded(session_class: SessionClass) -> None:
    options = quiet_options()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = session_class(parse(TWO_OUTPUTS).SerializeToString(), options)
    nodes = [node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    assert sorted(nodes) == ["Add", "Concat", "Cos", "Sin", "Tanh"]
