"""Sharing is for the whole process and cannot be undone, so each fact is shown in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PRELUDE = """
import numpy as np, onnx.parser, onnxruntime, psutil, parallax
model = onnx.parser.parse_model('''<ir_version: 9, opset_import: ["": 17]>
  g (float[64, 64] x) => (float[64, 64] y, float[64, 64] z) { y = MatMul(x, x) z = Sin(x) }''').SerializeToString()
x = np.eye(64, dtype=np.float32)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", _PRELUDE + code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ten_sessions_share_one_pool() -> None:
    printed = run("""
print(parallax.share_thread_pool(3))
def open_and_run(count):
    sessions = [parallax.InferenceSession(model, min_gain=0) for _ in range(count)]
    for session in sessions:
        y, z = session.run(None, {"x": x})
        assert np.array_equal(y, x) and np.allclose(z, np.sin(x)) and session.plan.is_whole
    return sessions
first = open_and_run(1)
before = psutil.Process().num_threads()
more = open_and_run(10)
print(psutil.Process().num_threads() - before, first[0].plan.provenance.reason)
""")
    assert printed.splitlines() == ["3", "0 all sessions share one thread pool, of which a lane cannot have a part"]


def test_a_second_size_is_refused_and_the_first_is_kept() -> None:
    printed = run("""
parallax.share_thread_pool(2)
try:
    parallax.share_thread_pool(4)
except parallax.ConfigError as error:
    print(error)
print(parallax.share_thread_pool())
""")
    assert "has 2 threads already, 4 were asked for" in printed
    assert printed.endswith("2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_worker_is_told_why_it_cannot_use_the_pool() -> None:
    printed = run("""
import os, warnings
warnings.simplefilter("ignore")
parallax.share_thread_pool(2)
parallax.InferenceSession(model).run(None, {"x": x})
if os.fork():
    os.wait()
else:
    try:
        parallax.InferenceSession(model)
    except parallax.ConfigError as error:
        print(error, flush=True)
    os._exit(0)
""")
    assert "forked after share_thread_pool()" in printed
