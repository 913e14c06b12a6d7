"""One session is called from many threads at once, and each call gets its own answer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.session._dropin import (
    LOOPING,
    RESHAPING,
    SessionClass,
    assert_cut,
    branches_answer,
    branches_model,
    on_every_session,
    open_session,
    ramp,
)

PATIENCE_S = 100.0
"""How long a test waits for its threads before it fails; nothing is timed."""


def _together(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)`` ... ``work(count - 1)`` in as many threads, started as one; raise the first error."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def task(number: int) -> None:
        try:
            barrier.wait(PATIENCE_S)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=task, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def _check(session: onnxruntime.InferenceSession, x: np.ndarray, count: int) -> None:
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x, count), rtol=1e-5, atol=1e-5)


@on_every_session
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_share_a_session(session_class: SessionClass, threads: int) -> None:
    session = open_session(session_class, branches_model(4), threads=threads)
    assert_cut(session)

    def work(number: int) -> None:
        for step in range(40):
            _check(session, ramp(1 + (number + step) % 5, 4, start=number - 0.1 * step), 4)

    _together(8, work)


@on_every_session
def test_eight_threads_with_a_loop_each_of_its_own_length(session_class: SessionClass) -> None:
    session = open_session(session_class, LOOPING)
    assert_cut(session)

    def work(number: int) -> None:
        x = ramp(4, start=number)
        for _ in range(10):
            last, every, _ = session.run(None, {"trips": np.array(number), "x": x})
            assert every.shape == (number, 4)
            np.testing.assert_allclose(last, np.sin(x) + np.float32(number) * np.tanh(x), rtol=1e-4, atol=1e-4)

    _together(8, work)


@on_every_session
def test_threads_that_fail_do_not_disturb_those_that_do_not(session_class: SessionClass) -> None:
    session = open_session(session_class, RESHAPING)
    assert_cut(session)
    x = ramp(2, 4)

    def work(number: int) -> None:
        for _ in range(15):
            if number % 2:
                with pytest.raises(Fail, match="BadReshape"):
                    session.run(None, {"x": x, "shape": np.array([3, 3])})
            else:
                good, bad = session.run(None, {"x": x + np.float32(number), "shape": np.array([8, 1])})
                np.testing.assert_allclose(good, np.cos(np.sin(x + np.float32(number))), rtol=1e-5, atol=1e-5)
                assert bad.shape == (8, 1)

    _together(6, work)


@on_every_session
def test_sessions_are_opened_run_and_dropped_in_several_threads(session_class: SessionClass) -> None:
    def work(number: int) -> None:
        for step in range(4):
            session = open_session(session_class, branches_model(2 + number % 3))
            _check(session, ramp(2, 4, start=number + step), 2 + number % 3)

    _together(6, work)
    gc.collect()


@on_every_session
def test_several_sessions_take_turns_in_several_threads(session_class: SessionClass) -> None:
    sessions = [(count, open_session(session_class, branches_model(count))) for count in (2, 3, 4)]

    def work(number: int) -> None:
        for step in range(15):
            count, session = sessions[(number + step) % len(sessions)]
            _check(session, ramp(2, 4, start=number - step), count)

    _together(6, work)


@on_every_session
def test_bindings_of_one_session_run_in_several_threads(session_class: SessionClass) -> None:
    session = open_session(session_class, branches_model(3))

    def work(number: int) -> None:
        binding = session.io_binding()
        for step in range(15):
            x = ramp(1 + step % 3, 4, start=number)
            binding.bind_cpu_input("x", x)
            binding.bind_output("y")
            session.run_with_iobinding(binding)
            answer = branches_answer(x, 3)
            np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], answer, rtol=1e-5, atol=1e-5)

    _together(6, work)


@on_every_session
def test_a_session_made_in_one_thread_is_run_and_dropped_in_another(session_class: SessionClass) -> None:
    made: list[onnxruntime.InferenceSession] = []
    _together(1, lambda _: made.append(open_session(session_class, branches_model())))
    _check(made[0], ramp(2, 4), 2)

    def use_and_drop(_: int) -> None:
        _check(made[0], ramp(3, 4), 2)
        made.clear()
        gc.collect()

    _together(1, use_and_drop)
    assert made == []
