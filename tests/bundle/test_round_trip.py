"""A bundle computes what the model does, and is a session like any other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import parallax
from parallax import zoo
from parallax.engine import TraceRecorder
from parallax.model import load_model
from parallax.profile import random_feeds
from tests.bundle._models import branching, compiled, expected, feeds


@pytest.mark.parametrize("name", ["mobilenetv3-s", "lstm-if-loop"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_zoo_models_bundle_gives_the_models_bits(name: str, cut: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"min_gain": 0, "threads": 2} if cut else {"policy": "sequential"}
    model = zoo.load(name)
    bundle = parallax.compile(model, tmp_path / "m.plx", **options)
    mapped = parallax.InferenceSession(bundle)
    direct = parallax.InferenceSession(model, **options)
    planned = direct.plan
    if not cut:
        # Without the model at hand, a bundle has to know what a run of it holds.
        (segment,) = mapped.plan.segments
        planned = replace(planned, segments=(replace(planned.segments[0], peak_bytes=segment.peak_bytes),))
    else:
        # Bundles keep operators with bodies whole.
        lowers = any(segment.bodies for segment in planned.segments)
        assert lowers is (name == "lstm-if-loop")
        planned = mapped.plan if lowers else planned
    assert mapped.plan == planned
    assert (len(mapped.plan.segments) > 1) is cut
    fed = random_feeds(load_model(model).graph)
    for got, want in zip(mapped.run(None, fed), direct.run(None, fed), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_session_on_a_bundle_describes_itself_as_one_on_the_model_does(cut: bool, tmp_path: Path) -> None:
    mapped = parallax.InferenceSession(compiled(tmp_path, cut=cut))
    plain = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for of in ("get_inputs", "get_outputs"):
        shown = [[(a.name, a.type, a.shape) for a in getattr(session, of)()] for session in (mapped, plain)]
        assert shown[0] == shown[1]
    assert mapped.get_providers() == plain.get_providers()
    ours, theirs = mapped.get_modelmeta(), plain.get_modelmeta()
    for field in ("custom_metadata_map", "producer_name", "graph_name", "domain", "description", "version"):
        assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_bundle_runs_in_all_shapes_of_the_model(cut: bool, tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    # A whole model is planned for these shapes and kept for all of them.
    options: dict[str, Any] = {"min_gain": 0, "threads": 2} if cut else {"shapes": {"x": (3, 64)}}
    session = parallax.InferenceSession(parallax.compile(model, tmp_path / "m.plx", **options))
    assert session.get_inputs()[0].shape == ["rows", 64]
    for rows in (3, 1, 8):
        np.testing.assert_allclose(session.run(None, feeds(rows))[0], expected(model, feeds(rows)), rtol=1e-5)


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_external_data_comes_along(external: bool, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    model = branching(tmp_path / "m.onnx", external=external)
    want = expected(model, feeds())
    bundle = parallax.compile(model, tmp_path / "m.plx", portable=True)
    model.unlink()
    (tmp_path / "weights" / "w.bin").unlink(missing_ok=True)
    np.testing.assert_array_equal(parallax.InferenceSession(bundle).run(None, feeds())[0], want)


def test_a_model_is_compiled_from_bytes_and_from_a_proto(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    for number, source in enumerate((model.read_bytes(), onnx.load(model))):
        bundle = parallax.compile(source, tmp_path / f"{number}.plx", portable=True)
        session = parallax.InferenceSession(str(bundle))
        np.testing.assert_array_equal(session.run(None, feeds())[0], expected(model, feeds()))


def test_an_initializer_that_callers_may_override_stays_so(tmp_path: Path) -> None:
    proto = onnx.load(branching(tmp_path / "m.onnx"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w_left_0", onnx.TensorProto.FLOAT, [64, 64]))
    onnx.save(proto, tmp_path / "m.onnx")
    fed = feeds() | {"w_left_0": np.eye(64, dtype=np.float32)}
    want = expected(tmp_path / "m.onnx", fed)
    for cut in (False, True):
        options: dict[str, Any] = {"min_gain": 0, "threads": 2} if cut else {}
        session = parallax.InferenceSession(parallax.compile(tmp_path / "m.onnx", tmp_path / "m.plx", **options))
        assert [argument.name for argument in session.get_inputs()] == ["x"]
        assert [argument.name for argument in session.get_overridable_initializers()] == ["w_left_0"]
        np.testing.assert_allclose(session.run(None, fed)[0], want, rtol=1e-5)
        np.testing.assert_allclose(
            session.run(None, feeds())[0], expected(tmp_path / "m.onnx", feeds()), rtol=1e-5, err_msg="not overridden"
        )


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_session_on_a_bundle_is_pickled_by_its_path(cut: bool, tmp_path: Path) -> None:
    session = parallax.InferenceSession(compiled(tmp_path, cut=cut))
    copy = pickle.loads(pickle.dumps(session))
    assert copy.plan == session.plan
    np.testing.assert_array_equal(copy.run(None, feeds())[0], session.run(None, feeds())[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_runs_the_bundle_again(cut: bool, tmp_path: Path) -> None:
    session = parallax.InferenceSession(compiled(tmp_path, cut=cut))
    want = session.run(None, feeds())[0]

    def child() -> None:
        np.testing.assert_array_equal(session.run(None, feeds())[0], want)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_bundle_of_a_whole_model_serves_io_binding(tmp_path: Path) -> None:
    session = parallax.InferenceSession(compiled(tmp_path))
    binding = session.io_binding()
    binding.bind_cpu_input("x", feeds()["x"])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected(tmp_path / "model.onnx", feeds()))


def test_a_cut_bundle_has_a_whole_session_only_if_it_is_portable(tmp_path: Path) -> None:
    session = parallax.InferenceSession(compiled(tmp_path, cut=True))
    with pytest.raises(parallax.BundleError, match="portable=True"):
        session.io_binding()
    session = parallax.InferenceSession(compiled(tmp_path, cut=True, portable=True))
    binding = session.io_binding()
    binding.bind_cpu_input("x", feeds()["x"])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected(tmp_path / "model.onnx", feeds()))


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_runs_of_a_bundle_are_traced(cut: bool, tmp_path: Path) -> None:
    recorder = TraceRecorder()
    session = parallax.InferenceSession(compiled(tmp_path, cut=cut), trace=recorder)
    session.run(None, feeds())
    assert {span.segment for span in recorder.take()} == {segment.index for segment in session.plan.segments}


def test_the_callers_options_are_as_they_were(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = parallax.InferenceSession(compiled(tmp_path), options)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert session.get_session_options().intra_op_num_threads == 1
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(tmp_path / "model.onnx", feeds()))


@pytest.mark.parametrize(
    "option",
    [{"shapes": {"x": (1, 64)}}, {"tune": True}, {"min_gain": 0.5}, {"cache": True}],
    ids=lambda o: next(iter(o)),
)
def test_what_was_decided_when_compiling_is_not_asked_for_when_opening(option: dict[str, Any], tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    with pytest.raises(parallax.ConfigError, match=f"{next(iter(option))}= is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, **option)


def test_options_that_a_compiled_model_cannot_follow_are_refused(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "other.onnx")
    with pytest.raises(parallax.ConfigError, match="open the model itself"):
        parallax.InferenceSession(bundle, options)
    with pytest.raises(parallax.ConfigError, match='choose "once", "full" or "never"'):
        parallax.InferenceSession(bundle, verify="sometimes")  # type: ignore[arg-type]


def test_a_model_that_hands_an_input_out_is_compiled_too(tmp_path: Path) -> None:
    proto = onnx.load(branching(tmp_path / "m.onnx"))
    proto.graph.output.append(proto.graph.input[0])
    session = parallax.InferenceSession(parallax.compile(proto, tmp_path / "m.plx"))
    assert [argument.name for argument in session.get_outputs()] == ["y", "x"]
    np.testing.assert_array_equal(session.run(["x"], feeds())[0], feeds()["x"])


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_provider_that_is_not_installed_is_warned_about_and_left_out(cut: bool, tmp_path: Path) -> None:
    bundle = compiled(tmp_path, cut=cut)
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"):
        session = parallax.InferenceSession(bundle, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_providers_can_be_set_again(tmp_path: Path) -> None:
    session = parallax.InferenceSession(compiled(tmp_path))
    session.set_providers(["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, feeds())[0], expected(tmp_path / "model.onnx", feeds()))


def test_a_bundle_is_written_for_the_options_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError, match="unknown policy"):
        parallax.compile(branching(tmp_path / "m.onnx"), tmp_path / "m.plx", policy="none")
    with pytest.raises(parallax.ModelFileError):
        parallax.compile(tmp_path / "missing.onnx", tmp_path / "m.plx")
    assert not (tmp_path / "m.plx").exists()


def test_a_tuned_bundle_keeps_the_plan_that_was_measured(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    bundle = parallax.compile(
        model, tmp_path / "m.plx", tune=True, calibration=feeds(), threads=2, cache_dir=tmp_path / "cache"
    )
    assert parallax.InferenceSession(bundle).plan.provenance.source == "measured"


def test_a_target_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for target in (tmp_path / "notes", model, tmp_path / "missing" / "m.plx"):
        with pytest.raises(parallax.ConfigError):
            parallax.compile(model, target)
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"
