"""A keyword's value of a wrong type or size is a ConfigError that names it and says what to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from tests.session._dropin import branches_answer, branches_model, ramp

WRONG: list[tuple[str, Any]] = [
    ("threads", "2"),
    ("threads", 0),
    ("threads", -1),
    ("threads", True),
    ("threads", 1.0),
    ("policy", "fast"),
    ("policy", 5),
    ("policy", None),
    ("split", "yes"),
    ("split", True),
    ("split", None),
    ("shapes", [("x", (1, 4))]),
    ("shapes", {"x": "abc"}),
    ("shapes", {"x": 4}),
    ("shapes", {"x": (-1, 4)}),
    ("shapes", {"x": (True, 4)}),
    ("shapes", {"x": (1.0, 4)}),
    ("shapes", {"x": (None, 4)}),
    ("shapes", {"x": (2**70, 4)}),
    ("shapes", {5: (1, 4)}),
    ("shapes", {"nowhere": (1, 4)}),
    ("shapes", {"x": (1, 4, 4)}),
    ("calibration", [1]),
    ("calibration", {5: np.zeros((1, 4), np.float32)}),
    ("calibration", {"x": None}),
    ("calibration", {"x": object()}),
    ("calibration", {"x": [[1.0], [1.0, 2.0]]}),
    ("calibration", {"nowhere": np.zeros((1, 4), np.float32)}),
    ("calibration", {}),
    ("tune", "no"),
    ("tune", 1),
    ("tune", None),
    ("min_gain", "0"),
    ("min_gain", -0.1),
    ("min_gain", 1.0),
    ("min_gain", float("nan")),
    ("min_gain", True),
    ("min_gain", 10**400),
    ("cache_dir", 5),
    ("cache_dir", b"folder"),
    ("cache_dir", ""),
    ("cache_dir", "a\0b"),
    ("progress", "loud"),
    ("memory_budget", 0),
    ("memory_budget", -1),
    ("memory_budget", True),
    ("memory_budget", float("nan")),
    ("memory_budget", float("inf")),
    ("memory_budget", "much"),
    ("memory_budget", [1]),
    ("margin", 1),
    ("margin", -0.1),
    ("margin", float("nan")),
    ("margin", "10%"),
    ("margin", None),
    ("margin", True),
    ("padding", "cut"),
    ("padding", True),
    ("padding", ["trim"]),
    ("slim", "yes"),
    ("slim", 1),
    ("objective", "speed"),
    ("objective", "Energy"),
    ("objective", ("energy",)),
    ("objective", None),
    ("objective", 1),
]
ONLY_SESSIONS: list[tuple[str, Any]] = [
    ("trace", object()),
    ("trace", "file.json"),
    ("observers", print),
    ("observers", [5]),
    ("observers", None),
    ("verify", "x"),
    ("verify", True),
    ("verify", ["once"]),
    ("cache", "yes"),
    ("cache", 1),
    ("adapt", "yes"),
    ("adapt", 1),
    ("idle_trim_s", "30"),
    ("idle_trim_s", 0),
    ("idle_trim_s", float("nan")),
    ("idle_trim_s", True),
    ("backends", "openvino"),
    ("backends", [5]),
    ("backends", 5),
    ("faults", {"deadline_s": 1}),
    ("faults", 3),
]
ONLY_COMPILING: list[tuple[str, Any]] = [
    ("portable", "yes"),
    ("portable", 1),
    ("memory_limit", -1),
    ("memory_limit", float("nan")),
    ("memory_limit", True),
    ("target", None),
    ("target", 5),
]
MODEL = branches_model().SerializeToString()


def _id(case: Any) -> str:
    # An address differs between the workers of one test run, which must agree on the names of the tests.
    return re.sub(r" at 0x[0-9a-f]+", "", str(case))[:40]


def _check(error: parallax.ConfigError, name: str) -> None:
    assert name in (error.what + (error.where or ""))
    assert error.fix


@pytest.mark.parametrize(("name", "value"), [*WRONG, *ONLY_SESSIONS], ids=_id)
def test_a_session_refuses_it(name: str, value: Any) -> None:
    with pytest.raises(parallax.ConfigError) as caught:
        parallax.InferenceSession(MODEL, **{name: value})
    _check(caught.value, name)


@pytest.mark.parametrize(("name", "value"), [*WRONG, *ONLY_COMPILING], ids=_id)
def test_compiling_refuses_it(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError) as caught:
        parallax.compile(MODEL, **{"target": tmp_path / "made.plx", name: value})
    _check(caught.value, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), ONLY_SESSIONS, ids=_id)
def test_it_is_refused_before_the_model_is_looked_at(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(parallax.ConfigError):
        parallax.InferenceSession(tmp_path / "there is none.onnx", **{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    session = parallax.InferenceSession(
        MODEL,
        threads=np.int64(2),
        min_gain=np.float32(0),
        shapes={"x": tuple(np.array([2, 4]))},
        idle_trim_s=np.float64(60),
        tune=np.False_,
    )
    assert len(session.plan.segments) > 1
    x = ramp(2, 4)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)
