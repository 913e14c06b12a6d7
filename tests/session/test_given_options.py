"""A caller's session options stay what they were at opening, travel with a pickled session, and hide nothing."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import parallax
from parallax.options._carried_options import PROPERTIES
from tests.session._dropin import branches_answer, branches_model, quiet_options, ramp

X = ramp(2, 4)
GIVEN = onnxruntime.OrtValue.ortvalue_from_numpy(np.full(4, 7, np.float32))
SPLIT = {"min_gain": 0, "threads": 2}


def _answers(session: onnxruntime.InferenceSession) -> None:
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6, atol=1e-6)


def _bound(session: onnxruntime.InferenceSession) -> Any:
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0]


def test_options_that_are_changed_after_opening_change_nothing_in_a_split_session() -> None:
    options = quiet_options(threads=2)
    session = parallax.InferenceSession(branches_model().SerializeToString(), options, min_gain=0)
    options.add_initializer("shift_0_0", GIVEN)
    options.intra_op_num_threads = 1
    assert session.get_session_options().intra_op_num_threads == 2
    np.testing.assert_allclose(_bound(session), branches_answer(X), rtol=1e-6, atol=1e-6)
    session.set_providers(["CPUExecutionProvider"])
    assert len(session.plan.segments) > 1
    _answers(session)


def test_the_callers_options_are_not_changed_by_looking_into_them() -> None:
    options = quiet_options()
    parallax.InferenceSession(branches_model().SerializeToString(), options, **SPLIT)
    # Each name is still free.
    options.add_initializer("shift_0_0", GIVEN)
    assert options.intra_op_num_threads == 1
    assert not options.has_providers()


# --- Pickling -------------------------------------------------------------------------------------


def test_a_pickled_session_takes_every_option_along_that_can_be_read(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    changed = {
        "enable_cpu_mem_arena": False,
        "enable_mem_pattern": False,
        "enable_mem_reuse": False,
        "execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL,
        "execution_order": onnxruntime.ExecutionOrder.PRIORITY_BASED,
        "graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "inter_op_num_threads": 2,
        "intra_op_num_threads": 2,
        "log_severity_level": 4,
        "log_verbosity_level": 1,
        "logid": "carried",
        "profile_file_prefix": "seen",
        "use_deterministic_compute": True,
    }
    for name, value in changed.items():
        setattr(options, name, value)
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = parallax.InferenceSession(
        branches_model().SerializeToString(), options, disabled_optimizers=["ConstantFolding"], enable_fallback=0
    )
    again = pickle.loads(pickle.dumps(session))
    shown = again.get_session_options()
    assert {name: getattr(shown, name) for name in changed} == changed
    assert shown.get_session_config_entry("session.strict_shape_type_inference") == "1"
    assert shown.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert again.plan.provenance.reason == session.plan.provenance.reason
    assert not again._enable_fallback
    _answers(again)


def test_every_property_of_session_options_travels() -> None:
    properties = {name for name, member in vars(onnxruntime.SessionOptions).items() if isinstance(member, property)}
    assert properties == set(PROPERTIES)


@pytest.mark.parametrize(
    ("give", "text"),
    [
        (lambda options: options.add_initializer("shift_0_0", GIVEN), "shift_0_0"),
        (lambda options: options.add_free_dimension_override_by_name("N", 2), "fix free dimensions"),
        (lambda options: options.add_provider("CPUExecutionProvider", {}), "execution providers were added"),
    ],
    ids=["initializer", "dimension", "provider"],
)
@pytest.mark.parametrize("keywords", [{}, SPLIT], ids=["default", "split"])
def test_options_that_cannot_travel_refuse_to(give: Callable[[Any], None], text: str, keywords: dict[str, Any]) -> None:
    options = quiet_options()
    give(options)
    session = parallax.InferenceSession(branches_model().SerializeToString(), options, **keywords)
    with pytest.raises(parallax.ConfigError, match=text):
        pickle.dumps(session)


# --- What is read elsewhere -----------------------------------------------------------------------


def test_options_in_the_models_metadata_keep_it_whole_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = branches_model()
    onnx.helper.set_model_props(model, {"ort_config": json.dumps({"session_options": {"intra_op_num_threads": 3}})})
    data = model.SerializeToString()
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    stock = onnxruntime.InferenceSession(data)
    session = parallax.InferenceSession(data, **SPLIT)
    assert stock.get_session_options().intra_op_num_threads == 3
    assert session.get_session_options().intra_op_num_threads == 3
    assert "ort_config" in session.plan.provenance.reason
    monkeypatch.delenv("ORT_LOAD_CONFIG_FROM_MODEL")
    assert len(parallax.InferenceSession(data, **SPLIT).plan.segments) > 1


# --- Custom operators -----------------------------------------------------------------------------

_LIBRARY = "void *RegisterCustomOps(void *options, const void *api) { (void)options; (void)api; return 0; }"

_PROGRAM = """
import sys
import numpy as np, onnxruntime, parallax
model, library = sys.argv[1:]
ways = (
    {"min_gain": 0, "threads": 2},
    {"min_gain": 0, "providers": ["emulated:pixel-6-gpu", "CPUExecutionProvider"], "shapes": {"x": (2, 4)}},
)
for way in ways:
    session = parallax.InferenceSession(model, onnxruntime.SessionOptions(), **way)
    assert session.plan.provenance.source == "forced", session.plan.provenance
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
bundle = parallax.compile(model, model + ".plx", min_gain=0, threads=2)
for way in ways:
    session = parallax.InferenceSession(model, options, **way)
    assert len(session.plan.segments) == 1
    assert "custom operators" in session.plan.provenance.reason and library in session.plan.provenance.reason
    x = np.ones((2, 4), np.float32)
    want = onnxruntime.InferenceSession(model, options).run(None, {"x": x})[0]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)
try:
    parallax.InferenceSession(bundle, options)
except parallax.ConfigError as error:
    assert "custom operators" in str(error), error
else:
    raise AssertionError("a bundle took options that may hold custom operators")
print("done")
"""


def test_a_registered_library_of_custom_operators_keeps_the_model_whole(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler here makes a library")
    source, library, model = tmp_path / "operators.c", tmp_path / "operators.so", tmp_path / "model.onnx"
    source.write_text(_LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    onnx.save(branches_model(), model)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(model), str(library)], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("done\n"), done.stderr
