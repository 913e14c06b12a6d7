"""Forked and spawned workers run sessions, and Ctrl-C stops a long run.

Whatever could hang is done in a process of its own, so that the worst a defect can do is fail a test.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from tests.session._dropin import (
    ENDLESS,
    SESSION_CLASSES,
    assert_cut,
    branches_answer,
    branches_model,
    open_session,
    parse,
    ramp,
)

PATIENCE_S = 30.0
"""How long a test waits for another process before it fails; nothing is timed."""

on_every_flavour = pytest.mark.parametrize("flavour", SESSION_CLASSES)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")

# Forking with threads about is what is tested; the interpreter is right to warn of it.
warned_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def _work(flavour: str, session: Any, outbox: Any) -> None:
    """In a worker: run ``session`` (or one of its own), report the answers or the error."""
    try:
        if session is None:
            session = open_session(SESSION_CLASSES[flavour], branches_model(4))
        outbox.put([session.run(None, {"x": ramp(2, 4, start=start)})[0] for start in range(5)])
    except BaseException as error:
        outbox.put(repr(error))


def _answers_of_workers(context: Any, flavour: str, session: Any, count: int = 2) -> None:
    outbox = context.Queue()
    workers = [context.Process(target=_work, args=(flavour, session, outbox), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        for _ in workers:
            answers = outbox.get(timeout=PATIENCE_S)
            assert isinstance(answers, list), answers
            for start, answer in enumerate(answers):
                np.testing.assert_allclose(answer, branches_answer(ramp(2, 4, start=start), 4), rtol=1e-5, atol=1e-5)
        for worker in workers:
            worker.join(PATIENCE_S)
            assert worker.exitcode == 0, "the worker did not end by itself"
    finally:
        for worker in workers:
            worker.kill()


@needs_fork
@warned_fork
@on_every_flavour
@pytest.mark.parametrize("used_before", [False, True], ids=["unused", "used"])
def test_a_forked_worker_runs_the_session_of_its_parent(flavour: str, used_before: bool) -> None:
    # As gunicorn does with --preload. With one thread, which is all that ONNX Runtime itself survives.
    session = open_session(SESSION_CLASSES[flavour], branches_model(4))
    assert_cut(session)
    if used_before:
        session.run(None, {"x": ramp(2, 4)})
    _answers_of_workers(multiprocessing.get_context("fork"), flavour, session)
    np.testing.assert_allclose(session.run(None, {"x": ramp(2, 4)})[0], branches_answer(ramp(2, 4), 4), rtol=1e-5)


@needs_fork
@warned_fork
@on_every_flavour
def test_a_forked_worker_opens_a_session_of_its_own(flavour: str) -> None:
    # The parent has used one before, so that lanes and pools, which a fork does not copy, were running.
    open_session(SESSION_CLASSES[flavour], branches_model(4)).run(None, {"x": ramp(2, 4)})
    _answers_of_workers(multiprocessing.get_context("fork"), flavour, None)


@needs_fork
@warned_fork
@pytest.mark.parametrize("flavour", [name for name in SESSION_CLASSES if name != "onnxruntime"])
def test_a_forked_worker_runs_a_session_of_several_threads(flavour: str) -> None:
    # ONNX Runtime hangs here: its pool's threads are not there in the child.
    session = open_session(SESSION_CLASSES[flavour], branches_model(4), threads=2)
    session.run(None, {"x": ramp(2, 4)})
    _answers_of_workers(multiprocessing.get_context("fork"), flavour, session)


@needs_fork
@warned_fork
@on_every_flavour
def test_a_worker_forked_in_the_middle_of_a_run_is_sound(flavour: str) -> None:
    session = open_session(SESSION_CLASSES[flavour], branches_model(4))
    stop = threading.Event()

    def keep_running() -> None:
        while not stop.is_set():
            session.run(None, {"x": ramp(2, 4)})

    busy = threading.Thread(target=keep_running)
    busy.start()
    try:
        _answers_of_workers(multiprocessing.get_context("fork"), flavour, None)
    finally:
        stop.set()
        busy.join(PATIENCE_S)
    assert not busy.is_alive()


@on_every_flavour
def test_a_spawned_worker_opens_a_session_of_its_own(flavour: str) -> None:
    _answers_of_workers(multiprocessing.get_context("spawn"), flavour, None, count=1)


@pytest.mark.parametrize("flavour", [name for name in SESSION_CLASSES if name != "onnxruntime"])
def test_a_spawned_worker_is_sent_a_session(flavour: str) -> None:
    session = open_session(SESSION_CLASSES[flavour], branches_model(4))
    assert pickle.dumps(session)
    _answers_of_workers(multiprocessing.get_context("spawn"), flavour, session, count=1)


# --- Ctrl-C -----------------------------------------------------------------------------------------

_LONG_RUN = """
import sys
import numpy as np
from tests.session._dropin import ENDLESS, FOREVER, SESSION_CLASSES, assert_cut, open_session, ramp

session = open_session(SESSION_CLASSES[sys.argv[1]], ENDLESS)
assert_cut(session)
feed = {"x": ramp(4)}
for _ in range(int(sys.argv[2])):
    session.run(None, {"trips": np.array(3), **feed})
print("running", flush=True)
try:
    session.run(None, {"trips": FOREVER, **feed})
except KeyboardInterrupt:
    print("stopped", flush=True)
else:
    print("ended", flush=True)
last, _ = session.run(None, {"trips": np.array(1), **feed})
np.testing.assert_allclose(last, np.cos(np.sin(feed["x"])), rtol=1e-6)
print("usable", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="a test can not send Ctrl-C to one process on Windows")
@pytest.mark.parametrize("flavour", [name for name in SESSION_CLASSES if name != "onnxruntime"])
@pytest.mark.parametrize("runs_before", [0, 50], ids=["first-run", "after-short-runs"])
def test_ctrl_c_stops_a_long_run_and_the_session_goes_on(flavour: str, runs_before: int) -> None:
    # ONNX Runtime's own sessions can't be stopped so: the interpreter hears of the signal when the run is over.
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _LONG_RUN, flavour, str(runs_before)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n", process.communicate(timeout=PATIENCE_S)[1]
            # The signal must find the run under way; if it came too early, the test would be of nothing.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert out.split() == ["stopped", "usable"], err
    assert process.returncode == 0
    assert err == ""


def test_a_loop_that_lasts_after_short_runs_gives_the_answer_of_a_run_that_was_let_go_on() -> None:
    """Short runs of a loop are called directly. One that lasts is ended and done again, and none after it is ended."""
    feeds = [{"trips": np.array(trips), "x": ramp(4)} for trips in (3, 3, 3, 300_000, 300_000, 3)]
    stock = open_session(onnxruntime.InferenceSession, ENDLESS)
    ours = parallax.InferenceSession(parse(ENDLESS).SerializeToString(), threads=1)
    for feed in feeds:
        for theirs, mine in zip(stock.run(None, feed), ours.run(None, feed), strict=True):
            np.testing.assert_array_equal(mine, theirs)


_EXIT = """
import sys, threading
from tests.session._dropin import SESSION_CLASSES, branches_model, open_session, ramp

sessions = [open_session(SESSION_CLASSES[sys.argv[1]], branches_model(4)) for _ in range(3)]

def run(session):
    for _ in range(50):
        session.run(None, {"x": ramp(2, 4)})

threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
run(sessions[0])
print("leaving", flush=True)
"""


@on_every_flavour
def test_a_process_ends_cleanly_right_after_a_run_with_sessions_open(flavour: str) -> None:
    # Nothing is closed, and what worked on the last run is hardly idle yet.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _EXIT, flavour],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.stdout == "leaving\n"
    assert (done.returncode, done.stderr) == (0, "")


# On some systems ``import onnxruntime`` alone keeps a forked child from ending: the runtime's library waits when the
# C library ends the process, last of all. So the child leaves just before that, with its interpreter already ended.
_FORKED_EXIT = """
import ctypes, os, signal, sys
from tests.session._dropin import SESSION_CLASSES, branches_answer, branches_model, open_session, ramp
import numpy as np

session = open_session(SESSION_CLASSES[sys.argv[1]], branches_model(4))
session.run(None, {"x": ramp(2, 4)})
library = ctypes.CDLL(None)
child = os.fork()
if child == 0:
    signal.alarm(30)
    np.testing.assert_allclose(session.run(None, {"x": ramp(2, 4)})[0], branches_answer(ramp(2, 4), 4), rtol=1e-5)
    library.__cxa_atexit(ctypes.cast(library._exit, ctypes.c_void_p), None, None)
    sys.exit(0)
print("status", os.waitpid(child, 0)[1], flush=True)
os._exit(0)
"""


@needs_fork
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the C library's __cxa_atexit")
@on_every_flavour
def test_the_interpreter_of_a_forked_worker_ends_by_itself(flavour: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKED_EXIT, flavour],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.stdout == "status 0\n", done.stderr
