"""Run options, asynchronous runs and profiling behave as ONNX Runtime's."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import parallax
from tests.session._dropin import (
    ENDLESS,
    FOREVER,
    RESHAPING,
    TWO_OUTPUTS,
    SessionClass,
    assert_cut,
    on_every_session,
    on_parallax_sessions,
    open_session,
    parse,
    quiet_options,
    ramp,
    two_outputs_answer,
)

X, Y = ramp(2, 4), ramp(2, 4, start=0.3)
FEED = {"x": X, "y": Y}
BOTH = two_outputs_answer(X, Y)[2]
PATIENCE_S = 60.0
"""How long a test waits for another thread before it fails; nothing is timed."""


# --- Run options ----------------------------------------------------------------------------------


@on_every_session
def test_every_run_option_is_accepted(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    assert_cut(session)
    options = onnxruntime.RunOptions()
    options.logid = "a tag"
    options.log_severity_level = 4
    options.log_verbosity_level = 0
    options.only_execute_path_to_fetches = True
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    for names in (None, ["both"], ["left"], ["right", "left"]):
        for result, name in zip(session.run(names, FEED, options), names or ["left", "right", "both"], strict=True):
            wanted = dict(zip(["left", "right", "both"], two_outputs_answer(X, Y), strict=True))[name]
            np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)
    assert options.logid == "a tag"
    assert options.terminate is False


@on_every_session
@pytest.mark.parametrize("how", ["run", "run_with_ort_values", "run_with_iobinding"])
def test_a_run_told_to_end_before_it_starts_does_not_run(session_class: SessionClass, how: str) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    options = onnxruntime.RunOptions()

    def run() -> Any:
        if how == "run":
            return session.run(["both"], FEED, options)[0]
        if how == "run_with_ort_values":
            values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in FEED.items()}
            return session.run_with_ort_values(["both"], values, options)[0].numpy()
        binding = session.io_binding()
        for name, value in FEED.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("both")
        session.run_with_iobinding(binding, options)
        return binding.copy_outputs_to_cpu()[0]

    for _ in range(2):
        options.terminate = True
        with pytest.raises((Fail, RuntimeError), match="terminate flag"):
            run()
        assert options.terminate is True, "the flag is the caller's to clear"
        options.terminate = False
        np.testing.assert_allclose(run(), BOTH, rtol=1e-6, atol=1e-6)


@on_parallax_sessions
def test_a_stopped_run_is_told_apart_from_a_failed_one(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(parallax.RunCancelled) as caught:
        session.run(None, FEED, options)
    assert isinstance(caught.value, Fail)


@on_every_session
@pytest.mark.parametrize("rounds", [1, 4])
def test_another_thread_stops_a_run(session_class: SessionClass, rounds: int) -> None:
    session = open_session(session_class, ENDLESS)
    assert_cut(session)
    x = ramp(4)
    for _ in range(rounds):
        options = onnxruntime.RunOptions()
        stopper = threading.Timer(0.1, setattr, (options, "terminate", True))
        stopper.start()
        with pytest.raises(Fail, match="terminate flag"):
            session.run(None, {"trips": FOREVER, "x": x}, options)
        stopper.join()
    last, side = session.run(None, {"trips": np.array(1), "x": x})
    np.testing.assert_allclose(last, np.cos(np.sin(x)), rtol=1e-6)
    np.testing.assert_allclose(side, np.exp(np.cos(x)), rtol=1e-6)


@on_every_session
def test_stopping_one_run_leaves_the_others_going(session_class: SessionClass) -> None:
    session = open_session(session_class, ENDLESS)
    x = ramp(4)
    options, outcome = onnxruntime.RunOptions(), []

    def long_run() -> None:
        try:
            session.run(None, {"trips": FOREVER, "x": x}, options)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=long_run)
    thread.start()
    for _ in range(20):
        last, _ = session.run(None, {"trips": np.array(1), "x": x})
        np.testing.assert_allclose(last, np.cos(np.sin(x)), rtol=1e-6)
    assert thread.is_alive()
    options.terminate = True
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], Fail)


# --- Asynchronous runs ----------------------------------------------------------------------------


class _Inbox:
    """Collects what a callback is given, and lets the test wait for it."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self.calls: list[tuple[Any, Any, str]] = []

    def __call__(self, results: Any, user_data: Any, error: str) -> None:
        with self._arrived:
            self.calls.append((results, user_data, error))
            self._arrived.notify_all()

    def wait(self, count: int = 1) -> list[tuple[Any, Any, str]]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.calls) >= count, PATIENCE_S), "no callback came"
            return list(self.calls)


@on_every_session
def test_a_callback_gets_results_user_data_and_no_error(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS, threads=2)
    assert_cut(session)
    inbox, mine = _Inbox(), object()
    for names, count in ((None, 3), ([], 3), (["both"], 1)):
        assert session.run_async(names, FEED, inbox, mine) is None
        results, user_data, error = inbox.wait()[0]
        assert error == ""
        assert user_data is mine
        assert len(results) == count
        np.testing.assert_allclose(results[-1], BOTH, rtol=1e-6, atol=1e-6)
        inbox.calls.clear()


@on_every_session
def test_many_asynchronous_runs_each_get_their_own_answer(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS, threads=2)
    inbox = _Inbox()
    feeds = [{"x": X + np.float32(n), "y": Y - np.float32(n)} for n in range(32)]
    for number, feed in enumerate(feeds):
        session.run_async(["both"], feed, inbox, number)
    for results, number, error in inbox.wait(len(feeds)):
        assert error == ""
        wanted = two_outputs_answer(feeds[number]["x"], feeds[number]["y"])[2]
        np.testing.assert_allclose(results[0], wanted, rtol=1e-6, atol=1e-6)
    assert sorted(number for _, number, _ in inbox.calls) == list(range(len(feeds)))


@on_every_session
def test_a_feed_that_is_missing_is_raised_at_once(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS, threads=2)
    inbox = _Inbox()
    with pytest.raises(ValueError, match="'y'"):
        session.run_async(None, {"x": X}, inbox, None)
    assert inbox.calls == []


@on_every_session
@pytest.mark.parametrize(
    ("names", "feed", "message"),
    [
        (["nothing"], FEED, "nothing"),
        (None, {"x": X[0], "y": Y}, "rank.*x"),
        (None, {"x": X, "y": ramp(2, 3)}, "dimension.*y"),
        (None, {"x": X, "y": ramp(3, 4)}, "Both"),
    ],
    ids=["output", "rank", "dimension", "while-running"],
)
def test_other_mistakes_reach_the_callback_as_text(
    session_class: SessionClass, names: Any, feed: Any, message: str
) -> None:
    session = open_session(session_class, TWO_OUTPUTS, threads=2)
    inbox = _Inbox()
    session.run_async(names, feed, inbox, "mine")
    results, user_data, error = inbox.wait()[0]
    assert results == []
    assert user_data == "mine"
    assert message.split(".*")[-1] in error
    np.testing.assert_allclose(session.run(["both"], FEED)[0], BOTH, rtol=1e-6, atol=1e-6)


@on_every_session
def test_an_asynchronous_run_can_be_stopped(session_class: SessionClass) -> None:
    session = open_session(session_class, ENDLESS, threads=2)
    options, inbox = onnxruntime.RunOptions(), _Inbox()
    session.run_async(None, {"trips": FOREVER, "x": ramp(4)}, inbox, None, options)
    options.terminate = True
    assert "terminate flag" in inbox.wait()[0][2]


# --- Profiling ------------------------------------------------------------------------------------


@on_every_session
def test_profiling_writes_the_runs_nodes_to_a_file(session_class: SessionClass, tmp_path: Path) -> None:
    options = quiet_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = session_class(parse(RESHAPING).SerializeToString(), options)
    session.run(None, {"x": X, "shape": np.array([4, 2])})
    assert session.get_profiling_start_time_ns() > 0
    written = Path(session.end_profiling())
    assert written.parent == tmp_path
    ran = {event["args"].get("op_name") for event in json.loads(written.read_text()) if event["cat"] == "Node"}
    assert {"Sin", "Cos", "Tanh", "Reshape"} <= ran


@on_every_session
def test_without_profiling_there_is_no_profile(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    session.run(None, FEED)
    assert session.end_profiling() == ""


@on_every_session
def test_options_of_a_run_are_shared_by_several_threads(session_class: SessionClass) -> None:
    session = open_session(session_class, TWO_OUTPUTS)
    options = onnxruntime.RunOptions()
    errors: list[Exception] = []

    def work(start: float) -> None:
        try:
            for step in range(20):
                feed = {"x": ramp(2, 4, start=start), "y": ramp(2, 4, start=step)}
                wanted = two_outputs_answer(feed["x"], feed["y"])[2]
                np.testing.assert_allclose(session.run(["both"], feed, options)[0], wanted, rtol=1e-6, atol=1e-6)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(float(start),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == []
