"""Another plan takes over while a session runs: no run is lost, none is wrong, and what was before goes."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.engine import EventRecorder
from parallax.errors import BudgetError, ConfigError, PlanError
from parallax.events import Event, PlanSwapped, RunAdmitted, SegmentStarted
from parallax.model import load_model
from parallax.partition.candidates._segments import every_group
from parallax.planner import PlanningContext
from parallax.schedule import Plan
from tests.engine._replay import verify_events
from tests.session._dropin import FloatArray, branches_model, model_of, ramp

MODEL = branches_model(3).SerializeToString()
CPU = "CPUExecutionProvider"
PATIENCE_S = 60
THREADS = 8
RUNS = 250
SWAPS = 12


def stock_answer(model: bytes, x: FloatArray) -> FloatArray:
    (answer,) = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, {"x": x})
    return answer  # type: ignore[no-any-return]


def plans_of(model: bytes) -> tuple[Plan, Plan, Plan]:
    """The whole model, segments side by side, and every piece a segment, one after the other."""
    whole = parallax.InferenceSession(model, split="never", threads=2).plan
    forced = parallax.InferenceSession(model, split="always", threads=2).plan
    context = PlanningContext(load_model(model), cores=2)
    chain = context.plan(context.propose(every_group(context.groups, lanes=1)), forced.provenance)
    assert whole.is_whole
    assert 1 < len(forced.segments) != len(chain.segments) > 1
    return whole, forced, chain


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, Plan, Plan]:
    return plans_of(MODEL)


class Callers:
    """Threads that run a session, each at least `RUNS` times and until it is told to stop, and check each answer."""

    def __init__(self, session: parallax.InferenceSession, model: bytes) -> None:
        self.inputs = [ramp(rows, 4, start=float(rows)) for rows in range(1, 6)]
        self.expected = [stock_answer(model, x) for x in self.inputs]
        self.session = session
        self.ran = [0] * THREADS
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._call, args=(number,)) for number in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def _call(self, number: int) -> None:
        for count in itertools.count():
            if count >= RUNS and self.over.is_set():
                return
            which = (number + count) % len(self.inputs)
            try:
                (answer,) = self.session.run(None, {"x": self.inputs[which]})
            except BaseException as error:
                self.wrong.append(repr(error))
                return
            if not np.array_equal(answer, self.expected[which]):
                self.wrong.append(f"run {count} of thread {number}: another answer")
            self.ran[number] += 1

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert not self.wrong, self.wrong[:5]
        assert min(self.ran) >= RUNS


def test_plans_are_swapped_under_eight_threads_and_no_run_is_lost_or_wrong(plans: tuple[Plan, Plan, Plan]) -> None:
    session = parallax.InferenceSession(MODEL, split="never", threads=2)
    former, their_sessions = [weakref.ref(session.runners.current)], [weakref.ref(session.runners.current.sessions[0])]
    callers = Callers(session, MODEL)
    try:
        for plan in itertools.islice(itertools.cycle((*plans[1:], plans[0])), SWAPS):
            session.swap_plan(plan)
            former.append(weakref.ref(session.runners.current))
            their_sessions.append(weakref.ref(session.runners.current.sessions[0]))
            assert len(session.plan.segments) == len(plan.segments)
    finally:
        callers.end()
    gc.collect()
    for kept in (former, their_sessions):
        assert [each() is None for each in kept] == [True] * SWAPS + [False], "only what is in force is kept"


def test_observers_are_told_of_swaps_in_their_order_and_of_every_run_by_its_own_plan(
    plans: tuple[Plan, Plan, Plan],
) -> None:
    recorder = EventRecorder()
    session = parallax.InferenceSession(MODEL, split="never", threads=2, observers=[recorder])
    callers = Callers(session, MODEL)
    try:
        for number, plan in enumerate(itertools.islice(itertools.cycle((*plans[1:], plans[0])), 6)):
            session.swap_plan(plan, reason=f"swap {number}")
            session.run(None, {"x": callers.inputs[0]})  # the threads may get no turn before the next swap
    finally:
        callers.end()
    events = recorder.take()
    swaps = [event for event in events if isinstance(event, PlanSwapped)]
    assert [event.reason for event in swaps] == [f"swap {number}" for number in range(6)]
    for before, after in itertools.pairwise(swaps):
        assert after.previous == before.plan
    runs = verify_events(events)
    assert len(runs) == sum(callers.ran) + len(swaps)
    known = {len(plan.segments) for plan in plans}
    assert {len(run.admitted.plan.segments) for run in runs.values()} == known


class Halt:
    """An observer that holds up the first run it is told of, until it is let go."""

    def __init__(self) -> None:
        self.arrived, self.may_go = threading.Event(), threading.Event()
        self._is_first = True

    def __call__(self, event: Event) -> None:
        if isinstance(event, SegmentStarted) and self._is_first:
            self._is_first = False
            self.arrived.set()
            assert self.may_go.wait(PATIENCE_S)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(range(3), 2)))
def test_a_run_in_flight_ends_on_the_plan_it_began_with(
    plans: tuple[Plan, Plan, Plan], first: int, second: int
) -> None:
    x, halt, recorder = ramp(2, 4), Halt(), EventRecorder()
    session = parallax.InferenceSession(MODEL, split="never", threads=2)
    session.swap_plan(plans[first])
    before = weakref.ref(session.runners.current)
    session.add_observer(halt)
    session.add_observer(recorder)
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.extend(session.run(None, {"x": x})))
    running.start()
    try:
        assert halt.arrived.wait(PATIENCE_S)
        session.swap_plan(plans[second])
        gc.collect()
        assert before() is not None, "it is still in use"
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], stock_answer(MODEL, x))
    finally:
        halt.may_go.set()
        running.join(PATIENCE_S)
    np.testing.assert_array_equal(answers[0], stock_answer(MODEL, x))
    admitted = [len(event.plan.segments) for event in recorder.take() if isinstance(event, RunAdmitted)]
    assert admitted == [len(plans[first].segments), len(plans[second].segments)]
    gc.collect()
    assert before() is None


# -- everything else a session does, after a swap ---------------------------------------------------------------------


def ways_to_run(session: parallax.InferenceSession) -> Iterator[tuple[str, Callable[[FloatArray], Any]]]:
    def with_values(x: FloatArray) -> Any:
        (value,) = session.run_with_ort_values(None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x)})
        return value.numpy()

    def in_background(x: FloatArray) -> Any:
        arrived, heard = threading.Event(), []

        def hear(results: Any, data: Any, error: str) -> None:
            heard.append((results, error))
            arrived.set()

        session.run_async(None, {"x": x}, hear, None)
        assert arrived.wait(PATIENCE_S)
        assert heard[0][1] == ""
        return heard[0][0][0]

    def bound(x: FloatArray) -> Any:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    yield "values", with_values
    yield "background", in_background
    yield "binding", bound
    yield "run options", lambda x: session.run(["y"], {"x": x}, onnxruntime.RunOptions())[0]


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1GiB"}, {"idle_trim_s": 60}])
def test_every_way_to_run_goes_on_after_each_swap(plans: tuple[Plan, Plan, Plan], options: dict[str, Any]) -> None:
    x = ramp(3, 4)
    wanted = stock_answer(MODEL, x)
    session = parallax.InferenceSession(MODEL, split="never", threads=2, **options)
    described = [(value.name, value.shape, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    old = session.io_binding()
    old.bind_cpu_input("x", x)
    old.bind_output("y")
    # As plans are that are kept ready for when other processes use the cores.
    narrow = replace(plans[0], segments=(replace(plans[0].segments[0], width=1),))
    for plan in (plans[1], plans[2], plans[0], narrow, plans[1], plans[0]):
        session.swap_plan(plan)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)
        for name, way in ways_to_run(session):
            np.testing.assert_array_equal(way(x), wanted, err_msg=name)
        session.run_with_iobinding(old)
        np.testing.assert_array_equal(old.copy_outputs_to_cpu()[0], wanted)
        shown = [(value.name, value.shape, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
        assert shown == described
        assert session.get_providers() == [CPU]
        for wrong in ({"z": x}, {}, {"x": x.astype(np.float64)}):
            with pytest.raises(Exception) as theirs:
                onnxruntime.InferenceSession(MODEL, providers=[CPU]).run(None, wrong)
            with pytest.raises(type(theirs.value)):
                session.run(None, wrong)
        assert session.memory().process_private_bytes != 0
        session.trim()


def test_new_providers_and_copies_plan_anew(plans: tuple[Plan, Plan, Plan]) -> None:
    x = ramp(2, 4)
    session = parallax.InferenceSession(MODEL, split="never", threads=2)
    session.swap_plan(plans[1])
    copy = pickle.loads(pickle.dumps(session))
    assert copy.plan.is_whole
    np.testing.assert_array_equal(copy.run(None, {"x": x})[0], stock_answer(MODEL, x))
    session.set_providers([CPU])
    assert session.plan.is_whole
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], stock_answer(MODEL, x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_goes_on_with_the_plan_that_was_swapped_in(plans: tuple[Plan, Plan, Plan]) -> None:
    x = ramp(2, 4)
    wanted = stock_answer(MODEL, x)
    session = parallax.InferenceSession(MODEL, split="never", threads=2)
    session.swap_plan(plans[1])
    session.run(None, {"x": x})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            is_right = np.array_equal(session.run(None, {"x": x})[0], wanted)
            code = 0 if is_right and len(session.plan.segments) == len(plans[1].segments) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- refusals, after which the plan in force stays --------------------------------------------------------------------


def assert_refused(session: parallax.InferenceSession, plan: Plan, error: type[Exception], match: str) -> None:
    before, x = session.plan, ramp(2, 4)
    with pytest.raises(error, match=match):
        session.swap_plan(plan)
    assert session.plan == before
    (name,) = (value.name for value in session.get_inputs())
    assert session.run(None, {name: x})[0].shape[0] == 2


def test_a_plan_of_another_model_is_refused(plans: tuple[Plan, Plan, Plan]) -> None:
    other = parallax.InferenceSession(branches_model(4).SerializeToString(), split="always", threads=2)
    session = parallax.InferenceSession(MODEL, split="never")
    assert_refused(session, other.plan, PlanError, "another model")
    fixed = parallax.InferenceSession(MODEL, split="always", threads=2, shapes={"x": (2, 4)})
    assert_refused(session, fixed.plan, PlanError, "other shapes")
    fixed.swap_plan(plans[2])
    assert len(fixed.plan.segments) == len(plans[2].segments)


def test_a_plan_that_cannot_run_is_refused(plans: tuple[Plan, Plan, Plan]) -> None:
    session = parallax.InferenceSession(MODEL, split="never")
    assert_refused(session, replace(plans[1], lanes=0), PlanError, "lanes")


def test_a_bundle_refuses(plans: tuple[Plan, Plan, Plan], tmp_path: Path) -> None:
    for options in ({"split": "never"}, {"split": "always"}):
        bundle = parallax.compile(MODEL, tmp_path / f"{options['split']}.plx", threads=2, **options)
        assert_refused(parallax.InferenceSession(bundle, threads=2), plans[2], ConfigError, "bundle")


def test_options_that_keep_a_model_whole_refuse_a_split_plan(plans: tuple[Plan, Plan, Plan]) -> None:
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    session = parallax.InferenceSession(MODEL, options)
    assert_refused(session, plans[1], ConfigError, "parallel mode")
    session.swap_plan(plans[0])
    assert session.plan.is_whole


def dense_model(width: int = 512) -> bytes:
    """Two branches over x[N, width] with a MiB of weights each, joined by a Concat."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random((width, width), np.float32), f"w_{index}") for index in range(2)]
    nodes = []
    for index in range(2):
        nodes.append(helper.make_node("MatMul", ["x", f"w_{index}"], [f"product_{index}"]))
        nodes.append(helper.make_node("Sin", [f"product_{index}"], [f"end_{index}"]))
    nodes.append(helper.make_node("Concat", ["end_0", "end_1"], ["y"], axis=1))
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2 * width])],
        weights,
    ).SerializeToString()


def test_within_a_budget_both_plans_hold_their_weights_until_the_first_is_gone() -> None:
    model = dense_model()
    x = np.linspace(-1, 1, 2 * 512, dtype=np.float32).reshape(2, 512)
    wanted = stock_answer(model, x)
    split = parallax.InferenceSession(model, split="always", threads=2).plan
    least = parallax.InferenceSession(model, split="always", threads=2, memory_budget="64MiB").memory()
    assert least.least_budget_bytes is not None
    tight = parallax.InferenceSession(
        model, split="never", threads=2, memory_budget=least.least_budget_bytes + (256 << 10)
    )
    with pytest.raises(BudgetError, match="held twice"):
        tight.swap_plan(split)
    np.testing.assert_allclose(tight.run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)
    roomy = parallax.InferenceSession(model, split="never", threads=2, memory_budget="64MiB")
    limits = []
    for plan in (split, parallax.InferenceSession(model, split="never", threads=2).plan) * 5:
        roomy.swap_plan(plan)
        np.testing.assert_allclose(roomy.run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)
        gc.collect()
        roomy.run(None, {"x": x})
        assert roomy._memory is not None
        assert roomy._memory.budget is not None
        limits.append(roomy._memory.budget.limit_bytes)
    assert len(set(limits)) == 2, "one for each plan, however often they were swapped"
