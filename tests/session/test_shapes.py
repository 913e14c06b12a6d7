"""``shapes=`` is for planning: it fixes nothing that the model leaves open."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import parallax
from tests.session._dropin import parse

OPEN = parse(
    "g (float[N, 4] x) => (float[N, 8] y) { s = Sin(x) t = Tanh(s) c = Cos(x) e = Exp(c) y = Concat<axis = 1>(t, e) }"
)


def answer(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.tanh(np.sin(x)), np.exp(np.cos(x))], axis=1)


def check_other_shapes(session: parallax.InferenceSession) -> None:
    assert len(session.plan.segments) > 1
    for rows in (3, 1, 5):
        x = np.linspace(-1, 1, rows * 4, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], answer(x), rtol=1e-6)


def test_a_cut_session_runs_in_other_shapes_than_it_was_planned_for() -> None:
    session = parallax.InferenceSession(OPEN.SerializeToString(), shapes={"x": (3, 4)}, min_gain=0, threads=2)
    check_other_shapes(session)
    assert session.get_inputs()[0].shape == ["N", 4]


def test_so_does_a_cut_bundle(tmp_path: pathlib.Path) -> None:
    target = parallax.compile(OPEN, tmp_path / "open.plx", shapes={"x": (3, 4)}, min_gain=0, threads=2)
    check_other_shapes(parallax.InferenceSession(str(target), threads=2))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [({"z": (1, 4)}, "z"), ({"x": (1,)}, "x"), ({"x": (1, 5)}, "5"), ({"x": (-1, 4)}, "-1"), ({"x": ("n", 4)}, "n")],
)
def test_wrong_shapes_are_refused_at_once(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(parallax.ConfigError, match=words):
        parallax.InferenceSession(OPEN.SerializeToString(), shapes=shapes)
