"""Graphs of unusual form give ONNX Runtime's answers: passed-through inputs, constant outputs, bodies, functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, parser

import parallax
from tests.session._dropin import (
    BRANCHING,
    DIAMOND,
    LOOPING,
    SCANNING,
    SessionClass,
    assert_cut,
    branches_answer,
    branches_model,
    model_of,
    on_every_session,
    open_session,
    parse,
    quiet_options,
    ramp,
)

X = ramp(2, 4)


def _same_as_plain(session: onnxruntime.InferenceSession, model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """The session's results, shown to be ONNX Runtime's bit for bit."""
    results = session.run(None, feed)
    plain = onnxruntime.InferenceSession(model.SerializeToString(), quiet_options()).run(None, feed)
    assert len(results) == len(plain)
    for ours, theirs in zip(results, plain, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    return results


# --- Branches -------------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("depth", [1, 5])
def test_independent_chains_are_joined_in_order(session_class: SessionClass, count: int, depth: int) -> None:
    model = branches_model(count, depth)
    session = open_session(session_class, model)
    assert_cut(session)
    for rows in (1, 3, 0):
        x = ramp(rows, 4)
        (y,) = _same_as_plain(session, model, {"x": x})
        np.testing.assert_allclose(y, branches_answer(x, count, depth), rtol=1e-5, atol=1e-5)


@on_every_session
def test_a_diamond_meets_again(session_class: SessionClass) -> None:
    session = open_session(session_class, DIAMOND)
    assert_cut(session)
    (y,) = _same_as_plain(session, parse(DIAMOND), {"x": X})
    s = np.sin(X)
    np.testing.assert_allclose(y, np.tanh(np.cos(s)) - np.tanh(np.exp(s)), rtol=1e-5, atol=1e-6)


@on_every_session
def test_a_chain_without_branches_runs(session_class: SessionClass) -> None:
    text = "g (float[N] x) => (float[N] y) { a = Sin(x) b = Cos(a) c = Tanh(b) y = Exp(c) }"
    (y,) = _same_as_plain(open_session(session_class, text), parse(text), {"x": X[0]})
    np.testing.assert_allclose(y, np.exp(np.tanh(np.cos(np.sin(X[0])))), rtol=1e-6)


@on_every_session
def test_parts_that_never_meet_run(session_class: SessionClass) -> None:
    text = """
    g (float[N] a, float[M] b, float[K] c) => (float[N] x, float[M] y, float[K] z)
    { p = Sin(a) x = Cos(p) q = Tanh(b) y = Exp(q) r = Cos(c) z = Sin(r) }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    _same_as_plain(session, parse(text), {"a": ramp(3), "b": ramp(5), "c": ramp(1)})


@on_every_session
def test_one_tensor_read_by_many_and_also_an_output(session_class: SessionClass) -> None:
    text = """
    g (float[N] x) => (float[N] s, float[N] a, float[N] b, float[N] c)
    { s = Sin(x) p = Cos(s) a = Tanh(p) q = Exp(s) b = Tanh(q) c = Sub(a, s) }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    results = _same_as_plain(session, parse(text), {"x": X[0]})
    results[0][...] = 0
    _same_as_plain(session, parse(text), {"x": X[0]})


# --- Inputs and outputs at odd places ---------------------------------------------------------------


@on_every_session
def test_an_input_may_be_an_output(session_class: SessionClass) -> None:
    text = "g (float[N] x) => (float[N] x, float[N] y, float[N] z) { s = Sin(x) y = Cos(s) t = Tanh(x) z = Exp(t) }"
    session = open_session(session_class, text)
    x = X[0].copy()
    same, _, _ = _same_as_plain(session, parse(text), {"x": x})
    assert not np.shares_memory(same, x)
    same[...] = 0
    np.testing.assert_array_equal(x, X[0])
    np.testing.assert_array_equal(session.run(["x"], {"x": x})[0], x)


@on_every_session
def test_an_input_given_on_by_identity_is_not_shared(session_class: SessionClass) -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x) s = Sin(x) z = Cos(s) }"
    session = open_session(session_class, text)
    x = X[0].copy()
    y, _ = _same_as_plain(session, parse(text), {"x": x})
    assert not np.shares_memory(x, y)


@on_every_session
def test_an_initializer_may_be_an_output(session_class: SessionClass) -> None:
    text = """
    g (float[N,4] x) => (float[4] w, float[N,4] y, float[N,4] z)
    <float[4] w = {1, 2, 3, 4}>
    { s = Sin(x) y = Add(s, w) t = Tanh(x) z = Exp(t) }
    """
    session = open_session(session_class, text)
    for _ in range(2):
        w, y, _ = _same_as_plain(session, parse(text), {"x": X})
        np.testing.assert_array_equal(w, [1, 2, 3, 4])
        np.testing.assert_allclose(y, np.sin(X) + w, rtol=1e-6)
        w[...] = 99  # the caller's copy: neither the next result nor the Add may see it


@on_every_session
def test_a_constant_may_be_an_output(session_class: SessionClass) -> None:
    text = """
    g (float[N] x) => (float[2] k, float[2] folded, float[N] y, float[N] z)
    { k = Constant<value = float[2] {1, 2}>() folded = Sin(k) s = Sin(x) y = Cos(s) t = Tanh(x) z = Exp(t) }
    """
    session = open_session(session_class, text)
    for _ in range(2):
        results = _same_as_plain(session, parse(text), {"x": X[0]})
        for result in results:
            result[...] = 99


@on_every_session
def test_a_model_without_inputs_runs(session_class: SessionClass) -> None:
    text = "g () => (float[2] y, float[2] z) <float[2] w = {1, 2}> { s = Sin(w) y = Cos(s) t = Tanh(w) z = Exp(t) }"
    _same_as_plain(open_session(session_class, text), parse(text), {})


@on_every_session
def test_an_unused_input_is_still_required_and_checked(session_class: SessionClass) -> None:
    text = "g (float[N] x, float[3] idle) => (float[N] y, float[N] z) { s = Sin(x) y = Cos(s) t = Tanh(x) z = Exp(t) }"
    session = open_session(session_class, text)
    assert_cut(session)
    assert [value.name for value in session.get_inputs()] == ["x", "idle"]
    _same_as_plain(session, parse(text), {"x": X[0], "idle": ramp(3)})
    with pytest.raises(ValueError, match="idle"):
        session.run(None, {"x": X[0]})
    invalid = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(invalid, match="idle"):
        session.run(None, {"x": X[0], "idle": ramp(4)})
    with pytest.raises(invalid, match="int64"):
        session.run(None, {"x": X[0], "idle": np.zeros(3, np.int64)})


def test_a_whole_model_with_an_initializer_that_may_be_overridden_requires_its_inputs_all_the_same() -> None:
    text = (
        "<ir_version: 8, opset_import: ['' : 17]> g (float[N] x, float[3] idle, float[3] w) => (float[N] y) "
        "<float[3] w = {1, 2, 3}> { s = Sin(x) y = Mul(s, w) }"
    ).replace("'", '"')
    model = onnx.parser.parse_model(text)
    session = parallax.InferenceSession(model.SerializeToString())
    assert session.plan.is_whole
    assert [value.name for value in session.get_overridable_initializers()] == ["w"]
    for feeds in ({"x": ramp(3), "idle": ramp(3)}, {"x": ramp(3), "idle": ramp(3), "w": ramp(3)}):
        _same_as_plain(session, model, feeds)
    for feeds in ({"x": ramp(3)}, {"x": ramp(3), "w": ramp(3)}, {"idle": ramp(3), "w": ramp(3)}):
        with pytest.raises(ValueError, match="Required inputs"):
            session.run(None, feeds)


@on_every_session
def test_nodes_that_reach_no_output_do_no_harm(session_class: SessionClass) -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { s = Sin(x) y = Cos(s) dead = Exp(s) t = Tanh(x) z = Exp(t) }"
    session = open_session(session_class, text)
    assert_cut(session)
    _same_as_plain(session, parse(text), {"x": X[0]})


@on_every_session
def test_nodes_may_have_no_names(session_class: SessionClass) -> None:
    model = parse(DIAMOND)
    for node in model.graph.node:
        node.name = ""
    session = open_session(session_class, model)
    assert_cut(session)
    _same_as_plain(session, model, {"x": X})


@on_every_session
def test_names_may_hold_any_letters(session_class: SessionClass) -> None:
    names = {"x": "серия/входа:0", "s": "a b\tc", "y": "出力", "l1": "/layers.0/attn/#1", "r1": "%5"}
    model = parse(DIAMOND)
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    session = open_session(session_class, model)
    assert_cut(session)
    _same_as_plain(session, model, {names["x"]: X})


@on_every_session
def test_several_outputs_of_one_node_are_told_apart(session_class: SessionClass) -> None:
    text = """
    g (float[N,6] x) => (float[N,2] a, float[N,2] b, float[N,2] c, float[N,2] top, int64[N,2] where)
    {
      sizes = Constant<value = int64[3] {2, 2, 2}>()
      two = Constant<value = int64[1] {2}>()
      s = Sin(x)
      p, q, r = Split<axis = 1>(s, sizes)
      a = Cos(p)
      b = Tanh(q)
      c = Exp(r)
      t = Tanh(x)
      top, where = TopK<axis = 1>(t, two)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    _same_as_plain(session, parse(text), {"x": ramp(3, 6)})


@on_every_session
def test_outputs_of_a_node_that_nobody_wants_may_be_left_out(session_class: SessionClass) -> None:
    rng = np.random.default_rng(3)
    sizes = {"w": (1, 12, 4), "r": (1, 12, 3)}
    model = model_of(
        [
            onnx.helper.make_node("Sin", ["x"], ["s"]),
            onnx.helper.make_node("LSTM", ["s", "w", "r"], ["", "last"], hidden_size=3),
            onnx.helper.make_node("Tanh", ["x"], ["t"]),
            onnx.helper.make_node("Exp", ["t"], ["y"]),
        ],
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 1, 4])],
        [
            onnx.helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, 1, 3]),
            onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 1, 4]),
        ],
        [
            onnx.numpy_helper.from_array(rng.standard_normal(size, dtype=np.float32), name)
            for name, size in sizes.items()
        ],
    )
    session = open_session(session_class, model)
    assert_cut(session)
    for length in (1, 7):
        _same_as_plain(session, model, {"x": ramp(length, 1, 4)})


# --- Control flow ---------------------------------------------------------------------------------


@on_every_session
def test_each_branch_of_an_if_sees_the_outer_chains(session_class: SessionClass) -> None:
    session = open_session(session_class, BRANCHING)
    assert_cut(session)
    p, q = np.sin(X), np.tanh(X)
    for which in (True, False, True):
        y, side = _same_as_plain(session, parse(BRANCHING), {"which": np.array(which), "x": X})
        np.testing.assert_allclose(y, p + q if which else p - q, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(side, np.exp(np.cos(X)), rtol=1e-6)


@on_every_session
def test_an_if_may_give_different_shapes(session_class: SessionClass) -> None:
    text = """
    g (bool which, float[N] x) => (float[M] y, float[N] side)
    {
      s = Sin(x)
      t = Tanh(x)
      chosen = If(which) <
        then_branch = short () => (float[N] out) { out = Add(s, t) },
        else_branch = long () => (float[K] out) { out = Concat<axis = 0>(s, t) }
      >
      y = Exp(chosen)
      c = Cos(x)
      side = Exp(c)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    for which, length in ((True, 4), (False, 8), (True, 4)):
        y, _ = _same_as_plain(session, parse(text), {"which": np.array(which), "x": X[0]})
        assert y.shape == (length,)


@on_every_session
@pytest.mark.parametrize("trips", [0, 1, 5])
def test_a_loop_carries_one_chain_and_captures_another(session_class: SessionClass, trips: int) -> None:
    session = open_session(session_class, LOOPING)
    assert_cut(session)
    x = X[0]
    last, every, side = _same_as_plain(session, parse(LOOPING), {"trips": np.array(trips), "x": x})
    rows = [np.sin(x) + np.float32(n + 1) * np.tanh(x) for n in range(trips)]
    np.testing.assert_allclose(last, rows[-1] if rows else np.sin(x), rtol=1e-5, atol=1e-5)
    assert every.shape == (trips, 4)
    np.testing.assert_allclose(every, np.reshape(rows, (trips, 4)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(side, np.exp(np.cos(x)), rtol=1e-6)


@on_every_session
def test_a_scan_gathers_its_rows(session_class: SessionClass) -> None:
    session = open_session(session_class, SCANNING)
    assert_cut(session)
    for length in (1, 6):
        start, rows = ramp(4), ramp(length, 4)
        total, sums, _ = _same_as_plain(session, parse(SCANNING), {"start": start, "rows": rows})
        wanted = np.sin(start) + np.cumsum(np.tanh(rows), axis=0)
        np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(total, wanted[-1], rtol=1e-5, atol=1e-5)


@on_every_session
def test_bodies_may_be_nested_and_capture_from_every_level(session_class: SessionClass) -> None:
    text = """
    g (bool which, int64 trips, float[4] x) => (float[4] y, float[4] side)
    {
      keep = Constant<value = bool {1}>()
      s = Sin(x)
      t = Tanh(x)
      y = If(which) <
        then_branch = deep () => (float[4] out) {
          e = Exp(t)
          out = Loop(trips, keep, s) <
            body = step (int64 i, bool c, float[4] v) => (bool c2, float[4] v2) {
              c2 = Identity(c)
              sum = Add(v, t)
              v2 = Sub(sum, e)
            }
          >
        },
        else_branch = shallow () => (float[4] out) { out = Sub(s, t) }
      >
      k = Cos(x)
      side = Exp(k)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    for which in (True, False):
        for trips in (0, 3):
            _same_as_plain(session, parse(text), {"which": np.array(which), "trips": np.array(trips), "x": X[0]})


@on_every_session
def test_a_name_inside_a_body_may_equal_one_in_a_sibling_body(session_class: SessionClass) -> None:
    text = """
    g (bool which, float[4] x) => (float[4] y, float[4] z)
    {
      s = Sin(x)
      y = If(which) <
        then_branch = a () => (float[4] out) { mid = Cos(s) out = Exp(mid) },
        else_branch = b () => (float[4] out) { mid = Tanh(s) out = Exp(mid) }
      >
      t = Tanh(x)
      z = If(which) <
        then_branch = c () => (float[4] out) { mid = Exp(t) out = Cos(mid) },
        else_branch = d () => (float[4] out) { mid = Sin(t) out = Cos(mid) }
      >
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    for which in (True, False):
        _same_as_plain(session, parse(text), {"which": np.array(which), "x": X[0]})


@on_every_session
def test_functions_of_the_model_run(session_class: SessionClass) -> None:
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[N] x) => (float[N] y, float[N] z)
        { s = Sin(x) y = local.Soft<by = 2.0>(s) t = Tanh(x) z = local.Soft<by = 3.0>(t) }
        <domain: "local", opset_import: ["" : 21]>
        Soft <by> (v) => (w) { k = Constant<value_float: float = @by>() c = Cos(v) w = Mul(c, k) }
        """
    )
    session = open_session(session_class, model)
    y, z = _same_as_plain(session, model, {"x": X[0]})
    np.testing.assert_allclose(y, 2 * np.cos(np.sin(X[0])), rtol=1e-6)
    np.testing.assert_allclose(z, 3 * np.cos(np.tanh(X[0])), rtol=1e-6)


@on_every_session
def test_operators_of_onnxruntimes_own_domain_run(session_class: SessionClass) -> None:
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N,4] x) => (float[N,4] y, float[N,4] z)
        { s = Sin(x) y = com.microsoft.Gelu(s) t = Tanh(x) z = com.microsoft.QuickGelu(t) }
        """
    )
    session = open_session(session_class, model)
    assert_cut(session)
    _same_as_plain(session, model, {"x": X})


@on_every_session
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 17, 19, 21, 22, 23])
def test_old_and_new_operator_sets_run(session_class: SessionClass, opset: int) -> None:
    model = branches_model()
    model.opset_import[0].version = opset
    model.ir_version = 4 if opset < 11 else 10
    session = open_session(session_class, model)
    assert_cut(session)
    _same_as_plain(session, model, {"x": X})


@on_every_session
def test_a_random_operator_with_a_seed_repeats_onnxruntimes_numbers(session_class: SessionClass) -> None:
    text = """
    g (float[N] x) => (float[N] y, float[N] z)
    { r = RandomUniformLike<seed = 3.0>(x) y = Sin(r) t = Tanh(x) z = Exp(t) }
    """
    session = open_session(session_class, text)
    plain = onnxruntime.InferenceSession(parse(text).SerializeToString(), quiet_options())
    for _ in range(3):
        np.testing.assert_array_equal(session.run(["y"], {"x": X[0]})[0], plain.run(["y"], {"x": X[0]})[0])


# --- Weights outside the file -----------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("threshold", [0, 8])
def test_weights_may_lie_in_a_file_beside_the_model(
    session_class: SessionClass, threshold: int, tmp_path: Path
) -> None:
    model = branches_model()
    plain = branches_model()
    path = tmp_path / "model.onnx"
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=threshold,
        convert_attribute=False,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 0
    session = session_class(path, quiet_options())
    assert_cut(session)
    _same_as_plain(session, plain, {"x": X})


@on_every_session
def test_quantised_chains_run(session_class: SessionClass) -> None:
    text = """
    g (float[N,4] x) => (float[N,4] y, float[N,4] z)
    {
      scale = Constant<value = float {0.02}>()
      zero = Constant<value = uint8 {128}>()
      s = Sin(x)
      qs = QuantizeLinear(s, scale, zero)
      y = DequantizeLinear(qs, scale, zero)
      t = Tanh(x)
      qt = QuantizeLinear(t, scale, zero)
      z = DequantizeLinear(qt, scale, zero)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    _same_as_plain(session, parse(text), {"x": X})


@on_every_session
def test_convolutions_with_fused_activations_are_bit_for_bit_the_same(session_class: SessionClass) -> None:
    rng = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) / 3, name)

    nodes = []
    for side in ("l", "r"):
        kernel = 3 if side == "l" else 5
        nodes += [
            onnx.helper.make_node("Conv", ["x", f"{side}w", f"{side}b"], [f"{side}1"], pads=[kernel // 2] * 4),
            onnx.helper.make_node("BatchNormalization", [f"{side}1", "g", "b", "m", "v"], [f"{side}2"]),
            onnx.helper.make_node("Relu", [f"{side}2"], [f"{side}3"]),
            onnx.helper.make_node("GlobalAveragePool", [f"{side}3"], [f"{side}4"]),
        ]
    nodes.append(onnx.helper.make_node("Concat", ["l4", "r4"], ["y"], axis=1))
    model = model_of(
        nodes,
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 1, 1])],
        [
            *(weight(f"{side}w", 8, 3, kernel, kernel) for side, kernel in (("l", 3), ("r", 5))),
            *(weight(f"{side}b", 8) for side in "lr"),
            *(weight(name, 8) for name in "gbm"),
            onnx.numpy_helper.from_array(np.abs(rng.standard_normal(8, dtype=np.float32)) + 1, "v"),
        ],
    )
    session = open_session(session_class, model)
    assert_cut(session)
    _same_as_plain(session, model, {"x": rng.standard_normal((2, 3, 16, 16), dtype=np.float32)})
