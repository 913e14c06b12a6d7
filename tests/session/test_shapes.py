"""``shapes=`` is for planning: it fixes nothing that the model leaves open."""

from __future__ import annotations

import pathlib
import subprocess
import sys

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


GROWTH = """
import sys
import numpy as np
import parallax
from onnx import numpy_helper
from parallax.machine import private_bytes
sys.path.insert(0, {root!r})
from tests.session._dropin import parse

model = parse(
    "g (float[N, 256] x) => (float[N, 256] y) {{ a = MatMul(x, v) b = MatMul(a, w) c = MatMul(b, v)"
    " d = MatMul(x, w) e = MatMul(d, v) f = MatMul(e, w) y = Add(c, f) }}"
)
random = np.random.default_rng(0)
for name in "vw":
    array = random.standard_normal((256, 256)).astype(np.float32) / 16
    model.graph.initializer.append(numpy_helper.from_array(array, name))
session = parallax.InferenceSession(model.SerializeToString(), shapes={{"x": (1024, 256)}}, min_gain=0, threads=2)
feeds = [np.zeros((1024 * size, 256), np.float32) for size in (8, 5, 6, 4, 7, 3)]
def visit(order):
    for feed in order:
        session.run(None, {{"x": feed}})
visit(feeds)
before = private_bytes()
for _ in range(3):
    visit(reversed(feeds))
print(len(session.plan.segments), private_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
def test_a_cut_session_does_not_grow_when_shapes_come_again() -> None:
    """Where the runtime kept a memory pattern for each shape, a block for each of the larger ones stayed."""
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", GROWTH.format(root=root)], capture_output=True, text=True, check=True)
    segments, growth = map(int, done.stdout.split())
    assert segments > 1
    assert growth < 8 << 20
