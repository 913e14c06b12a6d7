"""Every kind of value ONNX Runtime's Python takes and gives is taken and given: types, ranks, sequences, optionals."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnxruntime import OrtValue
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.session._dropin import (
    SEQUENCES,
    SessionClass,
    assert_cut,
    model_of,
    on_every_session,
    open_session,
    parse,
    ramp,
)

NUMBERS = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}

# Two chains that any type goes through; the Concat joins them.
ANY_TYPE = """
g ({0}[N,2] x) => ({0}[M,2] y, {0}[N,2] z)
{{
  two = Constant<value = int64[2] {{2, 1}}>()
  [Tile] t = Tile(x, two)
  [Transpose] p = Transpose<perm = [1, 0]>(x)
  [Back] z = Transpose<perm = [1, 0]>(p)
  [Join] y = Concat<axis = 0>(t, z)
}}
"""


# --- Tensors --------------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("rows", [1, 3, 0])
def test_every_number_type_goes_in_and_out(session_class: SessionClass, name: str, rows: int) -> None:
    session = open_session(session_class, ANY_TYPE.format(name))
    x = (np.arange(rows * 2).reshape(rows, 2) % 5).astype(NUMBERS[name])
    y, z = session.run(None, {"x": x})
    assert y.dtype == z.dtype == NUMBERS[name]
    np.testing.assert_array_equal(y, np.concatenate([x, x, x]))
    np.testing.assert_array_equal(z, x)


@on_every_session
@pytest.mark.parametrize(
    "value",
    [np.array(2.0, np.float32), [2.0], np.array([2.0], np.float32)],
    ids=["0-d", "list", "1-d"],
)
def test_a_scalar_input_takes_what_onnxruntime_takes(session_class: SessionClass, value: Any) -> None:
    # A rank of 0 is not checked there: one element is as good as a scalar, and its shape goes through.
    session = open_session(session_class, "g (float x) => (float y, float z) { s = Sin(x) y = Cos(s) z = Tanh(x) }")
    assert_cut(session)
    y, z = session.run(None, {"x": value})
    np.testing.assert_allclose(y, np.full(np.shape(value), np.cos(np.sin(2.0))), rtol=1e-6)
    np.testing.assert_allclose(z, np.full(np.shape(value), np.tanh(2.0)), rtol=1e-6)
    assert y.shape == z.shape == np.shape(value)
    assert type(y) is np.ndarray


@on_every_session
@pytest.mark.parametrize("value", [1.0, np.float32(1), 1, True], ids=["float", "float32", "int", "bool"])
def test_a_bare_number_is_not_a_tensor(session_class: SessionClass, value: Any) -> None:
    session = open_session(session_class, "g (float x) => (float y, float z) { s = Sin(x) y = Cos(s) z = Tanh(x) }")
    with pytest.raises(RuntimeError, match="Unable to handle object of type"):
        session.run(None, {"x": value})


@on_every_session
def test_a_scalar_result_is_an_array_without_axes(session_class: SessionClass) -> None:
    session = open_session(
        session_class,
        "g (float[N] x) => (float low, float high) {"
        " a = Sin(x) low = ReduceMin<keepdims = 0>(a) b = Cos(x) high = ReduceMax<keepdims = 0>(b) }",
    )
    assert_cut(session)
    low, high = session.run(None, {"x": ramp(5)})
    assert low.shape == high.shape == ()
    np.testing.assert_allclose([low, high], [np.sin(ramp(5)).min(), np.cos(ramp(5)).max()], rtol=1e-6)


@on_every_session
def test_a_tensor_without_elements_keeps_its_shape(session_class: SessionClass) -> None:
    session = open_session(
        session_class,
        "g (float[A,B,3] x) => (float[A,B,6] y) { s = Sin(x) t = Tanh(x) y = Concat<axis = 2>(s, t) }",
    )
    assert_cut(session)
    for shape in ((0, 2, 3), (2, 0, 3), (0, 0, 3), (1, 2, 3)):
        (y,) = session.run(None, {"x": ramp(*shape)})
        assert y.shape == (*shape[:2], 6)
        np.testing.assert_allclose(y[..., :3], np.sin(ramp(*shape)), rtol=1e-6)


@on_every_session
def test_shapes_found_while_running_may_change_from_run_to_run(session_class: SessionClass) -> None:
    session = open_session(
        session_class,
        "g (float[N] x) => (int64[1,A] found, float[B] kept, float[N] side) {"
        " zero = Constant<value = float {0.0}>()"
        " s = Sin(x) positive = Greater(s, zero) found = NonZero(positive) kept = Compress<axis = 0>(x, positive)"
        " c = Cos(x) side = Exp(c) }",
    )
    assert_cut(session)
    for length in (8, 1, 0, 200, 3):
        x = ramp(length, start=-3)
        found, kept, side = session.run(None, {"x": x})
        np.testing.assert_array_equal(found[0], np.flatnonzero(np.sin(x) > 0))
        np.testing.assert_array_equal(kept, x[np.sin(x) > 0])
        np.testing.assert_allclose(side, np.exp(np.cos(x)), rtol=1e-6)


@on_every_session
def test_dynamic_dimensions_may_change_from_run_to_run(session_class: SessionClass) -> None:
    session = open_session(
        session_class,
        "g (float[A,B] x, float[B,C] w) => (float[A,C] y, float[B,A] t) {"
        " s = Sin(x) y = MatMul(s, w) c = Tanh(x) t = Transpose<perm = [1, 0]>(c) }",
    )
    assert_cut(session)
    for a, b, c in ((1, 1, 1), (3, 5, 2), (2, 0, 4), (17, 9, 33), (1, 1, 1)):
        x, w = ramp(a, b), ramp(b, c, start=0.5)
        y, t = session.run(None, {"x": x, "w": w})
        np.testing.assert_allclose(y, np.sin(x) @ w, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(t, np.tanh(x).T, rtol=1e-6)


# --- Strings --------------------------------------------------------------------------------------

STRINGS = """
g (string[N] x, string[N] y) => (string[N] xy, bool[N] same, string[M] all)
{
  [Join] xy = StringConcat(x, y)
  [Same] same = Equal(x, y)
  [All] all = Concat<axis = 0>(x, xy)
}
"""


@on_every_session
@pytest.mark.parametrize(
    "form",
    [np.array, lambda values: np.array(values, dtype=object), list],
    ids=["unicode", "objects", "list"],
)
def test_text_goes_in_and_out(session_class: SessionClass, form: Any) -> None:
    session = open_session(session_class, STRINGS)
    x, y = ["a", "", "çé模", "long " * 20], ["b", "", "x", "y"]
    xy, same, everything = session.run(None, {"x": form(x), "y": form(y)})
    joined = [first + second for first, second in zip(x, y, strict=True)]
    assert xy.dtype == object
    assert xy.tolist() == joined
    assert same.tolist() == [False, True, False, False]
    assert everything.tolist() == x + joined


@on_every_session
def test_text_without_elements_is_text(session_class: SessionClass) -> None:
    empty = np.array([], dtype=object)
    xy, same, everything = open_session(session_class, STRINGS).run(None, {"x": empty, "y": empty})
    assert xy.shape == same.shape == everything.shape == (0,)
    assert xy.dtype == object


@on_every_session
def test_numbers_are_not_taken_for_text(session_class: SessionClass) -> None:
    session = open_session(session_class, STRINGS)
    with pytest.raises(InvalidArgument, match=r"tensor\(string\)"):
        session.run(None, {"x": ramp(2), "y": np.array(["a", "b"])})


# --- Sequences ------------------------------------------------------------------------------------

SEQUENCE_IN = """
g (seq(float[N]) parts, int64 which, float[4] x) => (float[N] chosen, seq(float[N]) longer, float[4] side)
{
  [At] chosen = SequenceAt(parts, which)
  [Longer] longer = SequenceInsert(parts, chosen)
  [SideCos] c = Cos(x)
  [Side] side = Exp(c)
}
"""


@on_every_session
def test_sequences_made_inside_a_model_come_out_as_lists(session_class: SessionClass) -> None:
    session = open_session(session_class, SEQUENCES)
    x = ramp(4)
    first, second = np.exp(np.sin(x)), np.cos(np.tanh(x))
    for which, wanted in ((0, first), (1, second), (-1, second)):
        chosen, joined, both = session.run(None, {"x": x, "which": np.array(which)})
        np.testing.assert_allclose(chosen, wanted, rtol=1e-6)
        np.testing.assert_allclose(joined, np.concatenate([first, second]), rtol=1e-6)
        assert type(both) is list
        for array, answer in zip(both, (first, second), strict=True):
            np.testing.assert_allclose(array, answer, rtol=1e-6)


@on_every_session
def test_sequences_are_fed_as_lists(session_class: SessionClass) -> None:
    session = open_session(session_class, SEQUENCE_IN)
    parts = [ramp(2), ramp(3), ramp(0)]
    for which in (0, 1, 2):
        chosen, longer, _ = session.run(None, {"parts": parts, "which": np.array(which), "x": ramp(4)})
        np.testing.assert_array_equal(chosen, parts[which])
        assert [array.shape for array in longer] == [part.shape for part in (*parts, parts[which])]


@on_every_session
def test_a_wrong_sequence_is_refused_and_the_session_stays_usable(session_class: SessionClass) -> None:
    session = open_session(session_class, SEQUENCE_IN)
    good = {"parts": [ramp(2)], "which": np.array(0), "x": ramp(4)}
    with pytest.raises(InvalidArgument, match="parts"):
        session.run(None, good | {"parts": ramp(2, 2)})
    with pytest.raises(RuntimeError):
        session.run(None, good | {"parts": [np.zeros(2, np.int64)]})
    with pytest.raises(InvalidArgument, match=r"(?i)sequence index \(7\)"):
        session.run(None, good | {"which": np.array(7)})
    np.testing.assert_array_equal(session.run(["chosen"], good)[0], ramp(2))


@on_every_session
def test_a_sequence_as_ort_value_goes_round(session_class: SessionClass) -> None:
    session = open_session(session_class, SEQUENCES)
    feed = {"x": OrtValue.ortvalue_from_numpy(ramp(4)), "which": OrtValue.ortvalue_from_numpy(np.array(0))}
    (both,) = session.run_with_ort_values(["both"], feed)
    assert both.is_tensor_sequence()
    taker = open_session(session_class, SEQUENCE_IN)
    (chosen,) = taker.run_with_ort_values(["chosen"], {"parts": both, "which": feed["which"], "x": feed["x"]})
    np.testing.assert_allclose(chosen.numpy(), np.exp(np.sin(ramp(4))), rtol=1e-6)


# --- Maps -----------------------------------------------------------------------------------------


def _dictionary_model() -> onnx.ModelProto:
    """A map of text to numbers, as scikit-learn's converters make for probabilities."""
    node = onnx.helper.make_node(
        "ZipMap", ["probabilities"], ["named"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]
    )
    softmax = onnx.helper.make_node("Softmax", ["x"], ["probabilities"])
    named = onnx.helper.make_value_info(
        "named",
        onnx.helper.make_sequence_type_proto(
            onnx.helper.make_map_type_proto(
                TensorProto.STRING, onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            )
        ),
    )
    graph = onnx.helper.make_graph(
        [softmax, node],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [onnx.helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]), named],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@on_every_session
def test_maps_come_out_as_lists_of_dictionaries(session_class: SessionClass) -> None:
    session = open_session(session_class, _dictionary_model())
    probabilities, named = session.run(None, {"x": np.array([[0, 0], [0, 100]], np.float32)})
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0, 1]], atol=1e-6)
    assert named == [{"cat": 0.5, "dog": 0.5}, {"cat": pytest.approx(0), "dog": pytest.approx(1)}]


# --- Optionals ------------------------------------------------------------------------------------

OPTIONAL = """
g (optional(float[N]) maybe, float[4] x) => (bool there, float[4] y, float[4] z)
{
  [There] there = OptionalHasElement(maybe)
  [SinX] s = Sin(x)
  [Y] y = Cos(s)
  [TanhX] t = Tanh(x)
  [Z] z = Exp(t)
}
"""


@on_every_session
@pytest.mark.parametrize(
    ("feed", "wanted"),
    [({}, False), ({"maybe": None}, False), ({"maybe": ramp(3)}, True)],
    ids=["left-out", "None", "given"],
)
def test_an_optional_input_may_be_left_out(session_class: SessionClass, feed: dict[str, Any], wanted: bool) -> None:
    session = open_session(session_class, OPTIONAL)
    there, y, z = session.run(None, {"x": ramp(4), **feed})
    assert bool(there) is wanted
    np.testing.assert_allclose(y, np.cos(np.sin(ramp(4))), rtol=1e-6)
    np.testing.assert_allclose(z, np.exp(np.tanh(ramp(4))), rtol=1e-6)


@on_every_session
def test_an_optional_sequence_is_fed_as_list_or_none(session_class: SessionClass) -> None:
    session = open_session(
        session_class, "g (optional(seq(float[N])) maybe) => (bool there) { there = OptionalHasElement(maybe) }"
    )
    for value, wanted in (([ramp(2), ramp(3)], True), (None, False)):
        assert bool(session.run(None, {"maybe": value})[0]) is wanted


@on_every_session
def test_an_optional_result_is_its_element(session_class: SessionClass) -> None:
    session = open_session(
        session_class, "g (float[N] x) => (optional(float[N]) y, float[N] z) { s = Sin(x) y = Optional(s) z = Cos(x) }"
    )
    y, z = session.run(None, {"x": ramp(3)})
    np.testing.assert_allclose(y, np.sin(ramp(3)), rtol=1e-6)
    np.testing.assert_allclose(z, np.cos(ramp(3)), rtol=1e-6)


@on_every_session
def test_inputs_of_a_node_that_are_left_out_stay_left_out(session_class: SessionClass) -> None:
    # Clip without its lower bound, Resize without roi: empty names between the others.
    session = open_session(
        session_class,
        """
        g (float[1,1,2,2] x) => (float[1,1,2,2] clipped, float[A,B,C,D] bigger)
        {
          half = Constant<value = float {0.5}>()
          scales = Constant<value = float[4] {1, 1, 2, 2}>()
          s = Sin(x)
          clipped = Clip(s, , half)
          t = Tanh(x)
          bigger = Resize<mode = "nearest">(t, , scales)
        }
        """,
    )
    assert_cut(session)
    x = ramp(1, 1, 2, 2, start=0.3)
    clipped, bigger = session.run(None, {"x": x})
    np.testing.assert_allclose(clipped, np.minimum(np.sin(x), 0.5), rtol=1e-6)
    np.testing.assert_allclose(bigger, np.tanh(x).repeat(2, axis=2).repeat(2, axis=3), rtol=1e-6)


# --- Types that NumPy lacks -----------------------------------------------------------------------


def _bits(value: OrtValue) -> np.ndarray[Any, Any]:
    """The raw bytes of a tensor on the CPU, for element types without a NumPy counterpart."""
    size = value.tensor_size_in_bytes()
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint8)


@on_every_session
def test_bfloat16_goes_through_ort_values(session_class: SessionClass) -> None:
    session = open_session(
        session_class,
        "g (bfloat16[2,2] x) => (bfloat16[2,2] turned, float[2,2] wide) {"
        " turned = Transpose<perm = [1, 0]>(x) wide = Cast<to = 1>(x) }",
    )
    bits = np.array([[0x3F80, 0x4000], [0x4040, 0x4080]], np.uint16)  # 1, 2, 3, 4
    value = OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
    turned, wide = session.run_with_ort_values(None, {"x": value})
    assert turned.data_type() == "tensor(bfloat16)"
    np.testing.assert_array_equal(_bits(turned).view(np.uint16).reshape(2, 2), bits.T)
    np.testing.assert_array_equal(wide.numpy(), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(session.run(["wide"], {"x": value})[0], [[1, 2], [3, 4]])


@on_every_session
@pytest.mark.parametrize("name", ["float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"])
def test_float8_goes_through_ort_values(session_class: SessionClass, name: str) -> None:
    kind = getattr(TensorProto, name.upper())
    model = model_of(
        [
            onnx.helper.make_node("Identity", ["x"], ["same"]),
            onnx.helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        ],
        [onnx.helper.make_tensor_value_info("x", kind, [4])],
        [
            onnx.helper.make_tensor_value_info("same", kind, [4]),
            onnx.helper.make_tensor_value_info("wide", TensorProto.FLOAT, [4]),
        ],
    )
    bits = np.array([0, 0x38, 0x40, 0x48], np.uint8)
    value = OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)
    same, wide = open_session(session_class, model).run_with_ort_values(None, {"x": value})
    np.testing.assert_array_equal(_bits(same), bits)
    assert wide.numpy()[0] == 0
    assert (np.diff(wide.numpy()) > 0).all()


@on_every_session
def test_half_precision_inside_two_branches_is_onnxruntimes(session_class: SessionClass) -> None:
    text = """
    g (float16[N,4] x) => (float16[N,8] y)
    {
      wide = Cast<to = 1>(x)
      s = Sin(wide)
      left = Cast<to = 10>(s)
      t = Tanh(wide)
      right = Cast<to = 10>(t)
      y = Concat<axis = 1>(left, right)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    x = ramp(3, 4).astype(np.float16)
    plain = onnxruntime.InferenceSession(parse(text).SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], plain.run(None, {"x": x})[0])
