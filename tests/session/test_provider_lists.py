"""A ``providers=`` list means what it means to ONNX Runtime, tuned or not, malformed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.backends import has_provider
from tests.backends._backends import hide_package
from tests.session._dropin import SessionClass, branches_answer, branches_model, on_every_session, quiet_options, ramp

X = ramp(2, 4)
CUDA = "CUDAExecutionProvider"


def _answers(session: onnxruntime.InferenceSession) -> None:
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6, atol=1e-6)


@on_every_session
@pytest.mark.parametrize(
    "arguments",
    [
        {"providers": "CPUExecutionProvider"},
        {"providers": {"CPUExecutionProvider"}},
        {"providers": [5]},
        {"providers": ["NoSuchExecutionProvider"]},
        {"providers": [("CPUExecutionProvider", {}, 1)]},
        {"providers": [("CPUExecutionProvider", {})], "provider_options": [{}]},
        {"providers": ["CPUExecutionProvider"], "provider_options": [{}, {}]},
        {"providers": ["CPUExecutionProvider"], "provider_options": {}},
        {"providers": ["CPUExecutionProvider"], "provider_options": [5]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Specified provider", "ignore:Duplicate provider")
def test_a_malformed_list_falls_back_to_the_cpu_and_without_fallback_is_an_error(
    session_class: SessionClass, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = branches_model().SerializeToString()
    session = session_class(model, quiet_options(), **arguments)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "Falling back to ['CPUExecutionProvider']" in capsys.readouterr().out
    _answers(session)
    with pytest.raises((ValueError, RuntimeError)):
        session_class(model, quiet_options(), enable_fallback=0, **arguments)


@on_every_session
def test_a_provider_listed_twice_is_warned_about(session_class: SessionClass) -> None:
    with pytest.warns(UserWarning, match="Duplicate provider 'CPUExecutionProvider'"):
        session = session_class(branches_model().SerializeToString(), quiet_options(), ["CPUExecutionProvider"] * 2)
    _answers(session)


@pytest.mark.parametrize("keywords", [{}, {"min_gain": 0}, {"tune": True}], ids=str)
def test_a_provider_that_this_build_lacks_does_not_keep_the_cpu_from_being_planned(
    keywords: dict[str, Any], tmp_path: Path
) -> None:
    assert CUDA not in onnxruntime.get_available_providers()
    model = branches_model().SerializeToString()
    with pytest.warns(UserWarning, match=f"Specified provider '{CUDA}' is not in available provider names"):
        session = parallax.InferenceSession(
            model, providers=[CUDA, "CPUExecutionProvider"], threads=2, cache_dir=tmp_path, backends=(), **keywords
        )
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.plan.provenance.reason.startswith(f"fell back to CPUExecutionProvider: {CUDA} is not in")
    assert f"given to {CUDA}" not in session.plan.provenance.reason
    if "min_gain" in keywords:
        assert len(session.plan.segments) > 1
    _answers(session)


def test_tuning_leaves_a_name_that_is_no_provider_to_onnxruntime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"):
        session = parallax.InferenceSession(
            branches_model().SerializeToString(),
            providers=["NoSuchExecutionProvider", "CPUExecutionProvider"],
            tune=True,
            cache_dir=tmp_path,
        )
    assert "Unknown Provider Type" in capsys.readouterr().out
    assert session.get_providers() == ["CPUExecutionProvider"]
    _answers(session)


def test_a_provider_is_here_if_it_is_built_in() -> None:
    assert has_provider("CPUExecutionProvider")
    assert not has_provider(CUDA)
    assert not has_provider("cpu")


@pytest.mark.parametrize(
    "arguments",
    [
        {"providers": ["openvino"]},
        {"providers": ["openvino", "CPUExecutionProvider"]},
        {"providers": [("openvino", {"memory_budget": "1MiB"}), "CPUExecutionProvider"]},
        {"providers": ["openvino", "CPUExecutionProvider"], "provider_options": [{}, {}]},
        {"providers": ["openvino", "CPUExecutionProvider"], "tune": True},
    ],
    ids=str,
)
def test_a_backend_that_is_not_installed_is_warned_of_and_the_rest_of_the_list_runs_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    hide_package("openvino", monkeypatch)
    with pytest.warns(UserWarning, match="needs the package openvino.*pip install 'parallax-runtime"):
        session = parallax.InferenceSession(
            branches_model().SerializeToString(), threads=2, cache_dir=tmp_path, backends=(), **arguments
        )
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "needs the package openvino, which is not installed" in session.plan.provenance.reason
    _answers(session)
