"""Sessions that follow the machine: they notice, go over, come back, and answer right all the while."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.adapt import MOST_PLANS, Adaptation
from parallax.engine import EventRecorder
from parallax.errors import ConfigError, SessionClosedError
from parallax.events import Event, PlanSwapped, RunAdmitted
from parallax.machine import private_bytes
from tests.engine._replay import verify_events
from tests.planner.test_placers import CPU, PHONE, SIZE, two_chains
from tests.session._dropin import branches_model
from tests.session._steered import NAME, STEERED, Hand, installed

MODEL = two_chains()
FEEDS = {"x": np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)}
LIMIT_S = 240
"""Nothing is timed by this: it ends a test that would never end."""


@pytest.fixture(scope="module")
def want() -> Any:
    (found,) = onnxruntime.InferenceSession(MODEL, providers=[CPU]).run(None, FEEDS)
    return found


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Hand]:
    with installed(tmp_path) as hand:
        yield hand


def run_until(session: Any, what: Callable[[Adaptation], object], want: Any) -> None:
    """Run until the session's adaptation says so. Every answer is checked."""
    end = time.monotonic() + LIMIT_S
    while not what(session.adaptation):
        assert time.monotonic() < end, str(session.adaptation)
        (got,) = session.run(None, FEEDS)
        np.testing.assert_array_equal(got, want)


def wait_until(what: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("parallax-adapt")]


def is_complete(adaptation: Adaptation) -> bool:
    assert adaptation.ended is None, adaptation.ended
    return adaptation.is_complete


def uses_device(session: Any) -> bool:
    return any(segment.backend == NAME for segment in session.plan.segments)


class Callers:
    """Threads that run a session until they are told to stop, and check each answer."""

    def __init__(self, session: Any, want: Any, count: int = 8) -> None:
        self.over, self.wrong, self.ran = threading.Event(), list[str](), [0] * count
        self._session, self._want = session, want
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self, number: int) -> None:
        while not self.over.is_set():
            try:
                (got,) = self._session.run(None, FEEDS)
            except BaseException as error:
                self.wrong.append(repr(error))
                return
            self.ran[number] += 1
            if not np.array_equal(got, self._want):
                self.wrong.append(f"run {self.ran[number]} of thread {number}: another answer")

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert not self.wrong, self.wrong[:5]
        assert min(self.ran) > 0


@pytest.mark.slow
def test_eight_threads_leave_a_device_that_became_slow_and_come_back_and_no_run_is_lost_or_wrong(
    hand: Hand, want: Any
) -> None:
    recorder = EventRecorder()
    session = parallax.InferenceSession(MODEL, providers=[STEERED, CPU], threads=2, adapt=True, observers=[recorder])
    assert uses_device(session)
    run_until(session, is_complete, want)
    callers = Callers(session, want)
    try:
        wait_until(lambda: sum(callers.ran) > 200)
        hand.set(200.0)
        wait_until(lambda: not uses_device(session))
        hand.set(1.0)
        wait_until(lambda: uses_device(session))
    finally:
        callers.end()
    adaptation = session.adaptation
    session.close()
    events = recorder.take()
    runs = verify_events(events)
    assert len(runs) >= sum(callers.ran)
    swaps = [event for event in events if isinstance(event, PlanSwapped)]
    assert len(swaps) == len(adaptation.switches)
    assert [f"{switch.after}: {switch.reason}" for switch in adaptation.switches] == [swap.reason for swap in swaps]
    away = next(swap for swap in swaps if all(segment.backend == "cpu" for segment in swap.plan.segments))
    assert "pixel-6-gpu at" in away.reason
    assert "times its predicted time" in away.reason
    # Every run follows the plan in force when it began.
    plans = {swap.sequence: swap.plan for swap in swaps}
    for event in events:
        if isinstance(event, RunAdmitted) and event.sequence > away.sequence:
            assert event.plan in (swaps[0].previous, *plans.values())


@pytest.mark.slow
def test_nothing_is_switched_unless_something_became_slow(hand: Hand, want: Any) -> None:
    session = parallax.InferenceSession(MODEL, providers=[STEERED, CPU], threads=2, adapt=True)
    run_until(session, is_complete, want)
    assert len(session.adaptation.plans) >= 2
    run_until(session, lambda adaptation: adaptation.runs >= 60, want)
    # Where other processes have the cores, a run of half a millisecond may take fifty: that is for the session to see.
    for switch in session.adaptation.switches:
        before_ns, after_ns = switch.measured_ns or (switch.before_ns, switch.after_ns)
        assert switch.is_comparison or after_ns <= 0.96 * before_ns
        assert switch.is_comparison or switch.measured_ns or max(switch.state.slowdowns.values()) > 5


@pytest.mark.slow
def test_the_device_of_a_condition_file_is_left_and_gone_back_to(tmp_path: Path, want: Any) -> None:
    path = tmp_path / "condition.json"
    # Slower at once: a plan that is opened for the device as predicted is left however long its others take to compile.
    steps = [{"at_s": 0, "device": 40, "launch": 40}]
    path.write_text(json.dumps({"format": 1, "steps": steps}))
    session = parallax.InferenceSession(MODEL, providers=[f"{PHONE}?condition={path}", CPU], threads=2, policy="sparoa")
    assert uses_device(session)
    run_until(session, lambda _: not uses_device(session), want)
    assert session.adaptation.state.slowdown(PHONE) > 10


def test_a_session_of_the_cpu_alone_has_plans_of_other_widths(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    assert session.plan.is_whole
    run_until(session, is_complete, want)
    adaptation = session.adaptation
    assert len(adaptation.plans) >= 2
    assert adaptation.plans[0].label == "the plan in force"
    run_until(session, lambda adaptation: adaptation.runs >= 4, want)
    assert "takes" in str(session.adaptation)
    assert str(session.adaptation).count("ms predicted") >= len(adaptation.plans)
    told = json.loads(json.dumps(session.adaptation.to_json()))
    assert [plan["label"] for plan in told["plans"]] == [plan.label for plan in adaptation.plans]
    assert told["current"] == session.adaptation.current


def test_it_is_off_unless_asked_for(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2)
    assert session.adaptation is None
    assert "adapt" not in session.plan.provenance.reason
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], want)


RUNS = 10_000
WARM_RUNS = 1_000
"""By then all callers have run by several plans, each of which keeps what a run in flight needs."""
GROWTH_BYTES = 64 << 20
"""Private memory beyond what it was then, at most."""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a machine that others load as well
def test_ten_thousand_runs_while_the_machine_changes_none_fails_none_is_wrong_and_memory_keeps_its_bound(
    hand: Hand, want: Any
) -> None:
    budget = 1 << 30
    recorder = SwapRecorder()
    session = parallax.InferenceSession(
        MODEL, providers=[STEERED, CPU], threads=2, memory_budget=budget, adapt=True, observers=[recorder]
    )
    run_until(session, is_complete, want)
    held, factors, used = session.memory(), random.Random(0), list[int]()
    callers = Callers(session, want, count=4)
    try:
        step = 0
        while sum(callers.ran) < RUNS:
            step += 1
            hand.set(factors.choice((1.0, 1.0, 2.0, 8.0, 200.0)))
            with competitors(2 if factors.random() < 0.3 else 0):
                wait_until(lambda: sum(callers.ran) >= min(RUNS, 250 * step) or callers.wrong)  # noqa: B023
            assert not callers.wrong, callers.wrong[:5]
            if sum(callers.ran) >= WARM_RUNS:
                used.append(private_bytes() or 0)
            assert len(session.adaptation.plans) <= MOST_PLANS
    finally:
        callers.end()
    assert max(used) - used[0] <= GROWTH_BYTES
    usage = session.memory()
    assert usage.weights_private_bytes == held.weights_private_bytes
    assert usage.admitted_bytes == 0
    assert 0 < (usage.admitted_peak_bytes or 0) + (held.weights_private_bytes or 0) <= budget
    adaptation = session.adaptation
    assert adaptation.ended is None
    assert len(recorder.swaps) >= 2, "a machine that changes is followed"
    assert sum(callers.ran) >= RUNS
    session.close()
    assert [swap.sequence for swap in recorder.swaps] == sorted(swap.sequence for swap in recorder.swaps)


class SwapRecorder:
    """Keeps the changes of plans, of all events."""

    def __init__(self) -> None:
        self.swaps: list[PlanSwapped] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, PlanSwapped):
            self.swaps.append(event)


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """So many busy processes while the block runs, which end with this one too."""
    spin = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(100_000))\n"
    started = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


# -- its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4, 1.0])
def test_a_session_may_be_closed_while_plans_are_made(after_s: float, want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], want)
    time.sleep(after_s)
    runner = weakref.ref(session.runners.current)
    session.close()
    adaptation = session.adaptation
    assert adaptation is not None
    assert adaptation.ended == "the session was closed"
    with pytest.raises(SessionClosedError):
        session.run(None, FEEDS)
    wait_until(lambda: not followers())
    gc.collect()
    assert runner() is None, "what it ran is given back"


def test_a_dropped_session_takes_its_plans_along(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    run_until(session, is_complete, want)
    gone = weakref.ref(session)
    del session
    gc.collect()
    wait_until(lambda: gone() is None and not followers())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("waits", [False, True], ids=["while plans are made", "with plans ready"])
def test_a_forked_child_follows_the_machine_by_itself(waits: bool, want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    if waits:
        run_until(session, is_complete, want)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run_until(session, lambda adaptation: is_complete(adaptation) and adaptation.runs >= 2, want)
            session.close()
            code = 0
        finally:
            os._exit(code)
    run_until(session, is_complete, want)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run_until(session, lambda adaptation: adaptation.runs >= 2, want)


def test_new_providers_begin_anew_and_copies_follow_too(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    run_until(session, is_complete, want)
    before = session.adaptation
    session.set_providers([CPU])
    assert session.adaptation is not None
    assert session.adaptation.runs == 0 < before.runs + 1
    copy = pickle.loads(pickle.dumps(session))
    for opened in (session, copy):
        run_until(opened, lambda adaptation: is_complete(adaptation) and adaptation.runs >= 2, want)


def test_a_plan_that_is_swapped_in_by_hand_stays(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2, adapt=True)
    run_until(session, is_complete, want)
    other = parallax.InferenceSession(MODEL, threads=2, split="always").plan
    session.swap_plan(other, reason="mine")
    adaptation = session.adaptation
    assert adaptation is not None
    assert adaptation.ended == "another plan was swapped in by hand"
    assert "followed no more" in str(adaptation)
    assert len(session.plan.segments) == len(other.segments)
    wait_until(lambda: not followers())
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], want)


def test_what_was_prepared_before_a_session_was_opened_anew_is_refused(want: Any) -> None:
    session = parallax.InferenceSession(MODEL, threads=2)
    prepared = session.prepare_plan(parallax.InferenceSession(MODEL, threads=2, split="always").plan)
    alone, held = parallax.InferenceSession(MODEL, threads=2).memory(), session.memory()
    assert held.weights_private_bytes == 2 * (alone.weights_private_bytes or 0) > 0
    session.use_prepared(prepared, "once")
    assert len(session.plan.segments) > 1
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], want)
    session.set_providers([CPU])
    with pytest.raises(ConfigError, match="opened anew"):
        session.use_prepared(prepared, "twice")
    assert session.plan.is_whole


# -- memory -----------------------------------------------------------------------------------------------------------


def test_plans_that_are_kept_ready_count_towards_the_budget(want: Any) -> None:
    plain = parallax.InferenceSession(MODEL, threads=2, memory_budget="1GiB")
    session = parallax.InferenceSession(MODEL, threads=2, memory_budget="1GiB", adapt=True)
    run_until(session, is_complete, want)
    held, alone = session.memory(), plain.memory()
    others = len(session.adaptation.plans) - 1
    assert others >= 1
    assert held.limit_bytes is not None
    assert alone.limit_bytes is not None
    assert alone.weights_private_bytes
    assert alone.limit_bytes - held.limit_bytes == others * alone.weights_private_bytes
    assert held.weights_private_bytes == (others + 1) * alone.weights_private_bytes


def test_a_plan_for_which_there_is_no_memory_is_left_out_and_it_is_said(want: Any) -> None:
    least = parallax.InferenceSession(MODEL, threads=2, memory_budget="1GiB").memory().least_budget_bytes
    assert least is not None
    session = parallax.InferenceSession(MODEL, threads=2, memory_budget=least + (4 << 20), adapt=True)
    run_until(session, is_complete, want)
    adaptation = session.adaptation
    assert len(adaptation.plans) == 1
    assert "held twice" in " ".join(adaptation.left_out)
    assert "not kept ready" in str(adaptation)
    run_until(session, lambda adaptation: adaptation.runs >= 2, want)


# -- what it does not go with -----------------------------------------------------------------------------------------


OPEN = branches_model(3).SerializeToString()


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        (MODEL, {"threads": 1}, "one core, and no device"),
        (MODEL, {"threads": 2, "split": "always"}, "the one that was asked for"),
        (MODEL, {"threads": 2, "policy": "parallax-paper"}, "a baseline"),
        (MODEL, {"threads": 2, "disabled_optimizers": ["ConstantFolding"]}, "single optimisers were disabled"),
        (OPEN, {"threads": 2}, "depends on the shape of 'x'"),
    ],
)
def test_where_it_is_of_no_effect_the_plan_says_so(model: bytes, options: dict[str, Any], why: str) -> None:
    before = followers()  # of sessions of other tests, which end within a second
    session = parallax.InferenceSession(model, adapt=True, **options)
    assert "adapt=True is of no effect: " in session.plan.provenance.reason
    assert why in session.plan.provenance.reason
    assert "of no effect" in session.plan.summary
    adaptation = session.adaptation
    assert adaptation is not None
    assert why in (adaptation.ended or "")
    assert set(followers()) <= set(before)


def test_shapes_say_what_is_to_be_followed_and_others_are_not_counted() -> None:
    session = parallax.InferenceSession(OPEN, threads=2, adapt=True, shapes={"x": (2, 4)})
    planned, other = np.ones((2, 4), np.float32), np.ones((64, 4), np.float32)
    wait_until(lambda: is_complete(session.adaptation))
    wait_until(lambda: session.run(None, {"x": planned}) and session.adaptation.runs >= 4)
    known = session.adaptation.runs
    for _ in range(50):
        session.run(None, {"x": other})
    assert session.adaptation.runs <= known + 2  # those that ended while it looked


def test_a_bundle_has_one_plan(tmp_path: Path, want: Any) -> None:
    bundle = parallax.compile(MODEL, tmp_path / "m.plx", policy="sparoa")
    session = parallax.InferenceSession(bundle)
    assert "adapt=True is of no effect: a bundle holds one plan" in session.plan.provenance.reason
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], want)
    for option in ({"adapt": True}, {"policy": "sparoa"}):
        with pytest.raises(ConfigError, match="adapt= is decided when a bundle is compiled"):
            parallax.InferenceSession(bundle, **option)
    (tmp_path / "m.onnx").write_bytes(MODEL)
    cached = parallax.InferenceSession(tmp_path / "m.onnx", cache=True, cache_dir=tmp_path, adapt=True)
    assert "a bundle, which holds one plan" in cached.plan.provenance.reason
