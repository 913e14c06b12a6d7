"""What goes wrong goes wrong as in ONNX Runtime: the same exception classes, a usable session, and in a cut model
the segment and its nodes named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

import parallax
from tests.session._dropin import (
    GATHERING,
    RESHAPING,
    ForcedSplitSession,
    SessionClass,
    assert_cut,
    branches_answer,
    branches_model,
    on_every_session,
    on_parallax_sessions,
    open_session,
    parse,
    quiet_options,
    ramp,
)

X = ramp(2, 4)

# --- Models that can not be opened ------------------------------------------------------------------

GOOD = branches_model().SerializeToString()


def _edited(edit: Callable[[onnx.ModelProto], Any]) -> bytes:
    model = branches_model()
    edit(model)
    return model.SerializeToString()


BROKEN_BYTES: dict[str, tuple[bytes, type[Exception]]] = {
    "no-bytes": (b"", native.InvalidArgument),
    "text": (b"not a model", native.InvalidProtobuf),
    "zeros": (bytes(100), native.InvalidProtobuf),
    "cut-short": (GOOD[:-5], native.InvalidProtobuf),
    "cut-in-half": (GOOD[: len(GOOD) // 2], native.InvalidProtobuf),
    "random": (np.random.default_rng(1).bytes(4096), native.InvalidProtobuf),
    "no-graph": (onnx.ModelProto(ir_version=10).SerializeToString(), native.InvalidArgument),
    "no-ir-version": (_edited(lambda m: m.ClearField("ir_version")), native.Fail),
    "no-opset": (_edited(lambda m: m.ClearField("opset_import")), native.Fail),
    "future-opset": (_edited(lambda m: setattr(m.opset_import[0], "version", 999)), native.Fail),
    "future-ir": (_edited(lambda m: setattr(m, "ir_version", 999)), native.Fail),
    "cycle": (parse("g (float[4] x) => (float[4] a) { a = Add(x, b) b = Sin(a) }").SerializeToString(), native.Fail),
    "dangling-input": (_edited(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")), native.InvalidArgument),
    "dangling-output": (_edited(lambda m: setattr(m.graph.output[0], "name", "nowhere")), native.Fail),
    "name-defined-twice": (
        parse("g (float[4] x) => (float[4] a) { a = Sin(x) a = Cos(x) }").SerializeToString(),
        native.Fail,
    ),
    "input-twice": (_edited(lambda m: m.graph.input.append(m.graph.input[0])), native.Fail),
    "node-name-twice": (_edited(lambda m: setattr(m.graph.node[0], "name", m.graph.node[1].name)), native.Fail),
    "unknown-operator": (_edited(lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOp")), native.InvalidGraph),
    "no-operator": (_edited(lambda m: setattr(m.graph.node[0], "op_type", "")), native.InvalidGraph),
    "unknown-domain": (_edited(lambda m: setattr(m.graph.node[0], "domain", "no.such.domain")), native.InvalidGraph),
    "operator-newer-than-opset": (_edited(lambda m: setattr(m.opset_import[0], "version", 6)), native.InvalidGraph),
    "unknown-attribute": (
        _edited(lambda m: m.graph.node[0].attribute.append(onnx.helper.make_attribute("odd", 1))),
        native.InvalidGraph,
    ),
    "too-many-inputs": (_edited(lambda m: m.graph.node[0].input.append("x")), native.InvalidGraph),
    "types-that-differ": (
        parse("g (float[4] x, int64[4] y) => (float[4] a) { a = Add(x, y) }").SerializeToString(),
        native.Fail,
    ),
    "shapes-that-differ": (
        parse("g (float[4] x, float[5] y) => (float[4] a) { a = Add(x, y) }").SerializeToString(),
        native.Fail,
    ),
    "output-of-another-type": (
        _edited(lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", onnx.TensorProto.INT64)),
        native.Fail,
    ),
    "weights-cut-short": (_edited(lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc")), native.Fail),
    "weights-of-huge-size": (_edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40)), native.Fail),
    "weights-of-negative-size": (_edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)), native.Fail),
    "weights-of-no-type": (_edited(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), native.Fail),
    "no-kernel": (
        parse("g (bfloat16[4] x) => (bfloat16[4] y) { y = Sigmoid(x) }").SerializeToString(),
        native.NotImplemented,
    ),
}


@on_every_session
@pytest.mark.parametrize("fault", BROKEN_BYTES)
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_a_model_that_can_not_be_opened_raises_onnxruntimes_class(
    session_class: SessionClass, fault: str, as_file: bool, tmp_path: Path
) -> None:
    content, wanted = BROKEN_BYTES[fault]
    source: Any = content
    if as_file:
        source = tmp_path / "broken.onnx"
        source.write_bytes(content)
    with pytest.raises(wanted) as caught:
        session_class(source, quiet_options())
    if issubclass(session_class, parallax.InferenceSession):
        assert isinstance(caught.value, parallax.ParallaxError)


@on_every_session
def test_a_file_that_is_missing_is_named(session_class: SessionClass, tmp_path: Path) -> None:
    for missing in (tmp_path / "missing.onnx", str(tmp_path / "no" / "such" / "folder.onnx")):
        with pytest.raises(native.NoSuchFile, match=Path(missing).name):
            session_class(missing, quiet_options())


@on_every_session
def test_a_folder_is_no_model(session_class: SessionClass, tmp_path: Path) -> None:
    with pytest.raises(native.InvalidProtobuf, match=tmp_path.name):
        session_class(tmp_path, quiet_options())


@on_parallax_sessions
def test_errors_of_opening_are_ours_too_and_say_where(session_class: SessionClass, tmp_path: Path) -> None:
    with pytest.raises(parallax.ModelFileError, match=r"missing\.onnx"):
        session_class(tmp_path / "missing.onnx")
    with pytest.raises(parallax.ModelError, match="nowhere"):
        session_class(BROKEN_BYTES["dangling-input"][0])
    with pytest.raises(parallax.ModelError, match="Sin_0_0"):
        session_class(BROKEN_BYTES["unknown-operator"][0], quiet_options())
    with pytest.raises(parallax.UnsupportedModelError, match="999"):
        session_class(BROKEN_BYTES["future-opset"][0], quiet_options())


def _external(folder: Path, **entries: str) -> Path:
    """A model in ``folder/model`` whose weights lie outside it, with entries of the reference changed."""
    path = folder / "model" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(branches_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    shutil.copy(path.parent / "weights.bin", folder / "outside.bin")
    (path.parent / "link.bin").symlink_to(folder / "outside.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


@on_every_session
@pytest.mark.parametrize(
    "entries",
    [
        {"location": "missing.bin"},
        {"location": "../outside.bin"},
        {"location": "link.bin"},
        {"location": "../model/../outside.bin"},
        {"offset": "1000000"},
        {"offset": "-4"},
        {"offset": "many"},
        {"length": "1000000"},
    ],
    ids=lambda entries: "{}={}".format(*next(iter(entries.items()))),
)
@pytest.mark.skipif(os.name == "nt", reason="making links needs privileges on Windows")
def test_weights_outside_the_models_folder_or_file_are_refused(
    session_class: SessionClass, entries: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(native.Fail) as caught:
        session_class(_external(tmp_path, **entries), quiet_options())
    if issubclass(session_class, parallax.InferenceSession):
        assert isinstance(caught.value, parallax.ExternalDataError)


@on_every_session
def test_weights_at_an_absolute_path_are_refused(session_class: SessionClass, tmp_path: Path) -> None:
    with pytest.raises(native.Fail):
        session_class(_external(tmp_path, location=str(tmp_path / "outside.bin")), quiet_options())


@on_every_session
def test_bytes_do_not_find_weights_beside_the_file_they_came_from(
    session_class: SessionClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _external(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(native.Fail):
        session_class(path.read_bytes(), quiet_options())


@on_every_session
def test_a_wrong_declared_shape_of_an_output_is_only_a_blemish(session_class: SessionClass) -> None:
    # Common in exported models: ONNX Runtime warns, and runs.
    model = branches_model()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    session = open_session(session_class, model)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6)


@on_every_session
def test_a_wrong_declared_shape_of_an_inner_tensor_is_only_a_blemish(session_class: SessionClass) -> None:
    model = branches_model()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("sin_0_0", onnx.TensorProto.FLOAT, ["N", 7]))
    plain: Any
    try:
        plain = onnxruntime.InferenceSession(model.SerializeToString(), quiet_options())
    except Exception as error:
        plain = type(error)
    if isinstance(plain, type):
        with pytest.raises(plain):
            open_session(session_class, model)
    else:
        session = open_session(session_class, model)
        np.testing.assert_array_equal(session.run(None, {"x": X})[0], plain.run(None, {"x": X})[0])


# --- Runs that fail ---------------------------------------------------------------------------------


@on_every_session
@pytest.mark.parametrize("asked", [None, ["bad"], ["good", "bad"]], ids=repr)
def test_a_reshape_that_does_not_fit_fails_and_the_session_goes_on(session_class: SessionClass, asked: Any) -> None:
    session = open_session(session_class, RESHAPING)
    assert_cut(session)
    for _ in range(3):
        with pytest.raises(native.Fail, match="BadReshape"):
            session.run(asked, {"x": X, "shape": np.array([3, 3])})
        good, bad = session.run(None, {"x": X, "shape": np.array([4, 2])})
        np.testing.assert_allclose(good, np.cos(np.sin(X)), rtol=1e-6)
        np.testing.assert_allclose(bad, np.tanh(X).reshape(4, 2), rtol=1e-6)


@on_every_session
def test_an_index_out_of_range_fails_and_the_session_goes_on(session_class: SessionClass) -> None:
    session = open_session(session_class, GATHERING)
    assert_cut(session)
    x = X[0]
    for rows in ([0, 9], [-5]):
        with pytest.raises(native.InvalidArgument, match=r"BadGather.*out of data bounds"):
            session.run(None, {"x": x, "rows": np.array(rows)})
        _, bad = session.run(None, {"x": x, "rows": np.array([3, -4])})
        np.testing.assert_allclose(bad, np.tanh(x)[[3, 0]], rtol=1e-6)


@on_every_session
def test_a_failing_body_is_a_failing_run(session_class: SessionClass) -> None:
    text = """
    g (bool which, int64[2] shape, float[N,4] x) => (float[A,B] y, float[N,4] side)
    {
      s = Sin(x)
      y = If(which) <
        then_branch = fits () => (float[A,B] out) { out = Tanh(s) },
        else_branch = breaks () => (float[A,B] out) { [BadReshape] out = Reshape(s, shape) }
      >
      c = Cos(x)
      side = Exp(c)
    }
    """
    session = open_session(session_class, text)
    assert_cut(session)
    feed = {"shape": np.array([3, 3]), "x": X}
    for _ in range(2):
        with pytest.raises(native.Fail, match="BadReshape"):
            session.run(None, {"which": np.array(False), **feed})
        y, _ = session.run(None, {"which": np.array(True), **feed})
        np.testing.assert_allclose(y, np.tanh(np.sin(X)), rtol=1e-6)


def test_the_error_of_a_segment_names_it_and_its_nodes() -> None:
    session = open_session(ForcedSplitSession, RESHAPING)
    assert_cut(session)
    with pytest.raises(parallax.SegmentError) as caught:
        session.run(None, {"x": X, "shape": np.array([3, 3])})
    error = caught.value
    (segment,) = [segment for segment in session.plan.segments if segment.name == error.segment]
    assert "BadReshape" in error.nodes
    assert "GoodCos" not in error.nodes
    assert len(error.nodes) == len(segment.nodes)
    assert segment.name in str(error)
    assert "BadReshape" in str(error)
    assert isinstance(error.__cause__, native.Fail)


def test_of_two_failing_segments_one_is_reported_and_both_recover() -> None:
    session = open_session(
        ForcedSplitSession,
        """
        g (float[N,4] x, int64[2] one, int64[2] two) => (float[A,B] y, float[C,D] z)
        { s = Sin(x) [One] y = Reshape(s, one) t = Tanh(x) [Two] z = Reshape(t, two) }
        """,
    )
    assert_cut(session)
    good, bad = np.array([4, 2]), np.array([3, 3])
    for one, two in ((bad, bad), (bad, good), (good, bad)):
        with pytest.raises(parallax.SegmentError, match=r"One|Two") as caught:
            session.run(None, {"x": X, "one": one, "two": two})
        assert {"One"} <= set(caught.value.nodes) or {"Two"} <= set(caught.value.nodes)
        y, z = session.run(None, {"x": X, "one": good, "two": good})
        np.testing.assert_allclose(y, np.sin(X).reshape(4, 2), rtol=1e-6)
        np.testing.assert_allclose(z, np.tanh(X).reshape(4, 2), rtol=1e-6)
