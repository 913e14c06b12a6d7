"""An option that changes nothing is named by the plan, with the reason; one that has its effect is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.schedule.placement import PLACERS
from tests.session._dropin import branches_answer, branches_model, ramp

MODEL = branches_model().SerializeToString()
PHONE = ["emulated:pixel-6-gpu", "CPUExecutionProvider"]
X = ramp(2, 4)
SHAPES = {"x": (2, 4)}


def reason(session: parallax.InferenceSession) -> str:
    """What the plan of a session says, which is as right as any."""
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-5, atol=1e-5)
    return session.plan.provenance.reason


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policy": "heft"}, 'policy="heft" is of no effect: no device is named'),
        pytest.param({"policy": PLACERS["heft"]()}, 'Heft" is of no effect: no device is named', id="an object"),
        ({"policy": "heft", "tune": True}, 'policy="heft" is of no effect: no device is named'),
        ({"margin": 0.2}, "margin=0.2 is of no effect: there is no memory_budget="),
        ({"calibration": {"x": X}}, "calibration= is of no effect: nothing is measured"),
        ({"verify": "full"}, 'verify="full" is of no effect: no bundle is opened'),
        ({"backends": ("openvino",)}, "backends=('openvino',) is of no effect: what they are worth is measured"),
        ({"cache": True}, "cache=True is of no effect: the model was given as bytes"),
    ],
    ids=str,
)
def test_the_plan_of_a_session_says_so(given: Mapping[str, Any], says: str, tmp_path: Path) -> None:
    asked = {"threads": 2, "cache_dir": tmp_path, **given}
    assert says in reason(parallax.InferenceSession(MODEL, **asked))
    explained = parallax.InferenceSession(MODEL, options=parallax.Options(**asked)).explain()
    assert says in " ".join(explained.split())


@pytest.mark.parametrize(
    "given",
    [
        {"policy": "heft", "providers": PHONE, "shapes": SHAPES},
        {"policy": "sequential"},
        {"policy": "parallax-paper"},
        {"margin": 0.2, "memory_budget": "1GiB"},
        {"calibration": {"x": X}, "tune": True},
        {"calibration": {"x": X}, "providers": PHONE},
        {"backends": ()},
        {"backends": ("openvino",), "tune": True},
    ],
    ids=str,
)
def test_of_what_has_an_effect_it_does_not(given: Mapping[str, Any], tmp_path: Path) -> None:
    assert "no effect" not in reason(parallax.InferenceSession(MODEL, threads=2, cache_dir=tmp_path, **given))


def test_a_cache_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(MODEL)
    asked = onnxruntime.SessionOptions()
    given = {"cache": True, "cache_dir": tmp_path / "cache", "threads": 2}
    assert "cache=True is of no effect: session options were given" in reason(
        parallax.InferenceSession(path, asked, **given)
    )
    assert "no effect" not in reason(parallax.InferenceSession(path, verify="full", **given))
    assert 'policy="heft" is of no effect' in reason(parallax.InferenceSession(path, policy="heft", **given))


def test_a_bundle_keeps_what_was_said_when_it_was_compiled(tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", policy="heft", margin=0.3, calibration={"x": X}, threads=2)
    told = reason(parallax.InferenceSession(bundle, threads=2))
    for says in ('policy="heft" is of no effect', "margin=0.3 is of no effect", "calibration= is of no effect"):
        assert says in told


@pytest.mark.parametrize("policy", ["heft", "sparoa", "parallax-paper"])
def test_a_bundle_refuses_a_policy_that_it_was_not_planned_with(policy: str, tmp_path: Path) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", threads=2)
    with pytest.raises(parallax.ConfigError, match="is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, threads=2, policy=policy)


def test_a_bundle_takes_the_policy_that_placed_it(tmp_path: Path) -> None:
    given: dict[str, Any] = {"policy": "heft", "threads": 2}
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", providers=PHONE, shapes=SHAPES, **given)
    assert "no effect" not in reason(parallax.InferenceSession(bundle, **given))
    with pytest.raises(parallax.ConfigError, match="policy= is decided when a bundle is compiled"):
        parallax.InferenceSession(bundle, threads=2, policy="etf")
