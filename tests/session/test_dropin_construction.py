"""Sessions are made, subclassed, pickled and dropped as ONNX Runtime's are."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from tests.session._dropin import (
    SESSION_CLASSES,
    ForcedSplitSession,
    SessionClass,
    assert_cut,
    branches_answer,
    branches_model,
    on_every_session,
    on_parallax_sessions,
    open_session,
    quiet_options,
    ramp,
)

X = ramp(2, 4)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "branches.onnx"
    path.write_bytes(branches_model().SerializeToString())
    return path


def _answers(session: onnxruntime.InferenceSession) -> None:
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6, atol=1e-6)


class _PathLike:
    """Anything with ``__fspath__`` counts as a path, not only ``pathlib``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@on_every_session
@pytest.mark.parametrize("form", [str, Path, _PathLike, Path.read_bytes], ids=["str", "Path", "PathLike", "bytes"])
def test_a_model_is_given_as_path_or_bytes(
    session_class: SessionClass, form: Callable[[Path], Any], model_path: Path
) -> None:
    session = session_class(form(model_path))
    assert_cut(session)
    _answers(session)


@on_every_session
def test_a_relative_path_is_taken_from_the_working_directory(
    session_class: SessionClass, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_path.parent)
    _answers(session_class(model_path.name))


@on_every_session
def test_a_path_may_hold_spaces_and_letters_beyond_ascii(
    session_class: SessionClass, model_path: Path, tmp_path: Path
) -> None:
    renamed = model_path.rename(tmp_path / "mödel 模型.onnx")
    _answers(session_class(renamed))


@on_every_session
def test_arguments_may_be_positional_in_onnxruntimes_order(session_class: SessionClass, model_path: Path) -> None:
    session = session_class(str(model_path), quiet_options(), ["CPUExecutionProvider"], [{}])
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
    _answers(session)


@on_every_session
def test_arguments_may_be_named_as_onnxruntime_names_them(session_class: SessionClass, model_path: Path) -> None:
    session = session_class(
        path_or_bytes=str(model_path),
        sess_options=quiet_options(),
        providers=["CPUExecutionProvider"],
        provider_options=[{}],
        enable_fallback=0,
        disabled_optimizers=["ConstantFolding"],
        read_config_from_model=0,
    )
    _answers(session)


@on_every_session
@pytest.mark.parametrize(
    "providers",
    [None, [], ["CPUExecutionProvider"], ("CPUExecutionProvider",), [("CPUExecutionProvider", {})]],
    ids=["None", "empty", "list", "tuple", "with-options"],
)
def test_providers_take_every_form(session_class: SessionClass, providers: Any) -> None:
    session = session_class(branches_model().SerializeToString(), quiet_options(), providers)
    assert "CPUExecutionProvider" in session.get_providers()
    assert "CPUExecutionProvider" in session.get_provider_options()
    _answers(session)


@on_every_session
def test_a_provider_that_is_not_installed_is_warned_about_and_left_out(session_class: SessionClass) -> None:
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        session = session_class(
            branches_model().SerializeToString(),
            quiet_options(),
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
        )
    assert session.get_providers() == ["CPUExecutionProvider"]
    _answers(session)


@on_every_session
def test_lengths_of_providers_and_their_options_must_agree_without_fallback(session_class: SessionClass) -> None:
    with pytest.raises(ValueError, match="same length"):
        session_class(
            branches_model().SerializeToString(),
            quiet_options(),
            ["CPUExecutionProvider"],
            [{}, {}],
            enable_fallback=0,
        )


@on_every_session
@pytest.mark.parametrize("model", [5, None, bytearray(b"x"), ["a"]], ids=["int", "None", "bytearray", "list"])
def test_what_is_neither_path_nor_bytes_is_a_type_error(session_class: SessionClass, model: Any) -> None:
    with pytest.raises(TypeError, match="Unable to load from type"):
        session_class(model)


@on_every_session
def test_options_of_the_wrong_type_are_a_type_error(session_class: SessionClass) -> None:
    with pytest.raises(TypeError):
        session_class(branches_model().SerializeToString(), "options")


@on_every_session
def test_a_session_is_an_onnxruntime_session(session_class: SessionClass) -> None:
    session = open_session(session_class, branches_model())
    assert isinstance(session, onnxruntime.InferenceSession)
    assert isinstance(session, onnxruntime.capi.onnxruntime_inference_collection.Session)


@on_every_session
def test_the_model_stays_readable_where_clients_look_for_it(session_class: SessionClass, model_path: Path) -> None:
    # Exporters and pipelines find sibling files (configuration, tokenizer) through `_model_path`.
    assert session_class(model_path)._model_path == os.fspath(model_path)
    held = branches_model().SerializeToString()
    session = session_class(held)
    assert session._model_path is None
    assert session._model_bytes == held


@on_every_session
def test_one_set_of_options_opens_several_sessions_and_is_left_as_it_was(session_class: SessionClass) -> None:
    options = quiet_options()
    options.add_free_dimension_override_by_name("N", 2)
    sessions = [session_class(branches_model().SerializeToString(), options) for _ in range(3)]
    for session in sessions:
        assert session.get_inputs()[0].shape == [2, 4]
        _answers(session)
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 0
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.enable_profiling is False


@on_every_session
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("mode", ["ORT_SEQUENTIAL", "ORT_PARALLEL"])
def test_every_optimisation_level_and_execution_mode_is_accepted(
    session_class: SessionClass, level: str, mode: str
) -> None:
    options = quiet_options(threads=2)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.execution_mode = getattr(onnxruntime.ExecutionMode, mode)
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    _answers(session_class(branches_model().SerializeToString(), options))


@on_every_session
def test_the_optimised_model_is_written_where_the_options_say(session_class: SessionClass, tmp_path: Path) -> None:
    options = quiet_options()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    _answers(session_class(branches_model().SerializeToString(), options))
    _answers(onnxruntime.InferenceSession(tmp_path / "optimised.onnx", quiet_options()))


@on_every_session
def test_external_initializers_given_in_memory_are_used(session_class: SessionClass) -> None:
    model = branches_model()
    moved = model.graph.initializer[0]
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.frombuffer(moved.raw_data, np.float32).copy())
    moved.data_location = 1
    moved.ClearField("raw_data")
    for key, text in (("location", "elsewhere.bin"), ("offset", "0"), ("length", "16")):
        moved.external_data.add(key=key, value=text)
    options = quiet_options()
    options.add_external_initializers([moved.name], [value])
    _answers(session_class(model.SerializeToString(), options))


# --- Subclasses -----------------------------------------------------------------------------------


@on_every_session
def test_a_subclass_may_narrow_the_constructor_and_extend_run(session_class: SessionClass, model_path: Path) -> None:
    class Predictor(session_class):
        """As clients write them: their own arguments, attributes of their own, `super()` calls."""

        def __init__(self, path: Path) -> None:
            super().__init__(path, sess_options=quiet_options(), providers=["CPUExecutionProvider"])
            self.calls = 0

        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
            self.calls += 1
            return super().run(output_names, input_feed, run_options)

    predictor = Predictor(model_path)
    assert isinstance(predictor, session_class)
    _answers(predictor)
    _answers(predictor)
    assert predictor.calls == 2


class _Pickable:
    """The recipe clients share for pickling a session: keep the path, open the model again on the other side."""

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        super().__init__(model_path, **kwargs)  # type: ignore[call-arg]
        self.model_path = model_path

    def __getstate__(self) -> dict[str, Any]:
        return {"model_path": self.model_path}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__init__(values["model_path"])


class _PickablePlain(_Pickable, onnxruntime.InferenceSession):
    """The recipe over ONNX Runtime; at module level, for pickle finds classes by name."""


class _PickableDefault(_Pickable, parallax.InferenceSession):
    """The recipe over Parallax."""


class _PickableSplit(_Pickable, ForcedSplitSession):
    """The recipe over Parallax with splitting forced."""


@pytest.mark.parametrize("pickable", [_PickablePlain, _PickableDefault, _PickableSplit])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_subclass_pickles_by_the_usual_recipe(pickable: Any, protocol: int, model_path: Path) -> None:
    session = pickable(str(model_path), sess_options=quiet_options())
    _answers(session)
    again = pickle.loads(pickle.dumps(session, protocol))
    assert type(again) is pickable
    assert again.model_path == str(model_path)
    _answers(again)
    _answers(session)


class _Holder:
    """The other recipe: a wrapper that owns a session and the bytes to make another."""

    def __init__(self, flavour: str, model: bytes) -> None:
        self.flavour, self.model = flavour, model
        self.session = SESSION_CLASSES[flavour](model, sess_options=quiet_options())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.flavour, self.model)


@pytest.mark.parametrize("flavour", SESSION_CLASSES)
def test_a_wrapper_pickles_and_copies_by_reduce(flavour: str) -> None:
    holder = _Holder(flavour, branches_model().SerializeToString())
    for again in (pickle.loads(pickle.dumps(holder)), copy.deepcopy(holder), copy.copy(holder)):
        assert again.session is not holder.session
        _answers(again.session)


@on_parallax_sessions
def test_a_parallax_session_pickles_by_itself(session_class: SessionClass, model_path: Path) -> None:
    # ONNX Runtime's own refuses; ours knows its source and opens it again.
    for source in (model_path, model_path.read_bytes()):
        session = session_class(source, quiet_options())
        for again in (pickle.loads(pickle.dumps(session)), copy.deepcopy(session)):
            assert type(again) is session_class
            assert again is not session
            assert len(again.plan.segments) == len(session.plan.segments)
            assert again.get_session_options().intra_op_num_threads == 1
            _answers(again)
        _answers(session)


@on_every_session
def test_a_shallow_copy_runs(session_class: SessionClass) -> None:
    session = open_session(session_class, branches_model())
    again = copy.copy(session)
    _answers(again)
    del session
    gc.collect()
    _answers(again)


# --- Ends -----------------------------------------------------------------------------------------


@on_every_session
def test_results_outlive_their_session(session_class: SessionClass) -> None:
    session = open_session(session_class, branches_model())
    assert_cut(session)
    result = session.run(None, {"x": X})[0]
    values = session.run_with_ort_values(None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(X)})
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    del session
    gc.collect()
    for array in (result, values[0].numpy(), binding.copy_outputs_to_cpu()[0]):
        np.testing.assert_allclose(array, branches_answer(X), rtol=1e-6, atol=1e-6)


@on_every_session
def test_a_dropped_session_is_freed(session_class: SessionClass) -> None:
    session = open_session(session_class, branches_model())
    session.run(None, {"x": X})
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


@on_every_session
def test_one_session_dropped_leaves_the_others_running(session_class: SessionClass) -> None:
    sessions = [open_session(session_class, branches_model()) for _ in range(3)]
    for session in sessions:
        _answers(session)
    del session, sessions[1]
    gc.collect()
    for session in sessions:
        _answers(session)


@on_every_session
def test_a_file_may_be_deleted_once_its_session_is_open(session_class: SessionClass, model_path: Path) -> None:
    session = session_class(model_path, quiet_options())
    model_path.unlink()
    _answers(session)
    _answers(session)


@on_every_session
def test_clients_may_release_the_model_by_clearing_the_inner_session(session_class: SessionClass) -> None:
    # Seen in applications that free memory without waiting for the collector.
    session = open_session(session_class, branches_model())
    _answers(session)
    session._sess = None
    assert session._sess is None
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
