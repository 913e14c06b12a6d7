"""``close`` and ``with``: what a session held is given back, and what is asked of it then is a clear error."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from tests.session._dropin import ENDLESS, branches_answer, branches_model, on_parallax_sessions, parse, ramp

MODEL = branches_model().SerializeToString()
X = ramp(2, 4)
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"split": "never"},
    "split": {"split": "always", "threads": 2},
    "budget": {"memory_budget": "256MiB"},
    "split in a budget": {"memory_budget": "256MiB", "split": "always", "threads": 2},
    "device": {
        "providers": ["emulated:pixel-6-gpu", "CPUExecutionProvider"],
        "shapes": {"x": (2, 4)},
        "split": "always",
        "threads": 2,
    },
}

USES: dict[str, Callable[[Any], Any]] = {
    "run": lambda session: session.run(None, {"x": X}),
    "run_with_ort_values": lambda session: session.run_with_ort_values(
        None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(X)}
    ),
    "run_async": lambda session: session.run_async(None, {"x": X}, print, None),
    "io_binding": lambda session: session.io_binding(),
    "get_inputs": lambda session: session.get_inputs(),
    "get_outputs": lambda session: session.get_outputs(),
    "get_modelmeta": lambda session: session.get_modelmeta(),
    "get_session_options": lambda session: session.get_session_options(),
    "set_providers": lambda session: session.set_providers(["CPUExecutionProvider"]),
    "end_profiling": lambda session: session.end_profiling(),
    "memory": lambda session: session.memory(),
    "trim": lambda session: session.trim(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "with": lambda session: session.__enter__(),
}


def opened(kind: str, **more: Any) -> parallax.InferenceSession:
    return parallax.InferenceSession(MODEL, **KINDS[kind], **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_session_refuses_everything_but_its_plan(kind: str) -> None:
    session = opened(kind)
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-5, atol=1e-5)
    plan = session.plan
    assert not session.is_closed
    session.close()
    assert session.is_closed
    for name, use in USES.items():
        with pytest.raises(parallax.SessionClosedError, match=r"was closed.*open another one"):
            pytest.fail(f"{name}: {use(session)}")
    assert session.plan == plan
    assert "CPUExecutionProvider" in session.get_providers()
    session.close()
    assert not hasattr(session, "no_such_attribute")


@pytest.mark.parametrize("kind", KINDS)
def test_a_with_block_closes_however_it_is_left(kind: str) -> None:
    with opened(kind) as session:
        answer = session.run(None, {"x": X})[0]
    with pytest.raises(parallax.SessionClosedError):
        session.run(None, {"x": X})
    np.testing.assert_allclose(answer, branches_answer(X), rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError), opened(kind) as session:
        raise KeyError
    assert session.is_closed


@pytest.mark.parametrize("kind", ["whole", "split"])
def test_what_ran_the_model_is_gone_while_the_session_is_still_held(kind: str) -> None:
    session = opened(kind)
    session.run(None, {"x": X})
    inner = session._opened.split.executor if kind == "split" else session._sess
    gone = weakref.ref(inner)
    del inner
    session.close()
    gc.collect()
    assert gone() is None


COUNT = """
import os, sys, time
import numpy, parallax

def threads():
    return len(os.listdir("/proc/self/task"))

def fewest():
    # A thread that was told to end is still counted for a moment, for longer on a busy machine.
    least, since = threads(), time.monotonic()
    while time.monotonic() - since < 1:
        if threads() < least:
            least, since = threads(), time.monotonic()
        time.sleep(0.01)
    return least

x = numpy.zeros((2, 4), numpy.float32)
options = {"whole": {"threads": 4, "split": "never"}, "split": {"threads": 2, "split": "always"}}[sys.argv[2]]
with parallax.InferenceSession(sys.argv[1], **options) as first:
    first.run(None, {"x": x})
before = fewest()
session = parallax.InferenceSession(sys.argv[1], **options)
session.run(None, {"x": x})
during = threads()
session.close()
deadline = time.monotonic() + 30
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(before, during, threads())
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("kind", ["whole", "split"])
def test_threads_end_with_the_session(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    done = subprocess.run(
        [sys.executable, "-c", COUNT, tmp_path / "model.onnx", kind],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    before, during, after = map(int, done.stdout.split())
    assert during > before
    assert after == before


def test_another_split_session_goes_on_after_one_is_closed() -> None:
    kept, closed = opened("split"), opened("split")
    for session in (kept, closed):
        session.run(None, {"x": X})
    closed.close()
    np.testing.assert_allclose(kept.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6, atol=1e-6)


@on_parallax_sessions
def test_a_run_in_flight_goes_on_to_its_end(session_class: type[parallax.InferenceSession]) -> None:
    session = session_class(parse(ENDLESS).SerializeToString())
    feeds = {"trips": np.array(4_000, np.int64), "x": ramp(4)}
    want = session.run(["last"], feeds)[0]
    ready, got = threading.Event(), []

    def work() -> None:
        ready.set()
        got.append(session.run(["last"], feeds)[0])

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    while not got and thread.is_alive():
        session.close()  # sooner or later in the middle of it
    thread.join()
    if got:  # else it was closed before the run began, and said so
        np.testing.assert_array_equal(got[0], want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("kind", ["whole", "split"])
def test_a_forked_child_may_close_its_parents_session(kind: str) -> None:
    session = opened(kind, **({"threads": 2} if kind == "whole" else {}))
    session.run(None, {"x": X})
    child = os.fork()
    if child == 0:
        try:
            session.close()
            session.close()
            os._exit(0 if session.is_closed else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_allclose(session.run(None, {"x": X})[0], branches_answer(X), rtol=1e-6, atol=1e-6)
