"""Sessions that follow their callers: side by side while they keep coming, all threads for one, right all the while."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.adapt import CALLER_RULES
from parallax.adapting import _serving_callers
from parallax.engine import CountedRunner, EventRecorder, WholeRunner
from parallax.events import PlanSwapped, RunAdmitted, RunEnded
from tests.engine._replay import verify_events
from tests.partition._encoders import Choices, encoder
from tests.session._calling import (
    CPU,
    INPUTS,
    LIMIT_S,
    MANY,
    MODEL,
    calling,
    decide_trials,
    dense_chain,
    is_narrow,
    is_right,
    run_alone_until,
    wait_until,
)
from tests.session._dropin import branches_model


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the trial decides, which on a busy machine may be either: side by side, or not."""
    return partial(decide_trials, monkeypatch)


def opened(tmp_path: Path, kind: str, **more: Any) -> Any:
    if kind == "bundle":
        return parallax.InferenceSession(parallax.compile(MODEL, tmp_path / "m.plx", threads=2), threads=2, **more)
    kinds: dict[str, dict[str, Any]] = {"budget": {"memory_budget": "1GiB"}, "idle": {"idle_trim_s": 60}, "model": {}}
    return parallax.InferenceSession(MODEL, threads=2, **kinds[kind], **more)


# -- both ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["auto", "throughput"])
@pytest.mark.parametrize("kind", ["model", "bundle", "budget", "idle"])
def test_two_thousand_runs_of_eight_threads_over_a_change_each_way_and_none_is_wrong(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None], kind: str, objective: str
) -> None:
    decided(narrow=True, idle_s=0.3)
    recorder = EventRecorder()
    session = opened(tmp_path, kind, objective=objective, observers=[recorder])
    assert not is_narrow(session)
    with calling(session, wanted, least=250) as callers:
        wait_until(lambda: is_narrow(session) and "2 callers had" in session.plan.provenance.reason)
        replica = weakref.ref(session._callers._narrow)
    assert min(callers.ran) >= 250
    run_alone_until(session, wanted, lambda: not is_narrow(session))
    assert session.plan.segments[0].width == 2
    wait_until(lambda: replica() is None)  # it idles
    session.close()
    events = recorder.take()
    swaps = [event for event in events if isinstance(event, PlanSwapped)]
    for before, after in itertools.pairwise(swaps):
        assert after.previous == before.plan
    assert [swap.plan.segments[0].width for swap in swaps[-2:]] == [1, 2]
    assert swaps[-1].reason == "for some time there was at most one caller"
    assert len(verify_events(events)) >= sum(callers.ran)
    assert {event.plan.segments[0].width for event in events if isinstance(event, RunAdmitted)} == {1, 2}


def test_the_second_time_nothing_is_tried_any_more(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=True, idle_s=0.3)
    recorder = EventRecorder()
    session = opened(tmp_path, "model", objective="throughput", observers=[recorder])
    for _ in range(2):
        recorder.take()
        with calling(session, wanted, MANY):
            wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        run_alone_until(session, wanted, lambda: not is_narrow(session))
    assert len([event for event in recorder.take() if isinstance(event, PlanSwapped)]) == 2


def test_a_run_that_is_alone_has_all_threads_though_others_went_on_side_by_side(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=True)
    recorder = EventRecorder()
    session = opened(tmp_path, "model", objective="throughput", observers=[recorder])
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        recorder.take()
        before = session._callers.calls.ended
        wait_until(lambda: session._callers.calls.ended > before + 200)
    admitted = [event for event in recorder.take() if isinstance(event, RunAdmitted)]
    assert sum(event.plan.segments[0].width == 1 for event in admitted) > len(admitted) / 2
    arrived = threading.Event()
    for run in (
        lambda: session.run(None, {"x": INPUTS[0]}),
        lambda: session.run_with_ort_values(None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(INPUTS[0])}),
        lambda: session.run_async(None, {"x": INPUTS[0]}, lambda *_: arrived.set(), None) or arrived.wait(LIMIT_S),
    ):
        assert is_narrow(session)
        time.sleep(0.2)  # runs were in flight together until now
        recorder.take()
        run()
        (alone,) = [event for event in recorder.take() if isinstance(event, RunAdmitted)]
        assert alone.plan.segments[0].width == 2
    assert not session._callers.calls.in_flight
    assert session.runners.current.places._free == 2  # type: ignore[attr-defined]


def test_observers_that_run_the_session_themselves_wait_for_nobody(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=True)
    inside = threading.local()
    asked = list[bool]()

    def observe(event: Any) -> None:
        if isinstance(event, RunEnded) and not getattr(inside, "is_here", False):
            inside.is_here = True
            try:
                asked.append(is_right(session.run(None, {"x": INPUTS[3]})[0], wanted[3]))
            finally:
                inside.is_here = False

    session = opened(tmp_path, "model", objective="throughput", observers=[observe])
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        before = len(asked)
        wait_until(lambda: len(asked) > before + 200)
    assert all(asked)


def test_a_model_that_gains_nothing_stays_as_it_was_opened(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=False)
    session = opened(tmp_path, "model", objective="throughput")
    with calling(session, wanted):
        wait_until(lambda: "callers share all threads now" in session.plan.provenance.reason)
        wait_until(lambda: session._callers._narrow is None)
    assert not is_narrow(session)
    assert "callers share all threads" in " ".join(session.explain().split())


def test_awaited_runs_are_callers_too(decided: Callable[..., None]) -> None:
    decided(narrow=True)
    model = dense_chain(depth=40)  # long runs: between them there is but one thread, that of the event loop
    (want,) = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, {"x": INPUTS[0]})
    session = parallax.InferenceSession(model, threads=2, objective="throughput")

    async def call() -> None:
        while not is_narrow(session):
            (answer,) = await session.arun(None, {"x": INPUTS[0]})
            assert is_right(answer, want)

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*(call() for _ in range(4))), LIMIT_S)

    asyncio.run(all_of_them())


# -- memory -------------------------------------------------------------------------------------------------------


def test_a_budget_that_has_no_room_for_a_replica_has_callers_share_all_threads(wanted: list[Any]) -> None:
    roomy = parallax.InferenceSession(MODEL, threads=2, memory_budget="1GiB")
    roomy.run(None, {"x": INPUTS[0]})
    least = roomy.memory().least_budget_bytes
    weights = roomy.memory().weights_private_bytes
    assert least is not None
    assert weights is not None
    roomy.close()
    session = parallax.InferenceSession(MODEL, threads=2, memory_budget=least + weights // 2, objective="throughput")
    with calling(session, wanted):
        wait_until(lambda: "callers share all threads" in session.plan.provenance.reason)
        assert "budget" in session.plan.provenance.reason
        assert not is_narrow(session)
    assert session.memory().budget_bytes == least + weights // 2


def test_what_a_replica_holds_is_counted_and_no_more_when_it_is_gone(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=True, idle_s=0.2)
    session = opened(tmp_path, "budget", objective="throughput")
    session.run(None, {"x": INPUTS[0]})
    before = session.memory()
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session))
        during = session.memory()
    weights = before.weights_private_bytes
    assert during.weights_private_bytes == 2 * weights
    assert before.limit_bytes - during.limit_bytes == weights
    run_alone_until(session, wanted, lambda: session._callers._narrow is None)
    gc.collect()
    session.run(None, {"x": INPUTS[0]})
    after = session.memory()
    assert (after.limit_bytes, after.weights_private_bytes) == (before.limit_bytes, weights)


def test_auto_makes_no_replica_that_takes_more_than_its_share(
    wanted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"auto": replace(CALLER_RULES["auto"], most_growth=1.0)}
    monkeypatch.setattr(_serving_callers, "CALLER_RULES", rules)
    session = parallax.InferenceSession(MODEL, threads=2, objective="auto")
    with calling(session, wanted):
        wait_until(lambda: "callers share all threads" in session.plan.provenance.reason)
    assert "of what the process holds" in session.plan.provenance.reason
    assert not is_narrow(session)


# -- everything else that a session does ----------------------------------------------------------------------------


def test_every_way_to_run_goes_on_side_by_side(tmp_path: Path, wanted: list[Any], decided: Callable[..., None]) -> None:
    decided(narrow=True)
    session = opened(tmp_path, "model", objective="throughput")
    x = INPUTS[1]
    old = session.io_binding()
    old.bind_cpu_input("x", x)
    old.bind_output("y")

    def in_background() -> Any:
        arrived, heard = threading.Event(), list[Any]()

        def hear(results: Any, data: Any, error: str) -> None:
            heard.extend([results, error])
            arrived.set()

        session.run_async(None, {"x": x}, hear, None)
        assert arrived.wait(LIMIT_S)
        assert heard[1] == ""
        return heard[0][0]

    def bound() -> Any:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    def old_binding() -> Any:
        session.run_with_iobinding(old)
        return old.copy_outputs_to_cpu()[0]

    def values() -> Any:
        return session.run_with_ort_values(None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x)})[0].numpy()

    def with_options() -> Any:
        return session.run(["y"], {"x": x}, onnxruntime.RunOptions())[0]

    ways = [in_background, bound, old_binding, values, with_options]
    for way in ways:
        assert is_right(way(), wanted[1])
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session) and not session._callers._policy.is_trying)
        for way in ways:
            assert is_right(way(), wanted[1])
            with pytest.raises(Exception) as theirs:
                onnxruntime.InferenceSession(MODEL, providers=[CPU]).run(None, {"z": x})
            with pytest.raises(type(theirs.value)):
                session.run(None, {"z": x})
        assert is_narrow(session)
        session.trim()
        assert [entry.name for entry in session.get_inputs()] == ["x"]
    wait_until(lambda: not session._callers.calls.in_flight)


def test_a_plan_that_is_swapped_in_by_hand_is_the_callers_from_then_on(
    wanted: list[Any], decided: Callable[..., None]
) -> None:
    decided(narrow=True)
    recorder = EventRecorder()
    session = parallax.InferenceSession(MODEL, threads=2, objective="throughput", observers=[recorder])
    split = parallax.InferenceSession(MODEL, threads=2, split="always").plan
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session))
        session.swap_plan(split, reason="to see it")
        assert len(session.plan.segments) == len(split.segments)
        assert "is of no effect: another plan was swapped in by hand" in session.plan.provenance.reason
        time.sleep(0.5)
        assert len(session.plan.segments) == len(split.segments)
    swaps = [event for event in recorder.take() if isinstance(event, PlanSwapped)]
    assert swaps[-1].reason == "to see it"
    for before, after in itertools.pairwise(swaps):
        assert after.previous == before.plan


def test_other_providers_and_copies_begin_anew(tmp_path: Path, wanted: list[Any], decided: Callable[..., None]) -> None:
    decided(narrow=True)
    session = opened(tmp_path, "model", objective="throughput")
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session))
        copy = pickle.loads(pickle.dumps(session))
        assert copy._given_options.objective == "throughput"
        assert not is_narrow(copy)
        assert is_right(copy.run(None, {"x": INPUTS[2]})[0], wanted[2])
    session.set_providers([CPU])
    assert not is_narrow(session)
    assert is_right(session.run(None, {"x": INPUTS[2]})[0], wanted[2])
    with calling(session, wanted, MANY):
        wait_until(lambda: is_narrow(session))


def test_one_caller_starts_no_thread_and_a_session_for_latency_counts_nothing(
    tmp_path: Path, wanted: list[Any]
) -> None:
    before = set(threading.enumerate())
    session = opened(tmp_path, "model", objective="throughput")
    for _ in range(50):
        session.run(None, {"x": INPUTS[0]})
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()
    assert type(session.runners.current) is CountedRunner
    assert type(parallax.InferenceSession(MODEL, threads=2).runners.current) is WholeRunner


def has_thread(callers: Any) -> bool:
    """Whether what follows the callers of a session has a thread."""
    return callers._thread is not None and callers._thread.is_alive()


@pytest.mark.parametrize("objective", ["auto", "throughput"])
@pytest.mark.parametrize("when_s", [0.2, 0.3, 0.45, 0.7, 1.1])
def test_a_session_that_is_closed_during_a_change_holds_nothing_any_more(
    wanted: list[Any], decided: Callable[..., None], when_s: float, objective: str
) -> None:
    decided(narrow=True)
    session = parallax.InferenceSession(MODEL, threads=2, objective=objective)
    wide, follower = weakref.ref(session.runners.current), session._callers
    with calling(session, wanted, 4) as callers:
        time.sleep(when_s)
        session.close()
        wait_until(lambda: callers.closed + len(callers.wrong) == 4)
    assert session.plan.segments
    wait_until(lambda: not has_thread(follower))
    gc.collect()
    assert wide() is None
    assert not session._prepared


def test_a_session_that_is_dropped_ends_its_thread(wanted: list[Any], decided: Callable[..., None]) -> None:
    decided(narrow=True)
    held: list[Any] = [parallax.InferenceSession(MODEL, threads=2, objective="throughput")]
    with calling(held[0], wanted, MANY):
        wait_until(lambda: is_narrow(held[0]))
        runners = [weakref.ref(runner) for runner in (held[0]._opened.runner, held[0].runners.current)]
    follower = held[0]._callers
    assert has_thread(follower)
    held.clear()
    gc.collect()
    wait_until(lambda: not has_thread(follower))
    gc.collect()
    assert [runner() for runner in runners] == [None, None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("when_s", [0.2, 0.35, 0.6, 1.0, 1.5])
def test_a_child_that_is_forked_during_a_change_answers_and_follows_its_own_callers(
    tmp_path: Path, wanted: list[Any], decided: Callable[..., None], when_s: float
) -> None:
    decided(narrow=True)
    session = opened(tmp_path, "model", objective="throughput")
    with calling(session, wanted, MANY) as callers:
        time.sleep(when_s)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if is_right(session.run(None, {"x": INPUTS[1]})[0], wanted[1]) else 2
                if code == 0 and (is_narrow(session) or session._callers.calls.in_flight):
                    code = 3
                session.close()
            finally:
                os._exit(code)
        ended, status = 0, 0
        end = time.monotonic() + LIMIT_S
        while not ended and time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, 9)
        assert ended, "the child hangs"
        assert os.waitstatus_to_exitcode(status) == 0
        wait_until(lambda: is_narrow(session))
    assert min(callers.ran) > 0


# -- where it cannot be done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: {"adapt": True}, "adapt=True"),
        (lambda: {"split": "always"}, "the model is split"),
        (lambda: {"sess_options": onnxruntime.SessionOptions()}, "session options were given"),
        (lambda: {"threads": 1}, "one core"),
        (lambda: {"disabled_optimizers": ["ConstantFolding"]}, "settings that are for the session itself"),
        (lambda: {"providers": ["emulated:pixel-6-gpu", CPU]}, "alone"),
    ],
)
@pytest.mark.parametrize("objective", ["auto", "throughput"])
def test_where_it_cannot_be_done_the_plan_says_so(given: Callable[[], Any], reason: str, objective: str) -> None:
    model = branches_model().SerializeToString()
    session = parallax.InferenceSession(model, **{"threads": 2, "objective": objective, **given()})
    told = session.plan.provenance.reason
    assert f'objective="{objective}" is of no effect' in told
    assert reason in told
    assert reason in " ".join(session.explain().split())
    x = np.ones((2, 4), np.float32)
    want = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", ["auto", "throughput"])
def test_what_is_compiled_serves_no_callers(tmp_path: Path, objective: Any) -> None:
    for given in ({"options": parallax.Options(objective=objective)}, {"objective": objective}):
        with pytest.raises(parallax.ConfigError, match="objective= is an option of sessions"):
            parallax.compile(MODEL, tmp_path / "m.plx", **given)


def test_runs_that_leave_out_padding_are_not_served_side_by_side() -> None:
    model = encoder(Choices()).SerializeToString()
    session = parallax.InferenceSession(model, threads=2, padding="trim", objective="throughput")
    assert 'objective="throughput" is of no effect' in session.plan.provenance.reason
    assert "padded places" in session.plan.provenance.reason
    assert not isinstance(session.runners.current, CountedRunner)
